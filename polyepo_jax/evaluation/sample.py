"""Sampling and grading held-out problems."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from polyepo_jax.data import to_prompts
from polyepo_jax.evaluation.summaries import summarize
from polyepo_jax.grading import decode, grade
from polyepo_jax.sampling import GenerationSpec, generate_in_waves
from polyepo_jax.sharding import Mesh
from polyepo_jax.tasks import Problem, Task
from polyepo_jax.types import Grades, Rollouts


@dataclasses.dataclass(frozen=True)
class Samples:
    """All generations of all problems, on the host.

    grades: of P problems x M samples. truncated_PM: cut at the length limit. failures: of our own grading.
    """

    grades: Grades
    truncated_PM: np.ndarray
    failures: tuple[str, ...]

    def summary(self) -> dict[str, Any] | None:
        """`summarize` of the problems all of whose generations could be graded; None if there are none."""
        graded_P = np.all(self.grades.valid_PN, axis=1)
        if not np.any(graded_P):
            return None
        rewards_PM, clusters_PM = np.asarray(self.grades.rewards_PN), np.asarray(self.grades.clusters_PN)
        return summarize(rewards_PM[graded_P], clusters_PM[graded_P], self.truncated_PM[graded_P])


def sample(
    spec: GenerationSpec,
    params: Any,
    task: Task,
    problems: Sequence[Problem],
    max_prompt_length: int,
    max_rows: int,
    key: jax.Array,
    mesh: Mesh,
) -> Samples:
    """Samples `spec.num_generations` responses to each problem and grades them, `max_rows` rows at a time."""
    parts: list[Grades] = []
    truncated: list[np.ndarray] = []
    failures: list[str] = []
    prompts = to_prompts(problems, task.tokenizer, max_prompt_length)
    remaining = list(problems)
    for wave in generate_in_waves(spec, params, prompts, key, mesh, max_rows):
        rollouts: Rollouts = jax.device_get(wave)
        size = len(rollouts.truncated_PN)
        chosen, remaining = remaining[:size], remaining[size:]
        responses = decode(task.tokenizer, rollouts)
        grading = grade(task, chosen, responses, np.asarray(rollouts.truncated_PN))
        parts.append(grading.grades)
        truncated.append(np.asarray(rollouts.truncated_PN))
        failures.extend(grading.failures)
    grades = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return Samples(grades, np.concatenate(truncated), tuple(failures))
