"""Rollouts in, grades out: decode, verify, cluster. On the host."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from polyepo_jax.tasks import Problem, Task
from polyepo_jax.tokenizer import Tokenizer
from polyepo_jax.types import Grades, Rollouts


def decode(tokenizer: Tokenizer, rollouts: Rollouts) -> list[list[str]]:
    """The text of each generation, its end token included: lists [P][N]."""
    tokens_PNT, mask_PNT = np.asarray(rollouts.tokens_PNT), np.asarray(rollouts.completion_mask_PNT)
    return [
        [tokenizer.decode(row[mask].tolist()) for row, mask in zip(rows, masks, strict=True)]
        for rows, masks in zip(tokens_PNT, mask_PNT, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Grading:
    """Grades with what went wrong on our side.

    grades: NumPy arrays.
    failures: one line for each failed verifier call and each failed clusterer call.
    """

    grades: Grades
    failures: tuple[str, ...]


def grade(
    task: Task, problems: Sequence[Problem], responses: Sequence[Sequence[str]], truncated_PN: np.ndarray
) -> Grading:
    """Rewards and clusters of N responses to each problem.

    A truncated response has reward 0. A failure of ours (an exception in verifier or clusterer, a reward that is
    not finite, a wrong number of cluster ids) makes the generation, or the group, invalid; no grade is made up.
    """
    rewards_PN = np.zeros(truncated_PN.shape, np.float32)
    clusters_PN = np.zeros(truncated_PN.shape, np.int32)
    valid_PN = np.ones(truncated_PN.shape, bool)
    failures = []
    for p, (problem, texts) in enumerate(zip(problems, responses, strict=True)):
        try:
            clusters_PN[p] = _checked_clusters(task.cluster(problem, texts), len(texts))
        except Exception as error:  # the user's code: whatever it raises is a failed grade, not the run's end
            valid_PN[p] = False
            failures.append(f"clustering problem {problem.id}: {type(error).__name__}: {error}")
        for n, text in enumerate(texts):
            if truncated_PN[p, n]:
                continue
            try:
                rewards_PN[p, n] = _checked_reward(task.verify(problem, text))
            except Exception as error:
                valid_PN[p, n] = False
                failures.append(f"verifying problem {problem.id}: {type(error).__name__}: {error}")
    return Grading(Grades(rewards_PN, clusters_PN, valid_PN), tuple(failures))  # type: ignore[arg-type]


def _checked_reward(reward: float) -> float:
    if not math.isfinite(reward) or abs(reward) > np.finfo(np.float32).max:
        raise ValueError(f"the reward must be finite in float32, got {reward}")
    return reward


def _checked_clusters(ids: Sequence[int], num_responses: int) -> np.ndarray:
    ids_N = np.asarray(ids)
    if ids_N.shape != (num_responses,) or not np.issubdtype(ids_N.dtype, np.integer):
        raise ValueError(f"expected {num_responses} integer cluster ids, got {ids!r:.200}")
    info = np.iinfo(np.int32)
    if np.any((ids_N < info.min) | (ids_N > info.max)):
        raise ValueError("cluster ids must fit int32")
    return ids_N
