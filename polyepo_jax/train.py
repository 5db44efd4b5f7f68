"""Set reinforcement learning: python -m polyepo_jax.train --config configs/.../....py [--run-dir DIR]

Prompts become rollouts, rollouts get grades, grades become advantages, advantages become an update. The same
command again resumes. Every config field can be overridden as --section.field value.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polyepo_jax.commands.start import start
from polyepo_jax.config import Config
from polyepo_jax.config.specs import generation_spec, stream, update_spec
from polyepo_jax.errors import InputError, Interrupted, run_command
from polyepo_jax.grading import Grader, Grading, GradingStopped, Submitted, decode, join
from polyepo_jax.judges.judge import Surroundings
from polyepo_jax.pods import collectives
from polyepo_jax.runs.metrics import Completions, completions_of, rollout_metrics
from polyepo_jax.runs.session import Session
from polyepo_jax.runs.startup import check_judge
from polyepo_jax.sampling import generate_in_waves, until_stopped
from polyepo_jax.sets import check_advantage, group_advantages, has_signal
from polyepo_jax.sharding import own_rows, shard_rows
from polyepo_jax.training.data import PromptBatch
from polyepo_jax.training.update import train_step
from polyepo_jax.types import Array, Batch, Prompts, Rollouts

SHOWN = {
    "rewards/mean": ("reward", ".3f"),
    "clusters/distinct_correct": ("distinct correct", ".2f"),
    "throughput/rollout_tokens_per_s": ("tokens/s", ",.0f"),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Groups:
    """P prompts, the N generations of each, and the advantages of these; on the devices."""

    prompts: Prompts
    rollouts: Rollouts
    advantages_PN: Array


@jax.jit
def keep_informative(kept: Groups, new: Groups) -> Groups:
    """P of two times P groups, in their order: those that carry signal, then the first others; no prompt's twice."""
    repeated_P = jnp.any(
        (new.prompts.ids_P[:, None] == kept.prompts.ids_P[None, :]) & has_signal(kept.advantages_PN)[None, :], axis=1
    )
    lacks_signal = jnp.concatenate(
        [~has_signal(kept.advantages_PN), ~has_signal(new.advantages_PN) | repeated_P], dtype=bool
    )
    chosen_P = jnp.sort(jnp.argsort(lacks_signal, stable=True)[: repeated_P.size])
    return jax.tree.map(lambda first, second: jnp.concatenate([first, second])[chosen_P], kept, new)


def num_informative(groups: Groups) -> int:
    """How many groups carry signal."""
    return int(jnp.sum(has_signal(groups.advantages_PN)))


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


@dataclasses.dataclass(frozen=True)
class Draw:
    """One batch of prompts, sampled and graded.

    groups: on the devices. completions, grading, advantages_PN: of all of them, on the host of every process.
    diagnostics: what the advantage says of its groups.
    samples: the first prompt's generations, for samples.jsonl; none where they are not wanted.
    times: metrics.
    """

    groups: Groups
    completions: Completions
    grading: Grading
    advantages_PN: np.ndarray
    diagnostics: dict[str, Array]
    samples: list[dict[str, Any]]
    times: dict[str, float]


def _join(parts: Sequence[Any]) -> Any:
    """Structs of successive prompts, all on the devices or all on the host, in one."""
    if len(parts) == 1:
        return parts[0]
    on_host = isinstance(jax.tree.leaves(parts[0])[0], np.ndarray)
    return jax.tree.map(lambda *x: (np if on_host else jnp).concatenate(x), *parts)


def _everywhere(rows: Sequence[int], completions: Completions, gradings: Sequence[Grading]) -> tuple[Any, Grading]:
    """Completions and grades of all prompts, in their order, from those of each process's own."""
    own = [
        [[column[i].tolist() for column in dataclasses.astuple(completions)], grading.to_json()]
        for i, grading in enumerate(gradings)
    ]
    measured, graded = zip(*collectives.gather_rows(rows, own), strict=True)
    return Completions(*map(np.array, zip(*measured, strict=True))), join([Grading.from_json(g) for g in graded])


def draw(config: Config, session: Session, grader: Grader, batch: PromptBatch, step_key: Array, index: int) -> Draw:
    """Rollouts of a step's batch of prompts, their grades and advantages; settles the previous step meanwhile.

    Each wave of prompts is graded while the next ones are sampled; of several processes each grades those whose rows
    are on its devices.

    index: of the batch within the step, so that each has its own random numbers.

    Raises:
      GradingStopped: grading cannot go on.
      Interrupted: the run is asked to end.
    """
    rollout_key, sets_key = (jax.random.fold_in(step_key, 2 * index + i) for i in range(2))
    prompts = shard_rows(session.mesh, batch.prompts)
    dispatched = time.perf_counter()
    spec, params = generation_spec(config), session.state.params
    waves = generate_in_waves(spec, params, batch.prompts, rollout_key, session.mesh, config.sampling.max_rows)
    session.settle()  # the previous step's numbers, while this step's rollouts are sampled

    parts: list[Rollouts] = []
    completions: list[Completions] = []
    rows: list[int] = []  # of the batch, that are this process's
    responses: list[list[str]] = []
    submitted: list[Submitted] = []
    num_sampled = 0
    waited = 0.0
    for wave in until_stopped(waves, session.mesh, lambda: session.stop_requested):
        waits = time.perf_counter()
        indices, on_host = own_rows(wave)
        sampled = time.perf_counter()
        waited += sampled - waits
        own = (num_sampled + indices).tolist()
        num_sampled += len(wave.truncated_PN)
        texts = decode(config.task.tokenizer, on_host)
        submitted += grader.submit([batch.problems[row] for row in own], texts, np.asarray(on_host.truncated_PN))
        parts.append(wave)
        completions.append(completions_of(on_host))
        responses += texts
        rows += own
    rollouts = _join(parts)
    all_completions, grading = _everywhere(rows, _join(completions), grader.collect(submitted))
    graded = time.perf_counter()

    advantage = config.algorithm.advantage
    advantages_PN, diagnostics = group_advantages(advantage, sets_key, prompts.ids_P, grading.grades)
    host_advantages_PN = collectives.to_host(advantages_PN)
    times = {
        "time/rollout_s": sampled - max(dispatched, session.settled_at),
        "time/rollout_wait_s": waited,
        "time/grade_s": graded - sampled,
        "time/advantage_s": time.perf_counter() - graded,
    }
    if config.judge.clusterer is not None:
        times["judge/exposed_s"] = graded - sampled
    samples = []
    if index == 0 and session.wants_samples():
        first = responses[rows.index(0)] if 0 in rows else None
        texts_N = next(texts for texts in collectives.gather(first) if texts is not None)
        columns = texts_N, grading.grades.rewards_PN[0], grading.grades.clusters_PN[0]
        samples = [
            {"prompt": batch.problems[0].prompt, "response": text, "reward": float(reward), "cluster": int(cluster)}
            for text, reward, cluster in zip(*columns, strict=True)
        ]
    return Draw(
        groups=Groups(prompts, rollouts, advantages_PN),
        completions=all_completions,
        grading=grading,
        advantages_PN=host_advantages_PN,
        diagnostics=diagnostics,
        samples=samples,
        times=times,
    )


def summarize(draws: Sequence[Draw]) -> dict[str, float]:
    """Metrics of all groups that a step drew, also of those that it did not train on."""
    times = {name: sum(d.times[name] for d in draws) for name in draws[0].times}
    completions = _join([d.completions for d in draws])
    grading = join([d.grading for d in draws])
    metrics = rollout_metrics(completions, grading.grades, np.concatenate([d.advantages_PN for d in draws]))
    metrics |= grading.metrics() | times
    for name in draws[0].diagnostics:
        defined = [value for d in draws if not math.isnan(value := float(d.diagnostics[name]))]
        metrics[name] = sum(defined) / len(defined) if defined else math.nan
    num_tokens = int(np.sum(completions.lengths_PN))
    return metrics | {"throughput/rollout_tokens_per_s": num_tokens / times["time/rollout_s"]}


def train(config: Config, directory: Path, resume_command: str, profile: bool = False) -> bool:
    """Runs, or goes on with, the run in `directory`.

    Returns:
      Whether it came to its end, and was not stopped before.

    Raises:
      InputError: bad input, found before anything is written.
      RunError: a run that cannot go on.
    """
    algorithm, update = config.algorithm, update_spec(config)
    try:
        check_advantage(algorithm.advantage, config.num_generations)
    except ValueError as error:
        raise InputError(f"algorithm.advantage: {error}") from error
    root_key = stream(config.seed, "rollouts")
    check_judge(config.judge, config.num_generations)
    with (
        Session(config, directory, update, resume_command, SHOWN, profile) as session,
        Grader(
            config.task, config.judge, Surroundings(directory, session.mesh), lambda: session.stop_requested
        ) as grader,
    ):
        for step, batch in session.steps():
            step_key = jax.random.fold_in(root_key, step)
            try:
                draws = [draw(config, session, grader, batch, step_key, 0)]
                groups = draws[0].groups
                while len(draws) < algorithm.max_prompt_batches and num_informative(groups) < config.prompts_per_step:
                    session.raise_if_stopped("further prompts were to be drawn")
                    draws.append(draw(config, session, grader, session.next_prompts(), step_key, len(draws)))
                    groups = keep_informative(groups, draws[-1].groups)
            except GradingStopped as stopped:
                raise session.give_up_step(str(stopped)) from stopped
            except Interrupted as interrupted:
                session.stop_before_step(str(interrupted))
                return False

            counts = {}
            if algorithm.max_prompt_batches > 1:
                # Asked before the update is dispatched, which every later question to the devices would wait for.
                counts["dynamic_sampling/prompt_batches"] = float(len(draws))
                counts["dynamic_sampling/informative_frac"] = num_informative(groups) / config.prompts_per_step
            rows = flatten(algorithm.truncated == "mask", groups.prompts, groups.rollouts, groups.advantages_PN)
            rows = shard_rows(session.mesh, rows)
            session.ask_whether_to_stop()
            session.state, stats = train_step(update, session.state, rows, session.reference_params)
            session.defer(step + 1, stats, summarize(draws) | counts)
            session.write_samples(step + 1, draws[0].samples)
            failures = [line for d in draws for line in d.grading.failures]
            if failures:
                session.say(f"step {step + 1}: {len(failures)} grading calls failed: {failures[0]}")
        return session.complete


def main(arguments: Sequence[str]) -> None:
    """The command."""
    start("polyepo_jax.train", Config, train, arguments, __doc__)


if __name__ == "__main__":
    run_command(main)
