"""Run directories as read from disk: whatever of them can be read, and what is missing or damaged."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyepo_jax.errors import InputError
from polyepo_jax.generations import evaluated_file
from polyepo_jax.pods import object_storage
from polyepo_jax.reports.estimates import (
    NEWER,
    NO_PROBLEMS,
    Benchmark,
    agree,
    benchmark_of,
    is_ungraded,
    num_failed,
    problems_of,
)
from polyepo_jax.reports.json_files import has_problem, number, read_lines, read_object
from polyepo_jax.reports.visible import one_line, visible

LABELS = {"warm_start": "base (warm start)", "grpo": "GRPO", "grpo_div": "GRPO+DIV", "poly_epo": "Poly-EPO"}
_FILES = ("config.json", "metrics.jsonl", "eval.json")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory.

    label: how the run is named in tables and figures, different for each run of a report.
    kind: the directory's name as it is, by which a method keeps its colour from report to report.
    directory: where it was read from.
    config: config.json, {} where there is none.
    steps: of metrics.jsonl, int[S], rising. metrics: float64[S] by name, NaN where undefined, and where a step has no
      such metric, which `logged` tells apart: bool[S] by name.
    checkpoint_step: what was evaluated; None if it was no checkpoint of a run.
    sampling: of the evaluation, as eval.json has it.
    benchmarks: of eval.json; the training task's held-out split comes first.
    ungraded: those of which no problem could be graded, so that they have no numbers.
    samples: eval_samples.jsonl or the same compressed, the newer; None where there is neither.
    missing: what the directory lacks, a sentence each. damaged: what could not be read, with file and line.
    """

    label: str
    kind: str
    directory: Path
    config: Mapping[str, Any]
    steps: np.ndarray
    metrics: Mapping[str, np.ndarray]
    logged: Mapping[str, np.ndarray]
    checkpoint_step: int | None
    sampling: Mapping[str, Any]
    benchmarks: Mapping[str, Benchmark]
    ungraded: tuple[str, ...]
    samples: Path | None
    missing: tuple[str, ...]
    damaged: tuple[str, ...]

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps at which a metric was logged and its values, NaN where it is undefined; empty if it is always."""
        values = self.metrics.get(name)
        if values is None or np.all(np.isnan(values)):
            return np.array([], int), np.array([])
        return self.steps[self.logged[name]], values[self.logged[name]]

    def has_something_to_show(self) -> bool:
        return bool(self.benchmarks or self.samples or any(self.series(name)[0].size for name in self.metrics))


def _has_step(row: dict[str, Any]) -> str:
    step = row.get("step")
    there = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53
    return "" if there else f'expected an integer "step", got {one_line(repr(step), 40)}'


def _load_metrics(path: Path, notes: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Steps, values and where there are any; of a step that is there twice, the last."""
    rows = {row["step"]: row for row in read_lines(path, notes, _has_step)}
    steps = sorted(rows)
    names = dict.fromkeys(name for row in rows.values() for name in row if name != "step")
    values = {name: np.array([number(rows[step].get(name)) for step in steps]) for name in names}
    logged = {name: np.array([name in rows[step] for step in steps]) for name in names}
    return np.array(steps, int), values, logged


def _load_problems(path: Path, num_samples: int, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Lines of eval_problems.jsonl by benchmark; none, with a note, of another evaluation than eval.json."""
    found: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for row in read_lines(path, notes, has_problem):
        if row.get("num_samples") != num_samples:
            got = one_line(repr(row.get("num_samples")), 20)
            notes.append(
                f"{path}: {got} samples where eval.json has {num_samples}: it is of another evaluation, and left out"
            )
            return {}
        found[row["benchmark"]].append(row)
    return found


def _load_benchmarks(
    content: Mapping[str, Any], directory: Path, missing: list[str], damaged: list[str]
) -> dict[str, Benchmark]:
    path, num_samples, entries = directory / "eval.json", content.get("num_samples"), content.get("benchmarks")
    if not isinstance(num_samples, int) or num_samples < 1 or not isinstance(entries, dict) or not entries:
        damaged.append(f"{path}: expected num_samples and at least one benchmark; the file is left out")
        return {}
    problems_path = directory / "eval_problems.jsonl"
    by_name = _load_problems(problems_path, num_samples, damaged)
    if not problems_path.is_file():
        missing.append("no eval_problems.jsonl: no paired differences between runs")
    benchmarks = {}
    missing += [f"{name}: {_left_out(entry)}" for name, entry in entries.items() if num_failed(entry)]
    graded = {name: entry for name, entry in entries.items() if not is_ungraded(entry)}
    for name, entry in graded.items():
        problems = problems_of(by_name[name]) if name in by_name else NO_PROBLEMS
        where = f"{path}, benchmark {one_line(repr(name), 60)}"
        above = content.get("high_variance_above_k")
        benchmark = benchmark_of(entry, num_samples, above, problems, where, damaged)
        if benchmark is None:
            continue
        if 0 < len(problems.ids) != benchmark.num_prompts:
            damaged.append(f"{problems_path}: {len(problems.ids):,} of {benchmark.num_prompts:,} problems of {name}")
        elif not agree(benchmark):
            damaged.append(f"{problems_path}: other means than in eval.json on {name}: of another evaluation, left out")
            benchmark = benchmark_of(entry, num_samples, above, NO_PROBLEMS, where, [])
            assert benchmark is not None
        benchmarks[visible(name)] = benchmark
        if not benchmark.intervals:
            missing.append(f"no intervals on {visible(name)}: neither in eval.json nor from eval_problems.jsonl")
    absent = [name for name in NEWER if not any(isinstance(e, dict) and name in e for e in graded.values())]
    if graded and absent:
        missing.append(f"eval.json is of an older version, without {', '.join(absent)}: evaluate again to have them")
    return benchmarks


def _left_out(entry: Mapping[str, Any]) -> str:
    """What an entry of eval.json says of problems that could not be graded."""
    count = num_failed(entry)
    if is_ungraded(entry):
        return f"none of its {_problems(count)} could be graded, so it has no numbers; evaluate again"
    return f"{_problems(count)} left out of its numbers, because a generation could not be graded"


def _problems(count: int) -> str:
    return f"{count:,} problem{'' if count == 1 else 's'}"


def _samples_path(directory: Path) -> Path | None:
    try:
        return evaluated_file(directory)
    except InputError:
        return None


def _load_run(directory: Path) -> Run:
    missing: list[str] = []
    damaged: list[str] = []
    samples = _samples_path(directory)
    there = {name: (directory / name).is_file() for name in _FILES}
    if not any(there.values()) and samples is None:
        found = "found none of them" if directory.is_dir() else "there is no such directory"
        damaged.append(f"{directory}: expected a run directory (with {', '.join(_FILES)}), {found}")
    else:
        consequences = {
            "config.json": "its settings are not compared, and it is not taken as one of several seeds",
            "metrics.jsonl": "no curves over training",
            "eval.json": f"run `python -m polyepo_jax.evaluate --run-dir {object_storage.name_of(directory)}`",
        }
        missing += [f"no {name}: {consequences[name]}" for name in _FILES if not there[name]]
        if samples is None:
            missing.append("no eval_samples.jsonl: no generations")
    faults = len(damaged)
    content = read_object(directory / "eval.json", damaged)
    readable = there["eval.json"] and len(damaged) == faults
    benchmarks = _load_benchmarks(content, directory, missing, damaged) if readable else {}
    entries = content.get("benchmarks")
    ungraded = [name for name, entry in entries.items() if is_ungraded(entry)] if isinstance(entries, dict) else []
    steps, metrics, logged = _load_metrics(directory / "metrics.jsonl", damaged)
    step, sampling = content.get("checkpoint_step"), content.get("sampling")
    return Run(
        label="",
        kind=directory.resolve().name,
        directory=directory,
        config=read_object(directory / "config.json", damaged),
        steps=steps,
        metrics=metrics,
        logged=logged,
        checkpoint_step=step if isinstance(step, int) else None,
        sampling=sampling if isinstance(sampling, dict) else {},
        benchmarks=benchmarks,
        ungraded=tuple(map(visible, ungraded)),
        samples=samples,
        missing=tuple(map(visible, missing)),
        damaged=tuple(map(visible, damaged)),
    )


def _labels(directories: Sequence[Path]) -> list[str]:
    """Directory names, prettified; equal ones get as many parent directories as tell them apart."""
    paths = [directory.resolve() for directory in directories]
    labels = [LABELS.get(path.name, path.name) for path in paths]
    for depth in range(1, max(len(path.parts) for path in paths)):
        counts = collections.Counter(labels)
        if max(counts.values()) == 1:
            break
        for i, path in enumerate(paths):
            if counts[labels[i]] > 1:
                parents = "/".join(path.parts[max(len(path.parts) - 1 - depth, 1) : -1])
                labels[i] = f"{parents}/{LABELS.get(path.name, path.name)}"
    # A directory called like another's pretty name ("GRPO" beside "grpo") has the same parents too.
    return [*map(visible, labels if len(set(labels)) == len(labels) else map(str, paths))]


def load_runs(directories: Sequence[Path]) -> list[Run]:
    """Reads run directories, in the order given. What cannot be read is noted in them.

    Raises:
      InputError: none or a repeated directory, or not one that holds anything to show.
    """
    if not directories:
        raise InputError("expected at least one run directory, got none")
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise InputError("the same run directory is given twice; name each once")
    runs = [_load_run(directory) for directory in directories]
    if not any(run.has_something_to_show() for run in runs):
        nothing = [visible(f"{run.directory}: nothing logged yet") for run in runs]
        reasons = [next(iter([*run.damaged, *run.missing]), what) for run, what in zip(runs, nothing, strict=True)]
        raise InputError("; ".join(dict.fromkeys(reasons)))
    return [dataclasses.replace(run, label=label) for run, label in zip(runs, _labels(directories), strict=True)]
