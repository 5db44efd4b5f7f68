"""JSON as runs leave it behind: what is damaged is noted, with its line, and the rest is kept."""

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from polyepo_jax.reports.visible import one_line

_LINES_NAMED = 3  # of a damaged file


def number(value: Any) -> float:
    """A JSON value as a number; NaN for null, what is infinite, and what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        value = float(value)
    except OverflowError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _parse(text: bytes) -> tuple[dict[str, Any], str]:
    """The object, and what is wrong with it, "" if nothing is."""
    try:
        value = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError:
        return {}, "not UTF-8"
    except json.JSONDecodeError as error:
        return {}, f"not valid JSON: {error.msg}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return {}, f"not readable JSON: {error}"
    if not isinstance(value, dict):
        return {}, f"expected a JSON object, got {one_line(repr(value), 40)}"
    return value, ""


def read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    """The object that a file holds; {} where there is no file, and, with a note, where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        value, fault = _parse(path.read_bytes())
    except OSError as error:
        value, fault = {}, f"cannot be read ({error.strerror})"
    if fault:
        notes.append(f"{path}: {fault}; the file is left out")
    return value


def no_fault(_: dict[str, Any]) -> str:
    return ""


def has_problem(row: dict[str, Any]) -> str:
    """Whether a line says which problem it belongs to."""
    there = isinstance(row.get("benchmark"), str) and isinstance(row.get("id"), int)
    return "" if there else 'expected "benchmark" and "id"'


def read_lines(
    path: Path, notes: list[str], fault_of: Callable[[dict[str, Any]], str] = no_fault
) -> Iterator[dict[str, Any]]:
    """The object of each line, one at a time; nothing where there is no file.

    A line that cannot be read is left out with a note, as is what follows the place where a file breaks off.

    Args:
      path: compressed if it ends in .gz.
      fault_of: what is wrong with an object, "" if nothing is; it is left out if there is.
      notes: the first few damaged lines are added, and how many more there were, when the iterator ends.
    """
    if not path.is_file():
        return
    damaged = 0
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            for line_number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                value, fault = _parse(line)
                if fault and not line.endswith(b"\n"):
                    fault = "breaks off in the middle of a line"
                fault = fault or fault_of(value)
                if not fault:
                    yield value
                    continue
                damaged += 1
                if damaged <= _LINES_NAMED:
                    notes.append(f"{path}, line {line_number}: {fault}; the line is left out")
    except (OSError, EOFError, zlib.error) as error:
        notes.append(f"{path}: cannot be read to its end ({getattr(error, 'strerror', None) or error})")
    if damaged > _LINES_NAMED:
        notes.append(f"{path}: {damaged - _LINES_NAMED:,} more lines cannot be read and are left out")
