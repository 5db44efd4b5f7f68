"""What is kept of a run of the study: one small JSON file, from which every table and figure is made."""

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.runs import Run, file_name
from polyepo_jax.evaluation.problems import any_of, powers_of_two
from polyepo_jax.intervals import bootstrap

# Of evaluations during training, by the names of metrics.jsonl without "eval/".
CURVES = ("pass_at_1", "distinct_correct", "distinct", "coverage")
MEANS = ("majority_at_k", "vote_share_at_k")


@dataclasses.dataclass(frozen=True)
class Result:
    """A run on one split.

    config, overrides: the file and the command line that say all settings of the run. steps: that it trained, those
    of the run that it starts from included.
    seconds: of training, on one core, evaluations and saving left out. evaluation_seconds: of the command that ended
    the evaluation, its start and compilations included; None where it was not timed.
    num_correct, num_hidden, distinct_correct: of each problem's num_samples samples; num_hidden is None where the task
    has no hidden requirement. mean_length: tokens of a sample. means: {name: {k: mean over problems}}, of MEANS.
    curves: {name: values} at the steps `curves["step"]`, on the validation split. train_pass_at_1: mean reward of the
    last 20 steps, None for a warm start.
    """

    task: str
    method: str
    seed: int
    split: str
    config: str
    overrides: tuple[str, ...]
    steps: int
    seconds: float
    evaluation_seconds: float | None
    num_samples: int
    num_correct: tuple[int, ...]
    num_hidden: tuple[int, ...] | None
    distinct_correct: tuple[int, ...]
    mean_length: float
    means: dict[str, dict[str, float]]
    curves: dict[str, list[float]]
    train_pass_at_1: float | None

    def problems(self, name: str) -> np.ndarray:
        """float64[P], each problem's number: "distinct_correct", or "pass_at_k/8" and "hidden_at_k/8" for any k."""
        if name == "distinct_correct":
            return np.array(self.distinct_correct, np.float64)
        kind, _, k = name.partition("/")
        counts = {"pass_at_k": self.num_correct, "hidden_at_k": self.num_hidden}[kind]
        if counts is None:
            return np.full(len(self.num_correct), math.nan)
        return np.array([any_of(self.num_samples, count, int(k)) for count in counts])


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_run(directory: Path, run: Run, split: str, evaluation_seconds: float) -> Result:
    """The result of a run that was evaluated on the split."""
    stem = "eval" if split == "test" else "eval_validation"
    evaluated = json.loads((directory / f"{stem}.json").read_text())
    summary = next(iter(evaluated["benchmarks"].values()))
    problems = _rows(directory / f"{stem}_problems.jsonl")
    steps = _rows(directory / "metrics.jsonl")
    hidden = [row.get("hidden_at_k", {}).get("1") for row in problems]
    at_evaluations = [row for row in steps if "eval/pass_at_1" in row]
    rewards = [row["rewards/mean"] for row in steps[-20:] if "rewards/mean" in row]
    num_samples = evaluated["num_samples"]
    return Result(
        task=run.task,
        method=run.method,
        seed=run.seed,
        split=split,
        config=run.config,
        overrides=run.overrides,
        steps=run.earlier_steps + evaluated["checkpoint_step"],
        seconds=round(sum(row["time/step_s"] for row in steps if row.get("time/step_s"))),
        evaluation_seconds=round(evaluation_seconds, 1),
        num_samples=num_samples,
        num_correct=tuple(row["num_correct"] for row in problems),
        num_hidden=None if None in hidden else tuple(round(value * num_samples) for value in hidden),
        distinct_correct=tuple(round(row["distinct_correct"]) for row in problems),
        mean_length=round(summary["mean_length"], 3),
        means={name: {k: round(value, 5) for k, value in summary[name].items()} for name in MEANS},
        curves={"step": [run.earlier_steps + row["step"] for row in at_evaluations]}
        | {name: [round(row[f"eval/{name}"], 4) for row in at_evaluations] for name in CURVES},
        train_pass_at_1=round(statistics.fmean(rewards), 4) if rewards else None,
    )


def path_of(folder: Path, run: Run | Result, split: str) -> Path:
    """Of the file that holds the result, whether it is there or not."""
    return folder / run.task / f"{file_name(run.method)}-seed{run.seed}-{split}.json"


def save(result: Result, folder: Path) -> None:
    """Writes the result where `load` finds it."""
    path = path_of(folder, result, result.split)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in dataclasses.asdict(result).items())
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    unfinished.replace(path)  # a run whose file is there is done


def load(folder: Path) -> list[Result]:
    """All results in the folder, in the order of their files' names."""
    lists = ("overrides", "num_correct", "num_hidden", "distinct_correct")
    results = []
    for path in sorted(folder.glob("*/*.json")):
        fields = json.loads(path.read_text())
        fields |= {name: tuple(fields[name]) for name in lists if fields[name] is not None}
        results.append(Result(**fields))
    return results


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds and problems, with its 95 % interval over problems, and what each seed found."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]


def estimate(results: Sequence[Result], name: str, minus: Sequence[Result] = ()) -> Estimate:
    """Of one method's runs, which differ in their seed only; of the paired difference to another method's, if given.

    A problem's number is the mean over seeds, so that the interval is of other problems, for these seeds; `seeds` shows
    how far they differ.

    Args:
      name: as of `Result.problems`.

    Raises:
      ValueError: numbers of problems or seeds that do not match.
    """
    values = {result.seed: result.problems(name) for result in results}
    if minus:
        others = {result.seed: result.problems(name) for result in minus}
        if others.keys() != values.keys():
            raise ValueError(f"expected runs of the same seeds, got {sorted(values)} and {sorted(others)}")
        values = {seed: of_problems - others[seed] for seed, of_problems in values.items()}
    mean_P = np.mean(np.stack(list(values.values())), axis=0)
    ((low, high),) = bootstrap(mean_P[:, None])
    return Estimate(float(mean_P.mean()), float(low), float(high), tuple(float(v.mean()) for v in values.values()))


def powers_of(result: Result) -> tuple[int, ...]:
    """The k at which a run is shown."""
    return powers_of_two(result.num_samples)


def mean_over_seeds(results: Sequence[Result], name: str) -> dict[int, float]:
    """One of MEANS by k."""
    ks = results[0].means[name]
    return {int(k): statistics.fmean(result.means[name][k] for result in results) for k in ks}
