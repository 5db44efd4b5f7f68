"""The files of an evaluation, besides its summary: its problems and its generations."""

import contextlib
import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

from polyepo_jax.evaluation.sampling import Outcome
from polyepo_jax.types import Problem

# Bytes from which on generations are compressed.
_LARGE = 32 * 2**20


class Results:
    """eval_problems.jsonl and eval_samples.jsonl, or eval_samples.jsonl.gz if that is large. Use as a context manager.

    They take the place of older ones all at once, by `finish`; else nothing is left of them.

    Args:
      directory: of the result. stem: "eval" for the test split.

    Raises:
      OSError: they cannot be written.
    """

    def __init__(self, directory: Path, stem: str):
        self._targets = [directory / f"{stem}_{kind}.jsonl" for kind in ("problems", "samples")]
        self._compressed = self._targets[1].with_suffix(".jsonl.gz")
        self._temporary = [path.with_name(f".{path.name}.tmp") for path in self._targets]
        with contextlib.ExitStack() as stack:
            stack.callback(self._clear)
            self._files = [stack.enter_context(path.open("w", encoding="utf-8")) for path in self._temporary]
            self._stack = stack.pop_all()

    def add(self, benchmark: str, problem: Problem, outcome: Outcome) -> None:
        """Another problem; only its generations, where some could not be graded."""
        head = {"benchmark": benchmark, "id": problem.id, "prompt": problem.prompt}
        if outcome.description is not None:
            self._write(0, head | outcome.description)
        for generation in outcome.samples:
            self._write(1, head | generation)

    def _write(self, file: int, row: dict[str, Any]) -> None:
        self._files[file].write(json.dumps(row, allow_nan=False) + "\n")

    def finish(self) -> None:
        """Everything is there."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        problems, samples = self._temporary
        target, other = self._targets[1], self._compressed
        if samples.stat().st_size >= _LARGE:
            target, other = other, target
            compressed = samples.with_suffix(".gz.tmp")
            with samples.open("rb") as plain, gzip.open(compressed, "wb", compresslevel=6) as packed:
                shutil.copyfileobj(plain, packed, 2**20)
            os.replace(compressed, samples)
        os.replace(samples, target)
        os.replace(problems, self._targets[0])
        other.unlink(missing_ok=True)

    def _clear(self) -> None:
        for path in self._temporary:
            path.unlink(missing_ok=True)

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()
