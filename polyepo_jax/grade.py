r"""Grades saved generations: python -m polyepo_jax.grade responses.jsonl --out graded.jsonl

Every row {"problem", "answer", "responses": [...]} is verified, clustered and weighed. The same rows, in the same
order, are written with "rewards", "clusters", "valid" and "advantages", and a table shows pass@k and majority@k.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table

from polyepo_jax.command_line import parse_command_line
from polyepo_jax.errors import InputError, RunError, run_command, warn_on_stderr
from polyepo_jax.evaluation import MAX_SAMPLES, describe, summarize
from polyepo_jax.grading import Grading, JudgeConfig, add_counts, join
from polyepo_jax.sets import Polychromic, SetAdvantage, check_advantage, group_advantages, has_signal
from polyepo_jax.shared_by_commands.saved_responses import (
    Saved,
    SavedOptions,
    SavedRow,
    Unverified,
    check_output,
    grade_groups,
    said_of_failures,
)
from polyepo_jax.types import Grades

_SET_SIZE = 4  # as in the paper


@dataclasses.dataclass(frozen=True)
class Arguments(SavedOptions):
    """Verify, cluster and weigh saved generations.

    Attributes:
      out: where the graded rows go.
      set_size: generations of a set, for the polychromic objective; 4 if not given, or all but one of a row that has
        no more than 4. A --config brings its own.
      require_distinct: give sets without two distinct strategies nothing, as in the paper's algorithm.
    """

    out: Path = Path("graded.jsonl")
    set_size: int | None = None
    require_distinct: bool = False


def main(arguments: Sequence[str]) -> None:
    """The command."""
    options = parse_command_line(Arguments, arguments, "python -m polyepo_jax.grade")
    with options.explained():
        _grade(options)


def _grade(options: Arguments) -> None:
    saved = options.read()
    advantage_of = _check(saved, options)
    groups = [(row.problem, row.responses) for row in saved.rows]
    gradings = grade_groups(saved.task, saved.judge, groups, options.out.absolute().parent)
    advantages = weigh(advantage_of, gradings)
    _write(options.out, saved.rows, gradings, advantages)
    failed = said_of_failures(gradings)
    if not any(np.any(grading.grades.valid_PN) for grading in gradings):
        raise RunError(f"none of the responses could be graded, as {options.out} says of each: {failed}")
    if failed:
        warn_on_stderr(options.explain(failed))
    # Who has the most votes is a question of answers, whatever the strategies are.
    by_answer = gradings
    if saved.judge.clusterer is not None:
        answers = grade_groups(Unverified(saved.task), JudgeConfig(), groups, label="comparing answers")
        by_answer = [_with_clusters(*both) for both in zip(gradings, answers, strict=True)]
    _print(str(options.responses), gradings, by_answer, advantages)


def _check(saved: Saved, options: Arguments) -> dict[int, Any]:
    """The advantage by which rows of each number of responses are weighed; none for a lone response.

    Raises:
      InputError: what would fail only once all is graded.
    """
    check_output(options.out, options.responses)
    if saved.advantage is not None and (options.set_size is not None or options.require_distinct):
        raise InputError("--set-size and --require-distinct are for use without --config: change its advantage instead")
    first_of_size: dict[int, int] = {}
    for row in saved.rows:
        first_of_size.setdefault(len(row.responses), row.problem.id)
    advantage_of: dict[int, Any] = {}
    for size, line in sorted(first_of_size.items()):
        try:
            if size > MAX_SAMPLES:
                raise ValueError(f"at most {MAX_SAMPLES} can be summarized; divide the row into several")
            if size > 1 and saved.advantage is not None:
                check_advantage(saved.advantage, size)  # type: ignore[arg-type]
                advantage_of[size] = saved.advantage
            elif size > 1:
                set_size = min(_SET_SIZE, size - 1) if options.set_size is None else options.set_size
                advantage_of[size] = SetAdvantage(Polychromic(set_size, options.require_distinct))
                advantage_of[size].check(size)
        except ValueError as error:
            raise InputError(f"{options.responses}, line {line}: {size} responses: {error}") from error
    return advantage_of


def weigh(advantage_of: Mapping[int, Any], gradings: Sequence[Grading]) -> list[np.ndarray]:
    """The advantages [N] of each row's responses, by their number; rows of equally many are weighed together."""
    advantages = [np.zeros(np.size(grading.grades.rewards_PN), np.float32) for grading in gradings]
    by_size: dict[int, list[int]] = {}
    for index, grading in enumerate(gradings):
        by_size.setdefault(np.size(grading.grades.rewards_PN), []).append(index)
    for size, advantage in advantage_of.items():
        indices = by_size[size]
        grades = join([gradings[index] for index in indices]).grades
        ids_P = np.array(indices, np.int32)
        weighed_PN, _ = group_advantages(advantage, jax.random.key(0), ids_P, grades)
        for index, weighed_N in zip(indices, np.asarray(weighed_PN), strict=True):
            advantages[index] = weighed_N
    return advantages


def _with_clusters(grading: Grading, other: Grading) -> Grading:
    """The rewards of one and the clusters of the other; valid where both are."""
    valid_PN = np.logical_and(grading.grades.valid_PN, other.grades.valid_PN)
    grades = Grades(grading.grades.rewards_PN, other.grades.clusters_PN, valid_PN)  # type: ignore[arg-type]
    return dataclasses.replace(grading, grades=grades)


def _write(path: Path, rows: Sequence[SavedRow], gradings: Sequence[Grading], advantages: Sequence[np.ndarray]) -> None:
    """All of the file or nothing.

    Raises:
      RunError: advantages that JSON cannot hold, or a disk that is full.
    """
    for row, advantages_N in zip(rows, advantages, strict=True):
        if not np.all(np.isfinite(advantages_N)):
            raise RunError(
                f"line {row.problem.id}: the advantages are not finite, {advantages_N.tolist()!r:.200}: are there huge "
                "rewards, or does the config's advantage divide by 0?"
            )

    def numbers(values_N: np.ndarray) -> list[float]:
        return [float(f"{value:.7g}") for value in values_N]  # what a float32 holds

    def line(row: SavedRow, grading: Grading, advantages_N: np.ndarray) -> str:
        rewards_N, clusters_N, valid_N = (
            np.asarray(getattr(grading.grades, name))[0] for name in ("rewards_PN", "clusters_PN", "valid_PN")
        )
        graded = {"rewards": numbers(rewards_N), "clusters": clusters_N.tolist(), "valid": valid_N.tolist()}
        return json.dumps(row.content | graded | {"advantages": numbers(advantages_N)}) + "\n"

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w") as file:
            file.writelines(map(line, rows, gradings, advantages))
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"{path} could not be written ({error}): make room, or name another by --out") from error


def summary_of(gradings: Sequence[Grading]) -> dict[str, Any]:
    """`summarize` of all rows without a failure; k goes as far as the row with the fewest responses."""
    whole = [grading.grades for grading in gradings if np.all(grading.grades.valid_PN)]
    if not whole:
        return {"num_prompts": 0}
    described = [describe(np.asarray(g.rewards_PN)[0], np.asarray(g.clusters_PN)[0]) for g in whole]
    return summarize(described, with_intervals=False)


def _print(
    name: str, gradings: Sequence[Grading], by_answer: Sequence[Grading], advantages: Sequence[np.ndarray]
) -> None:
    console, strategies, answers = rich.console.Console(), summary_of(gradings), summary_of(by_answer)
    num_left_out = len(gradings) - strategies["num_prompts"]
    console.print(f"{name}: {len(gradings)} problems", markup=False, highlight=False, soft_wrap=True)
    if "pass_at_k" in strategies and "pass_at_k" in answers:
        table = rich.table.Table()
        for heading in ("k", "pass@k", "majority@k"):
            table.add_column(heading, justify="right")
        for k, passed in strategies["pass_at_k"].items():
            table.add_row(k, f"{passed:.3f}", f"{answers['majority_at_k'][k]:.3f}")
        console.print(table)
        console.print(
            f"coverage {strategies['coverage']:.3f}, distinct strategies {strategies['distinct']:.2f}, distinct "
            f"correct {strategies['distinct_correct']:.2f}, degenerate {strategies['degenerate_frac']:.1%}",
            highlight=False,
        )
    with_signal = np.mean([has_signal(advantages_N) for advantages_N in advantages])
    counts = {name: n for name, n in add_counts(gradings).items() if n}
    console.print(
        f"groups that carry signal {with_signal:.1%}, problems left out for a failure {num_left_out}", highlight=False
    )
    if counts:
        console.print(", ".join(f"{name} {count:g}" for name, count in counts.items()), highlight=False)


if __name__ == "__main__":
    run_command(main)
