"""A benchmark in numbers: means over its problems, and how far they can be trusted."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyepo_jax.intervals import bootstrap

# Of a problem, but not averaged over problems.
_OWN = ("num_samples", "num_correct")
# Curves whose later points only some problems have: those with so many correct samples.
_PARTIAL = ("rarefied_correct",)


def _paths(problems: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Names of the numbers, (name,) or (name, k), in order; of a curve the points that all problems have."""
    found: list[tuple[str, ...]] = []
    for name, value in problems[0].items():
        if not isinstance(value, Mapping):
            found += [] if name in _OWN else [(name,)]
            continue
        keys = dict.fromkeys(key for problem in problems for key in problem[name])
        there = [key for key in keys if name in _PARTIAL or all(key in problem[name] for problem in problems)]
        found += [(name, key) for key in sorted(there, key=int)]
    return found


def _number(problem: Mapping[str, Any], path: tuple[str, ...]) -> float:
    value: Any = problem
    for key in path:
        value = value.get(key)
    return np.nan if value is None else value


def _nested(paths: Sequence[tuple[str, ...]], values: Sequence[Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for (name, *key), value in zip(paths, values, strict=True):
        if key:
            nested.setdefault(name, {})[key[0]] = value
        else:
            nested[name] = value
    return nested


def summarize(problems: Sequence[Mapping[str, Any]], with_intervals: bool = True) -> dict[str, Any]:
    """One benchmark's entry in eval.json.

    Args:
      problems: each as of `describe`, all with the same names; there may be more of them, numbers or curves.

    Returns:
      num_prompts; the mean over problems of each of their numbers, None where no problem has one, and of each point of
      their curves that all problems have; of rarefied_correct each point that some have, and rarefied_problems, how
      many have it; "intervals", under the same names the ends [low, high] of 95 % bootstrap intervals over problems,
      None where fewer than two problems have the number.

    Raises:
      ValueError: no problem.
    """
    if not problems:
        raise ValueError("expected at least 1 problem, got none")
    paths = _paths(problems)
    values_PK = np.array([[_number(problem, path) for path in paths] for problem in problems], np.float64)
    counts_K = np.sum(~np.isnan(values_PK), axis=0)
    sums_K = np.nansum(values_PK, axis=0)
    means = [float(total / count) if count else None for total, count in zip(sums_K, counts_K, strict=True)]
    summary = {"num_prompts": len(problems)} | _nested(paths, means)
    rarefied = [(path[1], int(count)) for path, count in zip(paths, counts_K, strict=True) if path[0] in _PARTIAL]
    if "rarefied_correct" in problems[0]:
        summary = summary | {
            "rarefied_correct": summary.get("rarefied_correct", {}),
            "rarefied_problems": dict(rarefied),
        }
    if not with_intervals:
        return summary
    ends = [None if np.isnan(low) else [float(low), float(high)] for low, high in bootstrap(values_PK)]
    return summary | {"intervals": _nested(paths, ends)}
