"""The generations of a few problems from each run, read from files too large to hold."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from polyepo_jax.reports.differences import Method
from polyepo_jax.reports.json_files import has_problem, number, read_lines
from polyepo_jax.reports.runs import Run
from polyepo_jax.reports.visible import Excerpt, excerpt, visible

DEGENERATE = -1  # as in eval_samples.jsonl
_PROBLEMS, _PROBLEMS_OF_EACH = 3, 2  # of a benchmark alone, of each of several
_MOST_PROBLEMS = 8
MOST_COLUMNS = 6
_SAMPLES = 6
_LONGEST = 500  # characters
_LONGEST_STRIP = 24  # clusters
_LETTERED = 0.05  # of a strip

Key = tuple[str, int]  # benchmark and id


@dataclasses.dataclass(frozen=True)
class Generation:
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
    shown: tuple[Generation, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """A problem with a column for each run; absent: labels of runs that do not have it."""

    benchmark: str
    id: int
    prompt: Excerpt
    columns: tuple[Column, ...]
    absent: tuple[str, ...]


def _problems_in(path: Path, notes: list[str]) -> Iterator[tuple[Key, list[dict[str, Any]]]]:
    """The lines of each problem, which stand together."""
    key: Key | None = None
    rows: list[dict[str, Any]] = []
    for row in read_lines(path, notes, has_problem):
        if key != (row["benchmark"], row["id"]):
            if key is not None:
                yield key, rows
            key, rows = (row["benchmark"], row["id"]), []
        rows.append(row)
    if key is not None:
        yield key, rows


def _first_problems(run: Run, names: Sequence[str], notes: list[str]) -> dict[Key, list[dict[str, Any]]]:
    """The first few problems of each benchmark; the file is read no further than needed."""
    each = _PROBLEMS if len(names) <= 1 else _PROBLEMS_OF_EACH
    found: dict[Key, list[dict[str, Any]]] = {}
    counts: collections.Counter[str] = collections.Counter()
    assert run.samples is not None
    for (name, id_), rows in _problems_in(run.samples, notes):
        if counts[name] < each:
            found[name, id_] = rows
            counts[name] += 1
        wanted = names or [*counts]
        if len(found) >= _MOST_PROBLEMS or all(counts[other] >= each for other in wanted):
            break
    return found


def _these_problems(run: Run, keys: Sequence[Key], notes: list[str]) -> dict[Key, list[dict[str, Any]]]:
    """Those of the problems that the run has; the file is read no further than needed."""
    found: dict[Key, list[dict[str, Any]]] = {}
    assert run.samples is not None
    for key, rows in _problems_in(run.samples, notes):
        if key in keys:
            found[key] = rows
            if len(found) == len(keys):
                break
    return found


def letter(i: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    return (letter(i // 26 - 1) if i >= 26 else "") + chr(ord("A") + i % 26)


def _cluster(row: dict[str, Any]) -> int | None:
    cluster = row.get("cluster")
    return cluster if isinstance(cluster, int) else None


def _verdicts(row: dict[str, Any]) -> tuple[str, ...]:
    reward = number(row.get("reward"))
    words = ["not graded" if reward != reward else "correct" if reward > 0 else "incorrect"]
    if _cluster(row) == DEGENERATE:
        words.append("degenerate")
    if row.get("truncated") is True:
        words.append("truncated")
    return tuple(words)


def _column(label: str, rows: Sequence[dict[str, Any]]) -> Column:
    sizes: collections.Counter[int | None] = collections.Counter()
    for row in rows:
        cluster = _cluster(row)
        if cluster is not None and cluster != DEGENERATE:
            sizes[cluster] += 1
    order = {cluster: i for i, (cluster, _) in enumerate(sizes.most_common())}
    verdicts = collections.Counter(word for row in rows for word in _verdicts(row))
    counts = [
        f"{verdicts[word]:,} {word}" for word in ("correct", "incorrect", "degenerate", "not graded") if verdicts[word]
    ]
    clusters = [
        (letter(i) if sizes[cluster] >= _LETTERED * sizes.total() else "", i, sizes[cluster])
        for cluster, i in order.items()
    ]

    def generation(row: dict[str, Any]) -> Generation:
        response, length, at = row.get("response"), row.get("length"), order.get(_cluster(row))
        return Generation(
            excerpt(response if isinstance(response, str) else "", _LONGEST),
            "" if at is None else letter(at),
            at or 0,
            _verdicts(row),
            length if isinstance(length, int) else None,
        )

    return Column(
        label,
        (f"{len(rows):,} samples", *counts, f"{len(sizes):,} cluster{'' if len(sizes) == 1 else 's'}"),
        tuple(clusters[:_LONGEST_STRIP]),
        len(clusters) - len(clusters[:_LONGEST_STRIP]),
        tuple(generation(row) for row in rows[:_SAMPLES]),
    )


def side_by_side(methods: Sequence[Method], notes: list[str]) -> list[Row]:
    """The same first few problems from one run of each of the first methods, with its first few samples of each.

    Args:
      notes: what of the files could not be read is added.
    """
    firsts = {method.label: next((run for run in method.runs if run.samples), None) for method in methods}
    runs = dict([(label, run) for label, run in firsts.items() if run is not None][:MOST_COLUMNS])
    found: dict[str, dict[Key, list[dict[str, Any]]]] = {}
    keys: list[Key] = []
    for label, run in runs.items():
        names = [*run.benchmarks]
        found[label] = _these_problems(run, keys, notes) if keys else _first_problems(run, names, notes)
        keys = keys or [*found[label]]
    rows = []
    for key in keys:
        having = [label for label in runs if key in found[label]]
        prompt = found[having[0]][key][0].get("prompt")
        rows.append(
            Row(
                visible(key[0]),
                key[1],
                excerpt(prompt if isinstance(prompt, str) else "", _LONGEST),
                tuple(_column(label, found[label][key]) for label in having),
                tuple(label for label in runs if label not in having),
            )
        )
    return rows
