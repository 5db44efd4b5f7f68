"""A batch of prompts is drawn: rollouts, their grades, their advantages.

A prompt is graded as soon as its generations have ended, while others are being sampled. Of several processes each
grades the prompts whose rows are on its devices, and all learn all grades.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polyepo_jax.grading import Grader, Grading, Submitted, decode, join
from polyepo_jax.model.tokenizer import Tokenizer
from polyepo_jax.pods import collectives
from polyepo_jax.sampling import Finished, GenerationSpec, Rollout, until_stopped
from polyepo_jax.sets import SIGNAL_THRESHOLD, Advantage, group_advantages
from polyepo_jax.sharding import Mesh, shard_rows
from polyepo_jax.training.batch import Groups
from polyepo_jax.training.data import PromptBatch
from polyepo_jax.training.metrics import Completions, completions_of, rollout_metrics
from polyepo_jax.training.samples import Excerpt, SamplesSpec, excerpts, sample_rows
from polyepo_jax.types import Array


@dataclasses.dataclass(frozen=True)
class DrawSpec:
    """How prompts are drawn; the same in every step of a run.

    generation: how they are sampled.
    max_rows: generations sampled at a time.
    tokenizer: decodes them.
    advantage: weighs them.
    mesh: of all devices.
    samples: what is kept of them for people to read.
    """

    generation: GenerationSpec
    max_rows: int
    tokenizer: Tokenizer
    advantage: Advantage
    mesh: Mesh
    samples: SamplesSpec


@dataclasses.dataclass(frozen=True)
class Draw:
    """One batch of prompts, sampled and graded.

    groups: on the devices. completions, grading, advantages_PN: of all of them, on the host of every process.
    diagnostics: what the advantage says of its groups.
    samples: rows of samples.jsonl; none where they are not wanted.
    times: metrics.
    """

    groups: Groups
    completions: Completions
    grading: Grading
    advantages_PN: np.ndarray
    diagnostics: dict[str, Array]
    samples: list[dict[str, Any]]
    times: dict[str, float]


@dataclasses.dataclass(frozen=True)
class _Sampled:
    """What this process has of a batch's rollouts, while they are being graded.

    rows: of the batch, that are this process's; responses, completions, submitted: of these.
    waited_s: for the devices. at: time.perf_counter() when the last generation was on the host.
    """

    rows: list[int]
    responses: list[list[str]]
    completions: Completions
    submitted: list[Submitted]
    waited_s: float
    at: float


def draw(
    spec: DrawSpec,
    grader: Grader,
    params: Any,
    batch: PromptBatch,
    step_key: Array,
    index: int = 0,
    wants_samples: bool = False,
    on_dispatch: Callable[[], float] = lambda: 0.0,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Draw:
    """Rollouts of a batch of prompts, their grades and advantages.

    Args:
      step_key: of the step.
      index: of the batch within the step, so that each has its own random numbers.
      wants_samples: keep generations of some prompts.
      on_dispatch: called once the devices are at work; returns the time.perf_counter() before which their work was
        something else's.
      stop_requested: whether the run is asked to end.

    Raises:
      GradingStopped: grading cannot go on.
      Interrupted: the run is asked to end.
    """
    rollout_key, sets_key = (jax.random.fold_in(step_key, 2 * index + i) for i in range(2))
    prompts = shard_rows(spec.mesh, batch.prompts)
    dispatched = time.perf_counter()
    rollout = Rollout(spec.generation, params, batch.prompts, rollout_key, spec.mesh, spec.max_rows)
    began = max(dispatched, on_dispatch())
    sampled = _sample(spec, grader, batch, until_stopped(rollout.finished(), spec.mesh, stop_requested))
    texts = _texts(spec, batch, sampled) if wants_samples else {}
    completions, grading, texts = _everywhere(sampled, grader.collect(sampled.submitted), texts)
    graded = time.perf_counter()

    advantages_PN, diagnostics = group_advantages(spec.advantage, sets_key, prompts.ids_P, grading.grades)
    host_advantages_PN = collectives.to_host(advantages_PN)
    times = {
        "time/rollout_s": sampled.at - began,
        "time/rollout_wait_s": sampled.waited_s,
        "time/grade_s": graded - sampled.at,
        "time/advantage_s": time.perf_counter() - graded,
    }
    if grader.has_judge:
        times["judge/exposed_s"] = graded - sampled.at
    return Draw(
        groups=Groups(prompts, rollout.rollouts(), advantages_PN),
        completions=completions,
        grading=grading,
        advantages_PN=host_advantages_PN,
        diagnostics=diagnostics,
        samples=_samples(spec, batch, texts, completions, grading, host_advantages_PN) if wants_samples else [],
        times=times,
    )


def _sample(spec: DrawSpec, grader: Grader, batch: PromptBatch, finished: Iterable[Finished]) -> _Sampled:
    """All prompts that are this process's, each handed to the grader as soon as it is there."""
    completions: list[Completions] = []
    rows: list[int] = []
    responses: list[list[str]] = []
    submitted: list[Submitted] = []
    waited_s, waits = 0.0, time.perf_counter()
    for ended in finished:
        waited_s += time.perf_counter() - waits
        texts = decode(spec.tokenizer, ended.rollouts)
        problems = [batch.problems[row] for row in ended.prompts]
        submitted += grader.submit(problems, texts, np.asarray(ended.rollouts.truncated_PN))
        completions.append(completions_of(ended.rollouts))
        responses += texts
        rows += ended.prompts
        waits = time.perf_counter()
    return _Sampled(rows, responses, _join(completions), submitted, waited_s, waits)


def _texts(spec: DrawSpec, batch: PromptBatch, sampled: _Sampled) -> dict[int, list[Excerpt]]:
    """Of the prompts whose generations are kept, by row, those that this process has."""
    num_generations = spec.generation.num_generations
    kept = set(spec.samples.rows(len(batch.problems), num_generations)) & set(sampled.rows)
    count = spec.samples.num_generations(num_generations)
    texts = [text for row in sorted(kept) for text in sampled.responses[sampled.rows.index(row)][:count]]
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


def _join(parts: Sequence[Any]) -> Any:
    """Structs of successive prompts, all on the devices or all on the host, in one."""
    if len(parts) == 1:
        return parts[0]
    on_host = isinstance(jax.tree.leaves(parts[0])[0], np.ndarray)
    return jax.tree.map(lambda *x: (np if on_host else jnp).concatenate(x), *parts)


def _everywhere(
    sampled: _Sampled, gradings: Sequence[Grading], texts: Mapping[int, Sequence[Excerpt]]
) -> tuple[Completions, Grading, dict[int, list[Excerpt]]]:
    """Completions and grades of all prompts, in their order, and the texts of some by row, from those of each process's
    own."""
    columns = dataclasses.astuple(sampled.completions)
    own = [
        [[column[i].tolist() for column in columns], grading.to_json(), texts.get(row)]
        for i, (row, grading) in enumerate(zip(sampled.rows, gradings, strict=True))
    ]
    measured, graded, read = zip(*collectives.gather_rows(sampled.rows, own), strict=True)
    return (
        Completions(*map(np.array, zip(*measured, strict=True))),
        join([Grading.from_json(value) for value in graded]),
        {row: [Excerpt(*text) for text in of_row] for row, of_row in enumerate(read) if of_row is not None},
    )


def trains_on_nothing(draws: Sequence[Draw]) -> bool:
    """Whether every advantage is 0, up to rounding; a NaN is not, for it must be seen."""
    return all(bool(np.all(np.abs(d.advantages_PN) < SIGNAL_THRESHOLD)) for d in draws)


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
