"""The generations of a few problems from each run, read from files too large to hold."""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from polyepo_jax.errors import InputError
from polyepo_jax.generations import DEGENERATE, Generation, read_generations
from polyepo_jax.reports.differences import Method
from polyepo_jax.reports.runs import Run
from polyepo_jax.reports.visible import Excerpt, excerpt, visible

_PROBLEMS, _PROBLEMS_OF_EACH = 3, 2  # of a benchmark alone, of each of several; of many, one
_MOST_PROBLEMS = 8
MOST_COLUMNS = 6
_SAMPLES = 6
_LONGEST = 500  # characters
_LINES_NAMED = 3  # of a damaged file
_LONGEST_STRIP = 24  # clusters
_LETTERED = 0.05  # of a strip

Key = tuple[str, int]  # benchmark, made visible as its name is in `Run`, and id


@dataclasses.dataclass(frozen=True)
class Shown:
    """cluster: its letter, "" where it has none. hue: number of the letter. verdicts: words, in order."""

    excerpt: Excerpt
    cluster: str
    hue: int
    verdicts: tuple[str, ...]
    length: int | None


@dataclasses.dataclass(frozen=True)
class Column:
    """One run's samples of a problem.

    counts: of all its samples, a few words each. clusters: letter, hue, size, from the largest; no letter where it is
    too small to be written on. shown: the first few.
    """

    label: str
    counts: tuple[str, ...]
    clusters: tuple[tuple[str, int, int], ...]
    more_clusters: int
    shown: tuple[Shown, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """A problem with a column for each run; absent: labels of runs that do not have it."""

    benchmark: str
    id: int
    prompt: Excerpt
    columns: tuple[Column, ...]
    absent: tuple[str, ...]


def _problems_in(path: Path, notes: list[str]) -> Iterator[tuple[Key, list[Generation]]]:
    """The generations of each problem, which stand together; none of what does not say which problem it is of."""
    try:
        of_problems = itertools.groupby(
            read_generations(path, notes.append, most_named=_LINES_NAMED), lambda row: (row.benchmark, row.id)
        )
        for (benchmark, id_), rows in of_problems:
            if benchmark is not None and id_ is not None:
                yield (visible(benchmark), id_), list(rows)
    except InputError as error:
        notes.append(str(error))


def _problems_of(run: Run, chosen: Sequence[Key], each: int, notes: list[str]) -> dict[Key, list[Generation]]:
    """The chosen problems that a run has, and the first few of each benchmark of which none was chosen.

    The file is read no further than needed.
    """
    assert run.samples is not None
    known, own = {name for name, _ in chosen}, set(run.benchmarks)
    wanted = {key for key in chosen if not own or key[0] in own}
    found: dict[Key, list[Generation]] = {}
    counts: collections.Counter[str] = collections.Counter()
    for key, rows in _problems_in(run.samples, notes):
        name, room = key[0], len(chosen) + counts.total() < _MOST_PROBLEMS
        if key in chosen:
            found[key] = rows
        elif name not in known and key not in found and counts[name] < each and room:
            found[key] = rows
            counts[name] += 1
        full = len(chosen) + counts.total() >= _MOST_PROBLEMS
        enough = all(counts[other] >= each for other in (own or {*counts}) - known)
        if wanted <= found.keys() and (full or enough):
            break
    return found


def letter(i: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    return (letter(i // 26 - 1) if i >= 26 else "") + chr(ord("A") + i % 26)


def _verdicts(row: Generation) -> tuple[str, ...]:
    words = ["not graded" if row.reward is None else "correct" if row.reward > 0 else "incorrect"]
    if row.cluster == DEGENERATE:
        words.append("degenerate")
    if row.truncated:
        words.append("truncated")
    return tuple(words)


def _column(label: str, rows: Sequence[Generation]) -> Column:
    sizes: collections.Counter[int | None] = collections.Counter(
        row.cluster for row in rows if row.cluster not in (None, DEGENERATE)
    )
    order = {cluster: i for i, (cluster, _) in enumerate(sizes.most_common())}
    verdicts = collections.Counter(word for row in rows for word in _verdicts(row))
    counts = [
        f"{verdicts[word]:,} {word}" for word in ("correct", "incorrect", "degenerate", "not graded") if verdicts[word]
    ]
    clusters = [
        (letter(i) if sizes[cluster] >= _LETTERED * sizes.total() else "", i, sizes[cluster])
        for cluster, i in order.items()
    ]

    def shown(row: Generation) -> Shown:
        at = order.get(row.cluster)
        cluster = "" if at is None else letter(at)
        return Shown(excerpt(row.response, _LONGEST), cluster, at or 0, _verdicts(row), row.length)

    return Column(
        label,
        (f"{len(rows):,} samples", *counts, f"{len(sizes):,} cluster{'' if len(sizes) == 1 else 's'}"),
        tuple(clusters[:_LONGEST_STRIP]),
        len(clusters) - len(clusters[:_LONGEST_STRIP]),
        tuple(map(shown, rows[:_SAMPLES])),
    )


def side_by_side(methods: Sequence[Method], notes: list[str]) -> list[Row]:
    """The same few problems from one run of each of the first methods, with its first few samples of each.

    They are the first ones of each benchmark in the first of these runs that has it.

    Args:
      notes: what of the files could not be read is added.
    """
    firsts = {method.label: next((run for run in method.runs if run.samples), None) for method in methods}
    runs = dict([(label, run) for label, run in firsts.items() if run is not None][:MOST_COLUMNS])
    num_benchmarks = len({name for run in runs.values() for name in run.benchmarks})
    each = _PROBLEMS if num_benchmarks <= 1 else max(1, min(_PROBLEMS_OF_EACH, _MOST_PROBLEMS // num_benchmarks))
    found: dict[str, dict[Key, list[Generation]]] = {}
    keys: list[Key] = []
    for label, run in runs.items():
        found[label] = _problems_of(run, keys, each, notes)
        keys += [key for key in found[label] if key not in keys]
    rows = []
    for key in keys:
        having = [label for label in runs if key in found[label]]
        prompt = found[having[0]][key][0].prompt
        rows.append(
            Row(
                *key,
                excerpt(prompt, _LONGEST),
                tuple(_column(label, found[label][key]) for label in having),
                tuple(label for label in runs if label not in having),
            )
        )
    return rows
