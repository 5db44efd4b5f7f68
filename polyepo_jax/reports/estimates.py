"""What an evaluation found on a benchmark: means over problems, their intervals, and each problem's own numbers."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from polyepo_jax.intervals import bootstrap
from polyepo_jax.reports.json_files import number
from polyepo_jax.reports.visible import one_line

SCALARS = (
    *("coverage", "distinct", "distinct_correct", "distinct_correct_if_solved", "distinct_incorrect"),
    *("degenerate_frac", "truncated_frac", "identical_pairs_frac", "first_divergence", "mean_length"),
)
CURVES = ("pass_at_k", "majority_at_k", "vote_share_at_k", "hidden_at_k", "rarefied_correct", "branching")
# They grow with the number of samples, so they compare only among equally many.
COUNTS = frozenset(
    {"coverage", "distinct", "distinct_correct", "distinct_correct_if_solved", "distinct_incorrect", "branching"}
)
# Of evaluations from before they were written.
NEWER = ("distinct_incorrect", "distinct_correct_if_solved", "rarefied_correct", "branching")


@dataclasses.dataclass(frozen=True)
class Problems:
    """Each problem's own numbers.

    ids, prompts: of P problems, in order.
    values: float64[P] under the names of `Benchmark`, NaN where undefined.
    """

    ids: tuple[int, ...]
    prompts: tuple[str, ...]
    values: Mapping[str, np.ndarray]


NO_PROBLEMS = Problems((), (), {})


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark of one run. A number of a curve is named after both, as "pass_at_k/4"; undefined ones are absent.

    num_prompts: problems, 0 where unknown. num_samples: of each.
    high_variance_above: estimates at larger k vary much from evaluation to evaluation.
    values: means over problems. intervals: 95 %, lower and upper end.
    rarefied_problems: how many problems have at least s correct samples, by s.
    problems: `NO_PROBLEMS` where the run does not hold them.
    """

    num_prompts: int
    num_samples: int
    high_variance_above: int
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    rarefied_problems: Mapping[int, int]
    problems: Problems


def curve(values: Mapping[str, Any], name: str) -> dict[int, Any]:
    """The points of a curve by k, in order."""
    points = {int(key.partition("/")[2]): value for key, value in values.items() if key.startswith(f"{name}/")}
    return dict(sorted(points.items()))


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0


def _flat(entry: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The entry under flat names, and the names whose value is of another kind than expected."""
    flat, strange = {}, []
    for name in SCALARS:
        if isinstance(entry.get(name), dict):
            strange.append(name)
        elif name in entry:
            flat[name] = entry[name]
    for name in CURVES:
        points = entry.get(name, {})
        if isinstance(points, dict) and all(map(_is_count, points)):
            flat |= {f"{name}/{int(k)}": value for k, value in points.items()}
        elif points is not None:
            strange.append(name)
    return flat, strange


def _numbers(entry: Mapping[str, Any], where: str, notes: list[str]) -> dict[str, float]:
    """The defined numbers of an entry under flat names; what is neither a number nor null gets a note."""
    flat, strange = _flat(entry)
    strange += [name for name, value in flat.items() if value is not None and not isinstance(value, int | float)]
    for name in strange:
        got = one_line(repr(entry.get(name.partition("/")[0])), 40)
        notes.append(f"{where}: expected numbers as {name}, got {got}; it is left out")
    values = {name: number(value) for name, value in flat.items()}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _intervals(entry: Any) -> dict[str, tuple[float, float]]:
    flat, _ = _flat(entry) if isinstance(entry, dict) else ({}, [])
    pairs = {name: pair for name, pair in flat.items() if isinstance(pair, list) and len(pair) == 2}
    ends = {name: (number(low), number(high)) for name, (low, high) in pairs.items()}
    return {name: (low, high) for name, (low, high) in ends.items() if low <= high}


def problems_of(rows: list[dict[str, Any]]) -> Problems:
    """Of lines of eval_problems.jsonl that belong to one benchmark; a repeated problem counts once."""
    rows = list({row["id"]: row for row in rows}.values())
    entries = [{name: number(value) for name, value in _flat(row)[0].items()} for row in rows]
    names = dict.fromkeys(name for entry in entries for name in entry)
    return Problems(
        ids=tuple(row["id"] for row in rows),
        prompts=tuple(str(row.get("prompt", "")) for row in rows),
        values={name: np.array([entry.get(name, math.nan) for entry in entries]) for name in names},
    )


def _computed(problems: Problems, names: list[str]) -> dict[str, tuple[float, float]]:
    """Intervals of the means over problems, of an evaluation that did not write any."""
    names = [name for name in names if name in problems.values]
    if not names:
        return {}
    ends_K2 = bootstrap(np.stack([problems.values[name] for name in names], axis=1))
    return {name: (low, high) for name, (low, high) in zip(names, ends_K2.tolist(), strict=True) if low <= high}


def num_failed(entry: Any) -> int:
    """Problems that an entry of eval.json is not of, for a generation of theirs could not be graded."""
    count = number(entry.get("num_failed")) if isinstance(entry, dict) else 0.0
    return int(count) if count >= 1 else 0


def is_ungraded(entry: Any) -> bool:
    """Whether none of the benchmark's problems could be graded, so that there are no numbers."""
    return num_failed(entry) > 0 and number(entry.get("num_prompts")) == 0


def benchmark_of(
    entry: Any, num_samples: int, high_variance_above: Any, problems: Problems, where: str, notes: list[str]
) -> Benchmark | None:
    """One entry of eval.json with its problems; None, with a note, where it holds no number.

    Args:
      high_variance_above: of eval.json; half the samples where it is not an integer.
      where: names the entry in notes.
    """
    values = _numbers(entry, where, notes) if isinstance(entry, dict) else {}
    if not values:
        notes.append(f"{where}: holds no number; it is left out")
        return None
    rarefied = entry.get("rarefied_problems")
    num_prompts = number(entry.get("num_prompts"))
    given = _intervals(entry.get("intervals"))
    return Benchmark(
        num_prompts=0 if math.isnan(num_prompts) else int(num_prompts),
        num_samples=num_samples,
        high_variance_above=high_variance_above if isinstance(high_variance_above, int) else num_samples // 2,
        values=values,
        intervals=given or _computed(problems, list(values)),
        rarefied_problems={
            int(s): int(number(count))
            for s, count in (rarefied.items() if isinstance(rarefied, dict) else ())
            if _is_count(s) and number(count) >= 0
        },
        problems=problems,
    )


def agree(benchmark: Benchmark) -> bool:
    """Whether pass@1 is the mean of the problems' own, so that they are of one evaluation; True if unknown."""
    own, mean = benchmark.problems.values.get("pass_at_k/1"), benchmark.values.get("pass_at_k/1")
    return own is None or mean is None or not abs(float(own.mean()) - mean) > 1e-6
