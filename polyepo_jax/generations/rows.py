"""Rows of samples.jsonl and eval_samples.jsonl, one at a time: such a file may be larger than memory should hold."""

import dataclasses
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from polyepo_jax.errors import InputError

DEGENERATE = -1  # as of polyepo_jax.types; no import, for JAX would come with it


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation; None for what its file does not say.

    step: of training. benchmark: of an evaluation. id: of the problem. sample: its number among the prompt's.
    reward, cluster: None also where grading failed; a cluster of -1 is degenerate.
    length: tokens. characters: of the whole response, where its middle was left out.
    line: its number, from 1. row: all of it.
    """

    prompt: str
    response: str
    step: int | None
    benchmark: str | None
    id: int | None
    sample: int | None
    reward: float | None
    cluster: int | None
    advantage: float | None
    length: int | None
    truncated: bool | None
    characters: int | None
    line: int
    row: dict[str, Any]

    @property
    def group(self) -> tuple[Any, ...]:
        """Equal for the generations of one prompt in one step."""
        return self.step, self.benchmark, self.prompt if self.id is None else self.id


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("prompt", "response", "benchmark"), (str,)),
    **dict.fromkeys(("step", "id", "sample", "cluster", "length", "characters"), (int,)),
    **dict.fromkeys(("reward", "advantage"), (int, float)),
    "truncated": (bool,),
}
_WORDS = {(str,): "a text", (int,): "an integer", (int, float): "a number", (bool,): "true or false"}


def training_file(directory: Path) -> Path:
    """The samples.jsonl of a run directory.

    Raises:
      InputError: there is no such directory or file.
    """
    path = _existing(directory) / "samples.jsonl"
    if not path.is_file():
        raise InputError(
            f"{directory} has no samples.jsonl, which training writes with its first step; --eval reads what an "
            "evaluation sampled"
        )
    return path


def evaluated_file(directory: Path, split: str = "test") -> Path:
    """The eval_samples.jsonl of a run directory or, compressed, eval_samples.jsonl.gz; the newer of both.

    Where they are of the same time, the plain one. Of the validation split eval_validation_samples.jsonl.

    Raises:
      InputError: there is no such directory or file.
    """
    name, option = ("eval", "") if split == "test" else (f"eval_{split}", f" --split {split}")
    paths = [_existing(directory) / f"{name}_samples.jsonl{ending}" for ending in ("", ".gz")]
    found = [path for path in paths if path.is_file()]
    if not found:
        raise InputError(
            f"{directory} has no {name}_samples.jsonl or {name}_samples.jsonl.gz: run "
            f"`python -m polyepo_jax.evaluate --run-dir {directory}{option}` first"
        )
    return max(found, key=lambda path: path.stat().st_mtime_ns)  # the first of equal ones


def _existing(directory: Path) -> Path:
    if not directory.is_dir():
        what = "it is a file" if directory.exists() else "there is no such directory"
        raise InputError(f"{directory}: expected a run directory, but {what}")
    return directory


def read_generations(
    path: Path, warn: Callable[[str], None] = lambda line: None, first_line: int = 1, most_named: int = 20
) -> Iterator[Generation]:
    """The generations in a file, in its order; ".gz" is read as it is compressed.

    A last line that has not been written to its end is left out: its run goes on, or was killed.

    Args:
      warn: told of each line that is left out because it cannot be read, and of damage behind which nothing can be.
      first_line: lines before it are skipped, which is quicker than reading them.
      most_named: lines that cannot be read are named up to so many, further ones are counted.

    Raises:
      InputError: the file cannot be read at all.
    """
    num_broken = num_read = 0
    try:
        with cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            for number, line in enumerate(file, start=1):
                num_read += 1
                if number < first_line or not line.strip():
                    continue
                try:
                    generation = _parse(line, number)
                except ValueError as error:
                    if line.endswith(b"\n"):
                        num_broken += 1
                        if num_broken <= most_named:
                            warn(f"{path}, line {number} is left out: {error}")
                    continue
                yield generation
    except (OSError, EOFError, zlib.error) as error:
        if not num_read:
            raise InputError(f"{path} cannot be read: {error}") from None
        warn(f"{path} is damaged behind line {num_read}, or still being written: {error}")
    if num_broken > most_named:
        warn(f"{path}: {num_broken - most_named:,} further lines are left out")


def _parse(line: bytes, number: int) -> Generation:
    """A line; raises ValueError, of one line, where it is not as it should be."""
    try:
        row = json.loads(line.decode(), parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON at character {error.pos + 1}: {error.msg}") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {_shown(row)}")
    fields: dict[str, Any] = {name: row.get(name) for name in _KINDS}
    for name, kinds in _KINDS.items():
        value = fields[name]
        wanted = name in ("prompt", "response")  # other fields came later, or are null where they are unknown
        if (value is not None or wanted) and type(value) not in kinds:
            raise ValueError(f"expected {_WORDS[kinds]} as {name}, got {_shown(value)}")
    return Generation(**fields, line=number, row=row)


def _shown(value: Any) -> str:
    return json.dumps(value)[:40]  # escapes what is no plain character


def _refuse(word: str) -> None:
    raise ValueError(f"not valid JSON: {word} is no number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"not valid JSON: {digits[:40]} is too large a number")
    return value
