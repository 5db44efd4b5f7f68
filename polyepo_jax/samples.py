"""Reads generations in a terminal: `python -m polyepo_jax.samples RUN_DIR`.

Shows what training kept of each step, or with --eval what an evaluation sampled, by step and prompt, each generation
with its reward, cluster, advantage and length. Both can be filtered; --json writes the rows as they are.
"""

import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from polyepo_jax.command_line import parse_command_line
from polyepo_jax.errors import InputError, run_command, warn_on_stderr
from polyepo_jax.generations import (
    Generation,
    Printer,
    Selection,
    evaluated_file,
    paged,
    parse_steps,
    read_generations,
    training_file,
)
from polyepo_jax.pods import object_storage


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Shows the generations in a run directory that meet all that is asked for."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Run directory, or its URL."""
    of_evaluation: Annotated[bool, tyro.conf.arg(name="eval")] = False
    """Those of the last evaluation (eval_samples.jsonl), in place of those of training (samples.jsonl)."""
    step: str | None = None
    """Of a step, of steps such as 10:20, 10: or :20, the last one included, or of the last step: `last`."""
    benchmark: str | None = None
    """With --eval, of a benchmark."""
    split: Literal["test", "validation"] = "test"
    """With --eval, of which split's evaluation."""
    prompt: str | None = None
    """Of a problem, by its id, or of prompts that contain a text."""
    cluster: int | None = None
    """Of a cluster; -1 for degenerate ones."""
    correct: bool = False
    """With a reward above 0."""
    incorrect: bool = False
    """With a reward, but none above 0."""
    advantage: Literal["positive", "negative", "zero"] | None = None
    """With such an advantage."""
    limit: int | None = None
    """So many at most."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Write their rows as JSON lines."""

    def __post_init__(self):
        if self.correct and self.incorrect:
            raise ValueError("--correct and --incorrect exclude each other: give one, or neither for both")
        if self.of_evaluation and (self.step is not None or self.advantage is not None):
            raise ValueError("--step and --advantage are of training: leave them out, or leave out --eval")
        if not self.of_evaluation and (self.benchmark is not None or self.split != "test"):
            raise ValueError("--benchmark and --split are of an evaluation: give --eval, too")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be at least 1, got {self.limit}")


@dataclasses.dataclass(frozen=True)
class _Found:
    """What a file holds. selection: of generations. total, matching: how many. first_line: of those that match."""

    selection: Selection
    total: int
    matching: int
    first_line: int


def _selection(options: Arguments) -> Selection:
    steps: tuple[int, float] | None = None
    if options.step is not None:
        steps = (-1, -1) if options.step == "last" else parse_steps(options.step)  # none, until it is known
    return Selection(
        steps=steps,
        benchmark=options.benchmark,
        prompt=options.prompt,
        cluster=options.cluster,
        correct=True if options.correct else False if options.incorrect else None,
        advantage=options.advantage,
    )


def _find(path: Path, selection: Selection, of_last_step: bool) -> _Found:
    """Goes through the file once."""
    total = matching = first_line = 0
    last = -1
    for generation in read_generations(path, warn_on_stderr):
        total += 1
        if of_last_step and generation.step is not None and generation.step > last:
            last, matching = generation.step, 0
            selection = dataclasses.replace(selection, steps=(last, last))
        if selection.takes(generation):
            matching += 1
            first_line = generation.line if matching == 1 else first_line
    return _Found(selection, total, matching, first_line)


def _show(found: _Found, generations: Iterator[Generation], name: str, limit: int | None) -> None:
    header = f"{name}: {found.matching:,} of {found.total:,} generations match"
    if limit is not None and limit < found.matching:
        header += f", the first {limit:,} of them:"
    with paged() as console:
        printer = Printer(console)
        printer.header(header)
        for generation in generations:
            printer.print(generation)


def _write(generations: Iterator[Generation]) -> None:
    for generation in generations:
        print(json.dumps(generation.row, allow_nan=False))
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    """Raises InputError for a directory without generations, or filters that make no sense."""
    program = "python -m polyepo_jax.samples"
    options = parse_command_line(Arguments, arguments, program, config=(tyro.conf.FlagCreatePairsOff,))
    directory = object_storage.working_copy(options.run_dir)
    try:
        path = evaluated_file(directory, options.split) if options.of_evaluation else training_file(directory)
    except InputError as error:
        raise InputError(str(error).replace(str(directory), object_storage.name_of(directory))) from None
    selection, of_last_step = _selection(options), options.step == "last"
    try:
        if options.as_json and not of_last_step:
            matching = filter(selection.takes, read_generations(path, warn_on_stderr))
            _write(itertools.islice(matching, options.limit))
            return
        # Twice through the file: what it holds is said first, or which step is the last, and is not held.
        found = _find(path, selection, of_last_step)
        matching = filter(found.selection.takes, read_generations(path, first_line=found.first_line))
        # No more than were found: a run that goes on has written others.
        generations = itertools.islice(matching, min(found.matching, options.limit or found.matching))
        if options.as_json:
            _write(generations)
        else:
            _show(found, generations, f"{object_storage.name_of(directory)}/{path.name}", options.limit)
    except BrokenPipeError:
        # Whoever read has enough; neither does Python's own flush at the end complain.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    run_command(main)
