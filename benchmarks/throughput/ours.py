"""polyepo_jax: python -m benchmarks.throughput.ours CASE"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.throughput.cases import MODELS, Case, case_of, lengths, report
from polyepo_jax.losses import PolicyLoss
from polyepo_jax.model import ModelConfig, init
from polyepo_jax.sampling import GenerationSpec, Rollout, generate
from polyepo_jax.sharding import MeshConfig, make_mesh
from polyepo_jax.shared_by_commands.start import keep_memory
from polyepo_jax.training.batch import flatten
from polyepo_jax.training.update import OptimizerConfig, UpdateSpec, init_state, train_step
from polyepo_jax.types import Prompts, Rollouts


def model_of(case: Case) -> ModelConfig:
    """The case's model."""
    return ModelConfig(**dataclasses.asdict(MODELS[case.model]), tie_word_embeddings=True)


def prompts_of(case: Case) -> Prompts:
    """Random prompts."""
    shape = case.prompts, case.prompt_length
    tokens = np.random.default_rng(0).integers(0, MODELS[case.model].vocab_size, shape).astype(np.int32)
    return Prompts(tokens, np.ones(shape, bool), np.arange(case.prompts, dtype=np.int32))  # type: ignore[arg-type]


def rollout(case: Case) -> None:
    """Samples; with mixed lengths also in batches that wait for their longest, for comparison."""
    model = model_of(case)
    params = init(model, jax.random.key(0))
    stop_ids = tuple(range(1, 1 + round(case.stop_share * model.vocab_size)))
    spec = GenerationSpec(model, case.generations, case.completion_length, stop_ids, pad_id=0)
    mesh, prompts = make_mesh(MeshConfig()), prompts_of(case)
    max_rows = case.max_rows or case.rows
    used = []

    def run(number: int) -> float:
        going = Rollout(spec, params, prompts, jax.random.key(number), mesh, max_rows)
        tokens = sum(int(np.sum(ended.rollouts.completion_mask_PNT)) for ended in going.finished())
        used.append(tokens / going.row_steps)
        return tokens

    def run_batches(number: int) -> float:
        count, tokens = max_rows // case.generations, 0
        for first in range(0, case.prompts, count):
            batch = jax.tree.map(lambda x, first=first: x[first : first + count], prompts)
            rollouts = generate(spec, params, batch, jax.random.key(number), mesh, max_rows)
            tokens += int(np.sum(rollouts.completion_mask_PNT))
        return tokens

    if case.name.endswith("batches"):
        report(case, run_batches)
    else:
        report(case, run, row_steps_used=lambda: used[-1])


def update(case: Case) -> None:
    """One clipped policy-gradient update with AdamW."""
    model = model_of(case)
    spec = UpdateSpec(
        model=model,
        loss=PolicyLoss(),
        optimizer=OptimizerConfig(),
        learning_rate=1e-5,
        prompt_length=case.prompt_length,
        micro_batch_rows=case.micro_rows,
    )
    state = init_state(spec, init(model, jax.random.key(0)))
    prompts = jax.tree.map(jnp.asarray, prompts_of(case))
    random = np.random.default_rng(1)
    shape = case.prompts, case.generations, case.completion_length
    mask = np.arange(case.completion_length) < np.reshape(lengths(case), (*shape[:2], 1))
    rollouts = Rollouts(
        jnp.asarray(random.integers(0, model.vocab_size, shape), jnp.int32),
        jnp.asarray(mask),
        jnp.where(mask, -np.log(model.vocab_size), 0.0),
        jnp.zeros(shape[:2], bool),
    )
    advantages = jnp.asarray(random.normal(size=shape[:2]), jnp.float32)

    def run(number: int) -> float:
        nonlocal state
        batch = flatten(False, prompts, rollouts, advantages)
        state, stats = train_step(spec, state, batch)
        return float(stats["tokens"])

    report(case, run)


if __name__ == "__main__":
    keep_memory()  # as the commands do
    case = case_of(sys.argv[1])
    {"rollout": rollout, "update": update}[case.kind](case)
