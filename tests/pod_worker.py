"""What a process of a pod sees, written down by process 0: python -m tests.pod_worker OUT.json"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

from polyepo_jax.config.static_arguments import generation_spec
from polyepo_jax.errors import InputError
from polyepo_jax.model import init, logical_axes
from polyepo_jax.pods import collectives, processes
from polyepo_jax.sampling import Rollout, own_prompts
from polyepo_jax.sharding import MeshConfig, any_process, make_mesh, param_shardings, shard_rows
from polyepo_jax.tasks import Polynomial
from polyepo_jax.training.data import to_prompts
from tests.tiny import MODEL, rl_config

MAX_ROWS = 32


def tokens(mesh, num_prompts: int) -> list:
    """All tokens of a step, in slots that are refilled; rows gathered from the processes that deal with them."""
    # Heads that two tensor-parallel devices can share; one layer, for it is compiled for three meshes.
    model = dataclasses.replace(MODEL, num_key_value_heads=2, num_hidden_layers=1)
    config = rl_config(task=Polynomial(), num_generations=4, model=model)
    spec, task = generation_spec(config), config.task
    problems = task.problems("train")[:num_prompts]
    own_P = own_prompts(num_prompts, spec.num_generations, mesh)
    prompts = to_prompts(problems, task.tokenizer, config.max_prompt_length, own_P)
    make = jax.jit(init, static_argnums=0, out_shardings=param_shardings(mesh, logical_axes(config.model)))
    params = make(config.model, jax.random.key(0))
    rollout = Rollout(spec, params, prompts, jax.random.key(1), mesh, MAX_ROWS)
    rows, values = [], []
    for ended in rollout.finished():
        rows += ended.prompts
        values += ended.rollouts.tokens_PNT.tolist()
    gathered = collectives.gather_rows(rows, values)
    assert collectives.to_host(rollout.rollouts()).tokens_PNT.tolist() == gathered
    return gathered


def refusal(refused_by: int) -> str | None:
    """What every process says where one of them refuses its input."""
    try:
        with collectives.agreed():
            if jax.process_index() == refused_by:
                raise InputError("no such file")
    except InputError as error:
        return str(error)
    return None


def difference(index: int) -> str | None:
    """What every process says where the last one has something else."""
    try:
        collectives.check_same(seed=0, training_problems=["a", index > 0])
    except InputError as error:
        return str(error)
    return None


def main() -> None:
    processes.initialize({}, 60, 300)
    index = jax.process_index()
    seen = {"gathered": collectives.gather({"index": index, "text": "ü" * 1000 * index, "undefined": float("nan")})}
    seen["refusals"] = collectives.gather(refusal(1))
    seen["differences"] = collectives.gather(difference(index))
    seen["agreed"] = collectives.gather(refusal(-1))
    for name, sizes in {"data": {}, "fsdp": {"fsdp": 4}, "tensor": {"fsdp": 2, "tensor": 2}}.items():
        mesh = make_mesh(MeshConfig(**sizes))
        # 12 prompts do not divide over all meshes, 16 do.
        seen[f"tokens/{name}"] = [tokens(mesh, 12), tokens(mesh, 16)]
        cut = shard_rows(mesh, np.arange(24).reshape(8, 3))
        seen[f"to_host/{name}"] = collectives.gather(collectives.to_host(cut).tolist())
        seen[f"any/{name}"] = [bool(any_process(mesh, index == 1)), bool(any_process(mesh, False))]
    if processes.is_primary():
        Path(sys.argv[1]).write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
