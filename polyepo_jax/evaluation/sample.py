"""Sampling and grading held-out problems."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from polyepo_jax.evaluation.summaries import summarize
from polyepo_jax.grading import BY_THE_TASK, Grader, Grading, Submitted, decode, join
from polyepo_jax.pods import collectives
from polyepo_jax.sampling import GenerationSpec, Rollout, own_prompts, until_stopped
from polyepo_jax.sharding import Mesh
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
    prompts = to_prompts(
        problems, task.tokenizer, max_prompt_length, own_prompts(len(problems), spec.num_generations, mesh)
    )
    with Grader(task, BY_THE_TASK, stop_requested=stop_requested) as grader:
        rollout = Rollout(spec, params, prompts, key, mesh, max_rows)
        for ended in until_stopped(rollout.finished(), mesh, stop_requested):
            truncated_PN = np.asarray(ended.rollouts.truncated_PN)
            own = [problems[row] for row in ended.prompts]
            submitted += grader.submit(own, decode(task.tokenizer, ended.rollouts), truncated_PN)
            truncated += truncated_PN.tolist()
            rows += ended.prompts
        gradings = [grading.to_json() for grading in grader.collect(submitted)]
    everywhere = collectives.gather_rows(rows, list(zip(gradings, truncated, strict=True)))
    grading = join([Grading.from_json(value) for value, _ in everywhere])
    return Samples(grading.grades, np.array([truncated_M for _, truncated_M in everywhere]), grading.failures)
