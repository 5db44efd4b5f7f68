"""Sampling and grading held-out problems."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from polyepo_jax.evaluation.summaries import summarize
from polyepo_jax.grading import BY_THE_TASK, Grader, Grading, Submitted, decode, join
from polyepo_jax.pods import collectives
from polyepo_jax.sampling import GenerationSpec, generate_in_waves, own_prompts, until_stopped
from polyepo_jax.sharding import Mesh, own_rows
from polyepo_jax.tasks import Problem, Task
from polyepo_jax.training.data import to_prompts
from polyepo_jax.types import Grades


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
    stop_requested: Callable[[], bool] = lambda: False,
) -> Samples:
    """Samples `spec.num_generations` responses to each problem, `max_rows` rows at a time, and grades them meanwhile.

    Strategies are the task's own, whatever judge the run trains by: no judge reads hundreds of responses at once.

    Args:
      stop_requested: whether this process is asked to end, wherefore all of them do.

    Raises:
      Interrupted: in all processes; they are asked to end, and this is not done.
    """
    rows: list[int] = []  # of the problems, that this process grades
    truncated: list[list[bool]] = []
    submitted: list[Submitted] = []
    num_sampled = 0
    own_P = own_prompts(len(problems), spec.num_generations, max_rows, mesh)
    prompts = to_prompts(problems, task.tokenizer, max_prompt_length, own_P)
    with Grader(task, BY_THE_TASK, stop_requested=stop_requested) as grader:
        waves = generate_in_waves(spec, params, prompts, key, mesh, max_rows)
        for wave in until_stopped(waves, mesh, stop_requested):
            indices, rollouts = own_rows(wave)
            own = (num_sampled + indices).tolist()
            num_sampled += len(wave.truncated_PN)
            truncated_PN = np.asarray(rollouts.truncated_PN)
            submitted += grader.submit([problems[row] for row in own], decode(task.tokenizer, rollouts), truncated_PN)
            truncated += truncated_PN.tolist()
            rows += own
        gradings = [grading.to_json() for grading in grader.collect(submitted)]
    everywhere = collectives.gather_rows(rows, list(zip(gradings, truncated, strict=True)))
    grading = join([Grading.from_json(value) for value, _ in everywhere])
    return Samples(grading.grades, np.array([truncated_M for _, truncated_M in everywhere]), grading.failures)
