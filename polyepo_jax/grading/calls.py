"""Calls of judges and verifiers, the user's own code too: what they return is checked, what they raise is a failure."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from polyepo_jax.errors import GradeFailure
from polyepo_jax.judges.judge import Clusters
from polyepo_jax.rewards.verdict import Verdict
from polyepo_jax.types import Problem

_MAX_LINE = 600  # characters of a message on a failure


def to_failure(error: BaseException) -> GradeFailure:
    if isinstance(error, GradeFailure):
        return error
    return GradeFailure("exception", f"{type(error).__name__}: {error}")


def call_judge(cluster: Callable, problem: Problem, responses: Sequence[str]) -> Clusters | GradeFailure:
    try:
        result = cluster(problem, responses)
        result = result if isinstance(result, Clusters) else Clusters(result)
        return dataclasses.replace(result, ids=_checked_ids(result.ids, len(responses)))
    except (Exception, SystemExit) as error:  # the user's code, too
        return to_failure(error)


def judge_that_returns(result: Clusters | GradeFailure) -> Callable:
    """A judge of one group whose result is there."""

    def cluster(problem: Problem, responses: Sequence[str]) -> Clusters:
        if isinstance(result, GradeFailure):
            raise result
        return result

    return cluster


def one_line(message: str) -> str:
    """One line that a terminal can take."""
    line = " ".join(message.split())
    return line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]} ..."


def checked_verdict(verdict: float | Verdict) -> Verdict:
    verdict = verdict if isinstance(verdict, Verdict) else Verdict(verdict)
    if not math.isfinite(verdict.reward) or abs(verdict.reward) > np.finfo(np.float32).max:
        raise ValueError(f"the reward must be finite in float32, got {verdict.reward}")
    return verdict


def _checked_ids(ids: Sequence[int], num_responses: int) -> tuple[int, ...]:
    ids_N = np.asarray(ids)
    if ids_N.shape != (num_responses,) or not np.issubdtype(ids_N.dtype, np.integer):
        raise ValueError(f"expected {num_responses} integer cluster ids, got {ids!r:.200}")
    info = np.iinfo(np.int32)
    if np.any((ids_N < info.min) | (ids_N > info.max)):
        raise ValueError("cluster ids must fit int32")
    return tuple(ids_N.tolist())
