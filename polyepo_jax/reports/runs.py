"""Run directories as read from disk: everything a report may use, checked once."""

import collections
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyepo_jax.errors import InputError

LABELS = {"warm_start": "base (warm start)", "grpo": "GRPO", "grpo_div": "GRPO+DIV", "poly_epo": "Poly-EPO"}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One entry of eval.json; the curves map k to a mean over prompts."""

    num_prompts: int
    pass_at_k: dict[int, float]
    majority_at_k: dict[int, float]
    vote_share_at_k: dict[int, float]
    coverage: float
    distinct: float
    distinct_correct: float
    degenerate_frac: float
    truncated_frac: float


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory.

    label: how the run is named in tables and plots, different for each run of a report.
    kind: the directory's name, by which a method keeps its colour from report to report.
    config: config.json, {} where there is none.
    metrics: the lines of metrics.jsonl in order, () where there is none.
    checkpoint_step, num_samples, benchmarks: eval.json; the training task's held-out split comes first.
    """

    label: str
    kind: str
    config: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]
    checkpoint_step: int
    num_samples: int
    benchmarks: dict[str, Benchmark]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, where it is defined."""
        points = [(row["step"], row[name]) for row in self.metrics if _is_number(row.get(name))]
        return [step for step, _ in points], [float(value) for _, value in points]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_curve(value: Any) -> bool:
    return isinstance(value, dict) and len(value) > 0 and all(k.isdecimal() and _is_number(v) for k, v in value.items())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _parse(text: str, path: Path, first_line: int = 1) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not a JSON number")

    try:
        value = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {first_line + error.lineno - 1}: not valid JSON: {error.msg}") from None
    except ValueError as error:
        raise InputError(f"{path}, line {first_line}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}, line {first_line}: expected a JSON object, got {text.strip()[:40]}")
    return value


def _load_metrics(path: Path) -> tuple[dict[str, Any], ...]:
    rows = []
    *lines, _ = _read(path).split("\n")  # after the last line's end: nothing, or half a line of a running process
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parse(line, path, number)
        if not isinstance(row.get("step"), int):
            raise InputError(f'{path}, line {number}: expected an integer "step", got {row.get("step")!r}')
        rows.append(row)
    return tuple(rows)


def _benchmark(name: str, entry: Any, path: Path) -> Benchmark:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Benchmark):
        value: Any = entry.get(field.name) if isinstance(entry, dict) else None
        if field.type is int or field.type is float:
            if not _is_number(value):
                raise InputError(f"{path}: expected a number as {field.name} of benchmark {name!r}, got {value!r}")
            values[field.name] = value
        else:
            if not _is_curve(value):
                raise InputError(f"{path}: expected numbers by k as {field.name} of benchmark {name!r}, got {value!r}")
            values[field.name] = {int(k): float(v) for k, v in sorted(value.items(), key=lambda item: int(item[0]))}
    return Benchmark(**values)


def _load_run(directory: Path) -> Run:
    config, metrics, evaluation = (directory / name for name in ("config.json", "metrics.jsonl", "eval.json"))
    if not any(path.is_file() for path in (config, metrics, evaluation)):
        raise InputError(
            f"{directory}: expected a run directory (with config.json, metrics.jsonl and eval.json), "
            + ("found none of them" if directory.is_dir() else "there is no such directory")
        )
    if not evaluation.is_file():
        raise InputError(
            f"{directory}: no eval.json yet; run `python -m polyepo_jax.evaluate --run-dir {directory}` first"
        )
    content = _parse(_read(evaluation), evaluation)
    for key, kind in (("checkpoint_step", int), ("num_samples", int), ("benchmarks", dict)):
        if not isinstance(content.get(key), kind):
            raise InputError(f"{evaluation}: expected {key} as {kind.__name__}, got {content.get(key)!r}")
    if not content["benchmarks"]:
        raise InputError(f"{evaluation}: expected at least one benchmark, got none")
    return Run(
        label="",
        kind=directory.resolve().name,
        config=_parse(_read(config), config) if config.is_file() else {},
        metrics=_load_metrics(metrics) if metrics.is_file() else (),
        checkpoint_step=content["checkpoint_step"],
        num_samples=content["num_samples"],
        benchmarks={name: _benchmark(name, entry, evaluation) for name, entry in content["benchmarks"].items()},
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
    return labels if len(set(labels)) == len(labels) else [str(path) for path in paths]


def load_runs(directories: Sequence[Path]) -> list[Run]:
    """Reads run directories, in the order given.

    Raises:
      InputError: none or a repeated directory, one that is not a run directory or has not been evaluated, or a
        file that cannot be read or is malformed, with its line.
    """
    if not directories:
        raise InputError("expected at least one run directory, got none")
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise InputError("the same run directory is given twice; name each once")
    runs = [_load_run(directory) for directory in directories]
    return [dataclasses.replace(run, label=label) for run, label in zip(runs, _labels(directories), strict=True)]
