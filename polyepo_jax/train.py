"""Set reinforcement learning: python -m polyepo_jax.train --config configs/.../....py [--run-dir DIR]

Prompts become rollouts, rollouts get grades, grades become advantages, advantages become an update. The same
command again resumes. Every config field can be overridden as --section.field value.
"""

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polyepo_jax.commands import start
from polyepo_jax.config import Config
from polyepo_jax.errors import run_command
from polyepo_jax.grading import decode, grade
from polyepo_jax.metrics import rollout_metrics
from polyepo_jax.sampling import GenerationSpec, generate
from polyepo_jax.session import Session
from polyepo_jax.sharding import shard_rows
from polyepo_jax.startup import stream
from polyepo_jax.types import Array, Batch, Grades, Prompts, Rollouts
from polyepo_jax.update import UpdateSpec, train_step

SHOWN = {
    "rewards/mean": ("reward", ".3f"),
    "clusters/distinct_correct": ("distinct correct", ".2f"),
    "throughput/rollout_tokens_per_s": ("tokens/s", ",.0f"),
}


def generation_spec(config: Config) -> GenerationSpec:
    """What each step samples."""
    return GenerationSpec(
        model=config.model,
        num_generations=config.num_generations,
        max_completion_length=config.max_completion_length,
        stop_ids=config.task.tokenizer.stop_ids,
        pad_id=config.task.tokenizer.pad_id,
        sampling=config.sampler(),
    )


def update_spec(config: Config) -> UpdateSpec:
    """What each step updates."""
    algorithm = config.algorithm
    mini_batch = algorithm.mini_batch_size
    return UpdateSpec(
        model=config.model,
        loss=algorithm.loss,
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        prompt_length=config.max_prompt_length,
        sampling=config.sampler(),
        num_iterations=algorithm.num_iterations,
        mini_batch_rows=None if mini_batch is None else mini_batch * config.num_generations,
        micro_batch_rows=algorithm.micro_batch_size,
    )


@functools.partial(jax.jit, static_argnums=0)
def group_advantages(advantage: Any, key: Array, ids_P: Array, grades: Grades) -> tuple[Array, dict[str, Array]]:
    """Advantages [P, N], and means over the prompts of what the advantage says of its groups.

    A group's random numbers, if it draws sets, derive from (step, prompt id).
    """
    keys_P = jax.vmap(functools.partial(jax.random.fold_in, key))(ids_P)
    groups = grades.rewards_PN, grades.clusters_PN, grades.valid_PN
    advantages_PN = jax.vmap(advantage)(keys_P, *groups)
    diagnose = getattr(advantage, "diagnostics", None)
    diagnostics = {} if diagnose is None else jax.vmap(diagnose)(*groups)
    return advantages_PN, {f"set/{name}": jnp.mean(value_P) for name, value_P in diagnostics.items()}


@functools.partial(jax.jit, static_argnums=0)
def flatten(mask_truncated: bool, prompts: Prompts, rollouts: Rollouts, advantages_PN: Array) -> Batch:
    """Rows of prompt and completion, P * N of them."""
    num_generations = advantages_PN.shape[1]

    def rows(prompt_PT, completion_PNT):
        completion_BT = completion_PNT.reshape(-1, completion_PNT.shape[-1])
        return jnp.concatenate([jnp.repeat(prompt_PT, num_generations, axis=0), completion_BT], axis=1)

    trained_PNT = rollouts.completion_mask_PNT
    if mask_truncated:
        trained_PNT = trained_PNT & ~rollouts.truncated_PN[:, :, None]
    return Batch(
        tokens_BT=rows(prompts.tokens_PT, rollouts.tokens_PNT),
        mask_BT=rows(prompts.mask_PT, rollouts.completion_mask_PNT),
        loss_mask_BT=rows(jnp.zeros_like(prompts.mask_PT), trained_PNT),
        sampler_logprobs_BT=rows(jnp.zeros(prompts.mask_PT.shape), rollouts.sampler_logprobs_PNT),
        advantages_B=advantages_PN.reshape(-1),
    )


def train(config: Config, directory: Path, resume_command: str, profile: bool = False) -> None:
    """Runs, or goes on with, the run in `directory`.

    Raises:
      InputError: bad input, found before anything is written.
      RunError: a run that cannot go on.
    """
    task, algorithm = config.task, config.algorithm
    generation, update = generation_spec(config), update_spec(config)
    root_key = stream(config.seed, "rollouts")
    with Session(config, directory, update, resume_command, SHOWN, profile) as session:
        for step, (host_prompts, problems) in session.steps():
            rollout_key, sets_key = jax.random.split(jax.random.fold_in(root_key, step))
            prompts = shard_rows(session.mesh, host_prompts)

            dispatched = time.perf_counter()
            rollouts = generate(generation, session.state.params, prompts, rollout_key)
            session.settle()  # the previous step's numbers, while this step's rollouts are sampled
            waits = time.perf_counter()
            host_rollouts = jax.device_get(rollouts)
            sampled = time.perf_counter()

            responses = decode(task.tokenizer, host_rollouts)
            grading = grade(task, problems, responses, host_rollouts.truncated_PN)
            grades = grading.grades
            advantages_PN, diagnostics = group_advantages(algorithm.advantage, sets_key, prompts.ids_P, grades)
            batch = flatten(algorithm.truncated == "mask", prompts, rollouts, advantages_PN)
            graded = time.perf_counter()

            session.state, stats = train_step(update, session.state, batch, session.reference_params)
            num_tokens = int(host_rollouts.completion_mask_PNT.sum())
            num_prompt_tokens = int(np.sum(host_prompts.mask_PT)) * config.num_generations
            rollout_s = sampled - max(dispatched, session.settled_at)
            times = {
                "time/rollout_s": rollout_s,
                "time/rollout_wait_s": sampled - waits,
                "time/grade_s": graded - sampled,
                "throughput/rollout_tokens_per_s": num_tokens / rollout_s,
            }
            metrics = rollout_metrics(host_rollouts, grades, np.asarray(advantages_PN)) | times
            metrics |= {name: float(value) for name, value in diagnostics.items()}
            session.defer(step + 1, stats, metrics, num_tokens + num_prompt_tokens)
            session.write_samples(
                step + 1,
                [
                    {"prompt": problems[0].prompt, "response": text, "reward": float(reward), "cluster": int(cluster)}
                    for text, reward, cluster in zip(
                        responses[0], grades.rewards_PN[0], grades.clusters_PN[0], strict=True
                    )
                ],
            )
            if grading.failures:
                session.say(f"step {step + 1}: {len(grading.failures)} grading calls failed: {grading.failures[0]}")


def main(arguments: Sequence[str]) -> None:
    """The command."""
    start("polyepo_jax.train", Config, train, arguments, __doc__)


if __name__ == "__main__":
    run_command(main)
