"""What a step trains on: sampled prompts with their grades, and the advantages that follow.

Of several processes each has graded the prompts whose rows are on its devices; here all learn all grades.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from polyepo_jax.grading import Grader, Grading
from polyepo_jax.grading import join as join_gradings
from polyepo_jax.pods import collectives
from polyepo_jax.sets import SIGNAL_THRESHOLD, group_advantages
from polyepo_jax.sharding import shard_rows
from polyepo_jax.training.batch import Groups
from polyepo_jax.training.data import PromptBatch
from polyepo_jax.training.metrics import Completions, join, rollout_metrics
from polyepo_jax.training.rollouts import DrawSpec, InFlight, Own
from polyepo_jax.training.samples import Excerpt, excerpts, sample_rows
from polyepo_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Draw:
    """One batch of prompts, sampled and graded.

    groups: on the devices. completions, grading, advantages_PN: of all of them, on the host of every process.
    diagnostics: what the advantage says of its groups.
    samples: rows of samples.jsonl; none where they are not wanted.
    num_steps: as of `rollouts.Sampled`.
    times: metrics.
    """

    groups: Groups
    completions: Completions
    grading: Grading
    advantages_PN: np.ndarray
    diagnostics: dict[str, Array]
    samples: list[dict[str, Any]]
    num_steps: int
    times: dict[str, float]


def collect(
    spec: DrawSpec, grader: Grader, in_flight: InFlight, step_key: Array, index: int = 0, wants_samples: bool = False
) -> Draw:
    """Waits for the grades of what was sampled, and weighs it.

    Args:
      step_key, index: as of `rollouts.sample`.
      wants_samples: keep generations of some prompts.

    Raises:
      GradingStopped: grading cannot go on.
      Interrupted: the run is asked to end.
    """
    began = time.perf_counter()
    sampled, own = in_flight.sampled, in_flight.own
    prompts = shard_rows(spec.mesh, sampled.batch.prompts)
    texts = _texts(spec, sampled.batch, own) if wants_samples else {}
    completions, grading, texts = _everywhere(own, grader.collect(own.submitted), texts)
    graded = time.perf_counter()

    sets_key = jax.random.fold_in(step_key, 2 * index + 1)
    advantages_PN, diagnostics = group_advantages(spec.advantage, sets_key, prompts.ids_P, grading.grades)
    host_advantages_PN = collectives.to_host(advantages_PN)
    times = {"time/grade_s": graded - began, "time/advantage_s": time.perf_counter() - graded}
    if grader.has_judge:
        times["judge/exposed_s"] = graded - began
    samples = []
    if wants_samples:
        samples = _samples(spec, sampled.batch, texts, completions, grading, host_advantages_PN)
    return Draw(
        groups=Groups(prompts, sampled.rollouts, advantages_PN),
        completions=completions,
        grading=grading,
        advantages_PN=host_advantages_PN,
        diagnostics=diagnostics,
        samples=samples,
        num_steps=sampled.num_steps,
        times=sampled.times | times,
    )


def _texts(spec: DrawSpec, batch: PromptBatch, own: Own) -> dict[int, list[Excerpt]]:
    """Of the prompts whose generations are kept, by row, those that this process has."""
    num_generations = spec.generation.num_generations
    kept = set(spec.samples.rows(len(batch.problems), num_generations)) & set(own.rows)
    count = spec.samples.num_generations(num_generations)
    texts = [text for row in sorted(kept) for text in own.responses[own.rows.index(row)][:count]]
    cut = excerpts(texts, spec.samples.num_bytes)
    return {row: cut[index * count : (index + 1) * count] for index, row in enumerate(sorted(kept))}


def _samples(
    spec: DrawSpec,
    batch: PromptBatch,
    texts: Mapping[int, Sequence[Excerpt]],
    completions: Completions,
    grading: Grading,
    advantages_PN: np.ndarray,
) -> list[dict[str, Any]]:
    """The generations that are kept, the texts by row, with their grades."""
    responses = [texts[row] for row in sorted(texts)]
    return sample_rows(spec.samples, batch.problems, responses, completions, grading.grades, advantages_PN)


def _everywhere(
    own: Own, gradings: Sequence[Grading], texts: Mapping[int, Sequence[Excerpt]]
) -> tuple[Completions, Grading, dict[int, list[Excerpt]]]:
    """Completions and grades of all prompts, in their order, and the texts of some by row, from those of each process's
    own."""
    columns = dataclasses.astuple(own.completions)
    told = [
        [[column[i].tolist() for column in columns], grading.to_json(), texts.get(row)]
        for i, (row, grading) in enumerate(zip(own.rows, gradings, strict=True))
    ]
    measured, graded, read = zip(*collectives.gather_rows(own.rows, told), strict=True)
    return (
        Completions(*map(np.array, zip(*measured, strict=True))),
        join_gradings([Grading.from_json(value) for value in graded]),
        {row: [Excerpt(*text) for text in of_row] for row, of_row in enumerate(read) if of_row is not None},
    )


def trains_on_nothing(draws: Sequence[Draw]) -> bool:
    """Whether every advantage is 0, up to rounding; a NaN is not, for it must be seen."""
    return all(bool(np.all(np.abs(d.advantages_PN) < SIGNAL_THRESHOLD)) for d in draws)


def summarize(draws: Sequence[Draw]) -> dict[str, float]:
    """Metrics of all groups that a step drew, also of those that it did not train on."""
    times = {name: sum(d.times[name] for d in draws) for name in draws[0].times}
    completions = join([d.completions for d in draws])
    grading = join_gradings([d.grading for d in draws])
    metrics = rollout_metrics(completions, grading.grades, np.concatenate([d.advantages_PN for d in draws]))
    metrics |= grading.metrics() | times
    for name in draws[0].diagnostics:
        defined = [value for d in draws if not math.isnan(value := float(d.diagnostics[name]))]
        metrics[name] = sum(defined) / len(defined) if defined else math.nan
    num_tokens = int(np.sum(completions.lengths_PN))
    return metrics | {"throughput/rollout_tokens_per_s": num_tokens / times["time/rollout_s"]}
