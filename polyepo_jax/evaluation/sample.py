"""Sampling and grading held-out problems."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from polyepo_jax.data import to_prompts
from polyepo_jax.evaluation.summaries import summarize
from polyepo_jax.grading import decode, grade
from polyepo_jax.sampling import GenerationSpec, generate
from polyepo_jax.sharding import Mesh, replicated, shard_rows
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
    wave = max(max_rows // spec.num_generations, 1)
    wave = min(wave, len(problems))
    parts: list[Grades] = []
    truncated: list[np.ndarray] = []
    failures: list[str] = []
    key = jax.device_put(key, replicated(mesh))
    for start in range(0, len(problems), wave):
        chosen = list(problems[start : start + wave])
        # The last wave is filled up with its first problem, so that all waves share one compilation.
        padded = chosen + [chosen[0]] * (wave - len(chosen))
        prompts = shard_rows(mesh, to_prompts(padded, task.tokenizer, max_prompt_length))
        rollouts: Rollouts = jax.device_get(generate(spec, params, prompts, key))
        rollouts = jax.tree.map(lambda x: x[: len(chosen)], rollouts)  # noqa: B023
        responses = decode(task.tokenizer, rollouts)
        grading = grade(task, chosen, responses, np.asarray(rollouts.truncated_PN))
        parts.append(grading.grades)
        truncated.append(np.asarray(rollouts.truncated_PN))
        failures.extend(grading.failures)
    grades = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return Samples(grades, np.concatenate(truncated), tuple(failures))
