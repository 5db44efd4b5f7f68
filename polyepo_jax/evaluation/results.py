"""The files of an evaluation: its summary, its problems, its generations."""

import contextlib
import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

from polyepo_jax.evaluation.sampling import Outcome
from polyepo_jax.evaluation.writing import writing
from polyepo_jax.types import Problem

# Bytes from which on generations are compressed.
_LARGE = 32 * 2**20


class Results:
    """eval.json, eval_problems.jsonl and eval_samples.jsonl, or eval_samples.jsonl.gz if that is large.

    They take the place of older ones by `finish`, once all of them are on the disk; else nothing is left of them. Use
    as a context manager. Whatever cannot be written is a RunError.

    Args:
      directory: of the result. stem: "eval" for the test split.
    """

    def __init__(self, directory: Path, stem: str):
        self._directory = directory
        self._summary = directory / f"{stem}.json"
        self._problems, self._samples = (directory / f"{stem}_{kind}.jsonl" for kind in ("problems", "samples"))
        self._compressed = self._samples.with_suffix(".jsonl.gz")
        with contextlib.ExitStack() as stack, writing(directory):
            stack.callback(self._clear)
            self._files = [
                stack.enter_context(_temporary(path).open("w", encoding="utf-8"))
                for path in (self._problems, self._samples)
            ]
            self._stack = stack.pop_all()

    def add(self, benchmark: str, problem: Problem, outcome: Outcome) -> None:
        """Another problem; only its generations, where some could not be graded."""
        head = {"benchmark": benchmark, "id": problem.id, "prompt": problem.prompt}
        with writing(self._directory):
            if outcome.description is not None:
                self._write(0, head | outcome.description)
            for generation in outcome.samples:
                self._write(1, head | generation)

    def _write(self, file: int, row: dict[str, Any]) -> None:
        self._files[file].write(json.dumps(row, allow_nan=False) + "\n")

    def finish(self, summary: dict[str, Any]) -> str:
        """Everything is there.

        Args:
          summary: for eval.json, the last to be replaced.

        Returns:
          The name of the file of generations in the other form, of which there is none any more.
        """
        with writing(self._directory):
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
            samples, other = self._samples, self._compressed
            if _temporary(samples).stat().st_size >= _LARGE:
                with _temporary(samples).open("rb") as plain, _temporary(other).open("wb") as target:
                    with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=6) as packed:
                        shutil.copyfileobj(plain, packed, 2**20)
                    target.flush()
                    os.fsync(target.fileno())
                samples, other = other, samples
            with _temporary(self._summary).open("w") as file:
                file.write(json.dumps(summary, indent=2, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            for path in (samples, self._problems, self._summary):
                os.replace(_temporary(path), path)
            other.unlink(missing_ok=True)
            return other.name

    def _clear(self) -> None:
        for path in (self._problems, self._samples, self._compressed, self._summary):
            _temporary(path).unlink(missing_ok=True)

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
