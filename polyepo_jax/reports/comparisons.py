"""A method's estimates over its seeds, and its paired differences to the base."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from polyepo_jax.intervals import bootstrap
from polyepo_jax.reports.differences import Method
from polyepo_jax.reports.estimates import COUNTS, NO_PROBLEMS, Problems
from polyepo_jax.reports.runs import Run


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with the ends of its interval, NaN where there is none."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Differences:
    """Of a method's estimates less the base's, by name; intervals are over the problems that both were given.

    num_problems: how many those are.
    """

    num_problems: int
    estimates: Mapping[str, Estimate]


def estimates_of(method: Method, benchmark: str) -> dict[str, Estimate]:
    """A method's numbers on a benchmark: of one run with its intervals, of several the mean with their range.

    What not all of the runs have is left out.
    """
    found = [run.benchmarks[benchmark] for run in method.evaluated(benchmark)]
    if len(found) == 1:
        nothing = (np.nan, np.nan)
        return {
            name: Estimate(value, *found[0].intervals.get(name, nothing)) for name, value in found[0].values.items()
        }
    common = [name for name in (found[0].values if found else ()) if all(name in one.values for one in found)]
    values = {name: [one.values[name] for one in found] for name in common}
    return {name: Estimate(float(np.mean(of)), min(of), max(of)) for name, of in values.items()}


def _mean_over_seeds(runs: Sequence[Run], benchmark: str) -> Problems:
    """Each problem's numbers, means over the runs; of the problems that all of them hold."""
    all_problems = [run.benchmarks[benchmark].problems for run in runs]
    if not all_problems:
        return NO_PROBLEMS
    known = [dict(zip(problems.ids, problems.prompts, strict=True)) for problems in all_problems]
    ids = [i for i, prompt in known[0].items() if all(other.get(i) == prompt for other in known)]
    rows = [{i: row for row, i in enumerate(problems.ids)} for problems in all_problems]
    names = [name for name in all_problems[0].values if all(name in problems.values for problems in all_problems)]
    if not ids:
        return NO_PROBLEMS
    values = {
        name: np.mean([p.values[name][[at[i] for i in ids]] for p, at in zip(all_problems, rows, strict=True)], axis=0)
        for name in names
    }
    return Problems(tuple(ids), tuple(known[0][i] for i in ids), values)


def same_num_samples(methods: Sequence[Method], benchmark: str) -> bool:
    """Whether counts of distinct answers can be compared: more samples find more answers."""
    return len({run.benchmarks[benchmark].num_samples for m in methods for run in m.evaluated(benchmark)}) <= 1


def paired_differences(method: Method, base: Method, benchmark: str) -> Differences | None:
    """A method less the base on each problem, averaged; None where they have no problem in common.

    Problems are the same if their id and prompt are. Counts are left out if the numbers of samples differ. A number
    that is undefined for a problem of either leaves that problem out.
    """
    ours, theirs = (_mean_over_seeds(m.evaluated(benchmark), benchmark) for m in (method, base))
    prompts = dict(zip(theirs.ids, theirs.prompts, strict=True))
    at = {i: row for row, i in enumerate(theirs.ids)}
    pairs = [
        (row, at[i])
        for row, (i, prompt) in enumerate(zip(ours.ids, ours.prompts, strict=True))
        if prompts.get(i) == prompt
    ]
    names = [
        name
        for name in ours.values
        if name in theirs.values
        and (name.partition("/")[0] not in COUNTS or same_num_samples([method, base], benchmark))
    ]
    if not pairs or not names:
        return None
    rows, base_rows = (np.array(side) for side in zip(*pairs, strict=True))
    differences_PK = np.stack([ours.values[name][rows] - theirs.values[name][base_rows] for name in names], axis=1)
    defined = ~np.all(np.isnan(differences_PK), axis=0)
    differences_PK, names = differences_PK[:, defined], [n for n, d in zip(names, defined, strict=True) if d]
    ends_K2 = bootstrap(differences_PK)
    means_K = np.nanmean(differences_PK, axis=0) if names else []
    return Differences(
        len(pairs),
        {
            name: Estimate(float(mean), float(low), float(high))
            for name, mean, (low, high) in zip(names, means_K, ends_K2, strict=True)
        },
    )
