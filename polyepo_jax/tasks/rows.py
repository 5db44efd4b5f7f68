"""The rows of a set that can be trained on or evaluated, and a line on those that are left out."""

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any, NamedTuple

from polyepo_jax.errors import GradeFailure
from polyepo_jax.rewards.answers import normalise
from polyepo_jax.rewards.math import MathVerifier
from polyepo_jax.tasks import references
from polyepo_jax.tasks.dataset import Dataset, Record, Source, name_of, records
from polyepo_jax.types import Turns


class Row(NamedTuple):
    """A problem with its final answer. `id` counts all rows of the set from 0, those left out too.

    turns: what precedes the problem in a conversation.
    """

    id: int
    problem: str
    answer: str
    turns: Turns = ()


@dataclasses.dataclass(frozen=True)
class Rows:
    """A set of problems.

    Attributes:
      name: the set's.
      num_rows: all there are, with those left out.
      kept: in the set's order; no two problems differ in white space, or system turns, only.
      left_out: what for, -> how many.
      num_unusable: how many of those left out have a reference without an answer that can be graded.
    """

    name: str
    num_rows: int
    kept: tuple[Row, ...]
    left_out: tuple[tuple[str, int], ...]
    num_unusable: int = 0

    def without(self, other: "Rows") -> "Rows":
        """These without the problems that `other` has too, white space aside."""
        there = {_same(row) for row in other.kept}
        kept = tuple(row for row in self.kept if _same(row) not in there)
        shared = len(self.kept) - len(kept)
        return dataclasses.replace(self, kept=kept, left_out=(*self.left_out, (f"also in {other.name}", shared)))

    def __str__(self) -> str:
        """`polaris_53k: 53,291 rows; left out: 12 repeated, 5 also in aime_2025`."""
        rows = f"{self.name}: {self.num_rows:,} {'row' if self.num_rows == 1 else 'rows'}"
        left_out = ", ".join(f"{count:,} {what}" for what, count in self.left_out if count)
        return f"{rows}; left out: {left_out}" if left_out else rows

    @property
    def notes(self) -> tuple[str, ...]:
        """Itself as a line, and what to do where more than a few references cannot be graded."""
        if self.num_unusable <= max(_FEW, self.num_rows * _FEW_OF_ALL):
            return (str(self),)
        return (
            str(self),
            f"{self.name}: {self.num_unusable:,} of {self.num_rows:,} references cannot be graded and are not used; "
            f"{_ADVICE}",
        )


def load(source: Source, verifier: Any) -> Rows:
    """The usable rows of a set, which is read once in a process.

    Left out are rows without a problem or a final answer, those whose answer the verifier cannot use, and of equal
    problems (white space and system turns aside) all but the first. Of a worked reference a MathVerifier gets the final
    answer, see `references`.

    Args:
      source: the set.
      verifier: hashable. Where it has a method `check_reference(answer)`, that says why it cannot use an answer, None
        if it can; called from `concurrency` threads at a time, and not for plain numbers.

    Raises:
      ValueError: as of `records`; no row can be used, or most have references that cannot be graded; or the answers
        could not be checked.
    """
    if isinstance(source, str):
        source = Dataset(name_of(source), path=source)
    if isinstance(source, Dataset) and source.path is not None:  # the working directory may change
        source = dataclasses.replace(source, path=os.path.abspath(source.path))
    return _load(source, verifier)


@functools.lru_cache(maxsize=32)
def _load(source: Any, verifier: Any) -> Rows:
    found = list(records(source))
    if not found:
        raise ValueError(f"{_place(source)}: there is no problem in it")
    if isinstance(verifier, MathVerifier):  # what another takes for a reference is its own affair
        found = [_with_final_answer(record) for record in found]
    unusable = _unusable(name_of(source), (record.answer for record in found), verifier)
    counts: Counter[str] = Counter()
    example = ""
    kept: dict[str, Row] = {}
    for number, record in enumerate(found):
        reason = _left_out_for(record, unusable, kept)
        counts[reason] += 1
        if not reason:
            kept[_same(record)] = Row(number, record.problem, record.answer, record.turns)
        elif reason == _UNUSABLE and not example:
            example = f" (row {number}: {record.refused or unusable[record.answer]:.160})"
    left_out = tuple((f"{reason}{example if reason == _UNUSABLE else ''}", counts[reason]) for reason in _REASONS)
    rows = Rows(name_of(source), len(found), tuple(kept.values()), left_out, counts[_UNUSABLE])
    if not kept:
        raise ValueError(f"{_place(source)}: none of its problems can be used ({rows})")
    if 2 * rows.num_unusable > rows.num_rows:
        raise ValueError(f"{_place(source)}: most of its references cannot be graded ({rows}); {_ADVICE}")
    return rows


# How many references that cannot be graded are told by their number alone: any set has some.
_FEW, _FEW_OF_ALL = 4, 0.01
_ADVICE = "name the field of the final answer by Dataset(..., answer=...), or take it from the text by extract=..."

_REPEATED, _NO_PROBLEM, _NO_ANSWER = "repeated", "with an empty problem", "with an empty answer"
_UNUSABLE = "whose answer the verifier cannot use"
_REASONS = (_REPEATED, _NO_PROBLEM, _NO_ANSWER, _UNUSABLE)


def _with_final_answer(record: Record) -> Record:
    if record.refused or normalise(record.answer) == "":
        return record
    answer, why = references.read(record.answer)
    return record._replace(answer=answer, refused=why)


def _left_out_for(record: Record, unusable: dict[str, str], kept: dict[str, Row]) -> str:
    """One of _REASONS, empty for none."""
    if not record.problem.strip():
        return _NO_PROBLEM
    if record.refused:
        return _UNUSABLE
    if normalise(record.answer) == "":
        return _NO_ANSWER
    if record.answer in unusable:
        return _UNUSABLE
    return _REPEATED if _same(record) in kept else ""


def _unusable(name: str, answers: Iterable[str], verifier: Any) -> dict[str, str]:
    """The answers that the verifier cannot use -> why."""
    check = getattr(verifier, "check_reference", None)
    if check is None:
        return {}
    if isinstance(verifier, MathVerifier):
        check = functools.partial(references.check, verifier=verifier)
    doubtful = [answer for answer in dict.fromkeys(answers) if _is_doubtful(answer)]
    with ThreadPoolExecutor(getattr(verifier, "concurrency", 1)) as threads:
        try:
            reasons = list(threads.map(check, doubtful))
        except GradeFailure as failure:
            raise ValueError(f"{name}: the verifier could not check its answers ({failure}): try again") from failure
    return {answer: reason for answer, reason in zip(doubtful, reasons, strict=True) if reason is not None}


def _is_doubtful(answer: str) -> bool:
    """Whether a verifier might not be able to use it: any can use a plain number, and none has use for nothing."""
    value = normalise(answer)
    return value != "" and not isinstance(value, Fraction)


def _same(row: Row | Record) -> str:
    """Equal for problems that differ in white space, or system turns, only."""
    before = [f"{role}: {text}" for role, text in row.turns if role != "system"]
    return " ".join(" ".join([*before, row.problem]).split())


def _place(source: Source) -> str:
    return source.path or source.name if isinstance(source, Dataset) else name_of(source)
