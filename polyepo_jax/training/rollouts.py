"""A batch of prompts is sampled, and its prompts are handed to the grader.

A prompt is graded as soon as its generations have ended, while others are being sampled. Of several processes each
grades the prompts whose rows are on its devices.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from polyepo_jax.grading import Grader, Submitted, decode
from polyepo_jax.model.tokenizer import Tokenizer
from polyepo_jax.pods import collectives
from polyepo_jax.sampling import GenerationSpec, Rollout, until_stopped
from polyepo_jax.sets import Advantage
from polyepo_jax.sharding import Mesh, row_owners, row_sharding
from polyepo_jax.training.data import PromptBatch
from polyepo_jax.training.metrics import Completions, completions_of, join
from polyepo_jax.training.samples import SamplesSpec
from polyepo_jax.types import Array, Rollouts


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
class Sampled:
    """A batch of prompts and its rollouts, all that has to be kept of them until they are trained on.

    rollouts: on the devices.
    num_steps: that the policy which sampled them had been through.
    times: metrics.
    """

    batch: PromptBatch
    rollouts: Rollouts
    num_steps: int
    times: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Own:
    """What this process has of a batch's rollouts, while they are being graded.

    rows: of the batch, that are this process's; responses, completions, submitted: of these.
    """

    rows: list[int]
    responses: list[list[str]]
    completions: Completions
    submitted: list[Submitted]


@dataclasses.dataclass(frozen=True)
class InFlight:
    """A batch that was sampled and is being graded."""

    sampled: Sampled
    own: Own


def sample(
    spec: DrawSpec,
    grader: Grader,
    params: Any,
    batch: PromptBatch,
    step_key: Array,
    index: int = 0,
    num_steps: int = 0,
    on_dispatch: Callable[[], float] = lambda: 0.0,
    stop_requested: Callable[[], bool] = lambda: False,
) -> InFlight:
    """Rollouts of a batch of prompts, on their way to their grades.

    Args:
      step_key: of the step that trains on them.
      index: of the batch within the step, so that each has its own random numbers.
      num_steps: as of Sampled.
      on_dispatch: called once the devices are at work; returns the time.perf_counter() before which their work was
        something else's.
      stop_requested: whether the run is asked to end.

    Raises:
      Interrupted: the run is asked to end.
    """
    rollout_key = jax.random.fold_in(step_key, 2 * index)
    dispatched = time.perf_counter()
    rollout = Rollout(spec.generation, params, batch.prompts, rollout_key, spec.mesh, spec.max_rows)
    began = max(dispatched, on_dispatch())
    parts: list[Own] = []
    waited_s, waits = 0.0, time.perf_counter()
    for ended in until_stopped(rollout.finished(), spec.mesh, stop_requested):
        waited_s += time.perf_counter() - waits
        parts.append(_submit(spec, grader, batch, ended.prompts, ended.rollouts))
        waits = time.perf_counter()
    times = {"time/rollout_s": waits - began, "time/rollout_wait_s": waited_s}
    return InFlight(Sampled(batch, rollout.rollouts(), num_steps, times), _joined(parts))


def submit_again(spec: DrawSpec, grader: Grader, sampled: Sampled) -> InFlight:
    """Starts to grade what was sampled before the run was interrupted; all processes call this at the same point."""
    num_prompts = len(sampled.batch.problems)
    rows = np.flatnonzero(row_owners(row_sharding(spec.mesh, num_prompts), num_prompts) == jax.process_index())
    rollouts = jax.tree.map(lambda x: x[rows], collectives.to_host(sampled.rollouts))
    return InFlight(sampled, _submit(spec, grader, sampled.batch, rows.tolist(), rollouts))


def _submit(spec: DrawSpec, grader: Grader, batch: PromptBatch, rows: list[int], rollouts: Rollouts) -> Own:
    """Starts to grade rows of a batch; their rollouts are on the host."""
    texts = decode(spec.tokenizer, rollouts)
    submitted = grader.submit([batch.problems[row] for row in rows], texts, np.asarray(rollouts.truncated_PN))
    return Own(rows, texts, completions_of(rollouts), submitted)


def _joined(parts: Sequence[Own]) -> Own:
    return Own(
        [row for part in parts for row in part.rows],
        [texts for part in parts for texts in part.responses],
        join([part.completions for part in parts]),
        [submitted for part in parts for submitted in part.submitted],
    )
