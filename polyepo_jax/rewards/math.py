r"""Answers in \boxed{} compared as mathematics, by math-verify in processes that hostile answers cannot harm."""

import atexit
import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from polyepo_jax.errors import GradeFailure
from polyepo_jax.rewards.answer_parts import contradict
from polyepo_jax.rewards.answers import boxed, normalise, words
from polyepo_jax.rewards.notation import rewrite
from polyepo_jax.rewards.verdict import Verdict
from polyepo_jax.rewards.workers import WorkerPool

if TYPE_CHECKING:
    from polyepo_jax.types import Problem

_MEANINGFUL = re.compile(r"[^\W_]|[^\x00-\x7f]|\\\{\s*\\\}")  # the last being the empty set
_LATEX = re.compile(r"[\\{}^_$]")


@dataclasses.dataclass(frozen=True)
class MathVerifier:
    r"""Rewards 1 for a response whose last \boxed{} holds the reference, by any spelling of it, else 0.

    Equal are answers that `polyepo_jax.rewards.answers.normalise` spells the same and those that math-verify finds
    equal, apart from words, which are compared as such. Verifiers of equal settings share their worker processes,
    which start on first use and end with the interpreter.

    Attributes:
      deadline_s: seconds for the comparison of one answer.
      memory_mb: 2**20 bytes of address space of one worker; it takes about 100 itself.
      max_answer_length: characters in the last \boxed{}; of a reference, too.
      num_workers: processes; None for one on each CPU of this process, up to 16.
      faults: those of a response that has no answer to compare, or none that could be compared.
      failures: kinds of the GradeFailures raised: a reference that cannot be used, two workers lost on one answer,
        and workers that do not start.
    """

    deadline_s: float = 5.0
    memory_mb: int = 1024
    max_answer_length: int = 1000
    num_workers: int | None = None

    faults: ClassVar[tuple[str, ...]] = ("no_answer", "too_long", "unparsable", "deadline", "memory")
    failures: ClassVar[tuple[str, ...]] = ("reference", "worker_lost", "worker_start")

    def __post_init__(self):
        if not 0 < self.deadline_s < math.inf:
            raise ValueError(f"deadline_s must be a number of seconds above 0, got {self.deadline_s}")
        if self.memory_mb < 256:
            raise ValueError(f"memory_mb must be at least 256, of which a worker takes half, got {self.memory_mb}")
        if self.max_answer_length < 1:
            raise ValueError(f"max_answer_length must be at least 1, got {self.max_answer_length}")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, or null for one a CPU, got {self.num_workers}")

    def __call__(self, problem: "Problem", response: str) -> Verdict:
        """The verdict on a response; up to `concurrency` threads are served at a time, others wait.

        Raises:
          GradeFailure: of a kind in `failures`.
        """
        reference = _content(problem.reference)
        if why := self._unusable_text(reference):
            raise GradeFailure("reference", f"problem {problem.id}: {why}")
        answer = boxed(response)
        if answer is None:
            return Verdict(0.0, "no_answer")
        if len(answer) > self.max_answer_length:
            return Verdict(0.0, "too_long")
        answer = rewrite(answer)
        if normalise(answer) == "":
            return Verdict(0.0, "no_answer")
        outcome = _without_worker(reference, answer)
        if outcome is None:
            if why := self.check_reference(reference):
                raise GradeFailure("reference", f"problem {problem.id}: {why}")
            outcome = _decide(_verify, self, reference, answer)
        return Verdict(float(outcome == "same"), outcome if outcome in self.faults else "")

    def equal(self, one: str, other: str) -> bool:
        r"""Whether two answers, as in \boxed{}, are the same; if they cannot be compared, whether as text.

        Raises:
          GradeFailure: `worker_lost` or `worker_start`.
        """
        one, other = sorted((rewrite(one), rewrite(other)))
        if max(len(one), len(other)) > self.max_answer_length:
            return normalise(one) == normalise(other)
        return (_without_worker(one, other) or _decide(_equal, self, one, other)) == "same"

    def comparable(self, answer: str) -> bool:
        r"""Whether an answer, as in \boxed{}, is mathematics that does not take for ever: else it has only its text.

        Asked once of each answer of a group, it keeps a hostile one from costing a deadline with every other.

        Raises:
          GradeFailure: `worker_lost` or `worker_start`.
        """
        if len(answer) > self.max_answer_length or words(answer) is not None:
            return False
        return isinstance(normalise(answer), Fraction) or _decide(_parse, self, rewrite(answer)) == "parsed"

    def check_reference(self, reference: str) -> str | None:
        """Why a reference cannot be used, None if it can: mathematics that parses, or text that is no LaTeX.

        Raises:
          GradeFailure: `worker_lost` or `worker_start`.
        """
        reference = _content(reference)
        if why := self._unusable_text(reference):
            return why
        if words(reference) is not None or isinstance(normalise(reference), Fraction):
            return None
        outcome = _decide(_parse, self, reference)
        if outcome == "parsed" or (outcome == "unparsable" and not _LATEX.search(reference)):
            return None
        return f"math-verify makes nothing of the reference {reference!r} ({outcome})"

    def close(self) -> None:
        """Ends the worker processes until they are needed again."""
        self._pool.close()

    @property
    def concurrency(self) -> int:
        """How many answers are compared at a time."""
        return self.num_workers or _num_cpus()

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the worker processes there are now."""
        return self._pool.pids

    @property
    def _pool(self) -> WorkerPool:
        return _pool(self.concurrency, self.deadline_s, self.memory_mb)

    def _unusable_text(self, reference: str) -> str | None:
        if not _MEANINGFUL.search(reference) or normalise(reference) == "":
            return f"expected a reference with an answer in it, got {reference!r:.80}"
        if len(reference) > self.max_answer_length:
            return (
                f"the reference has {len(reference)} characters, more than max_answer_length = "
                f"{self.max_answer_length}: {reference!r:.80}"
            )
        return None


def _content(reference: str) -> str:
    r"""What the last \boxed{} of a reference holds, or the reference itself."""
    return rewrite(boxed(reference) or reference)


def _without_worker(one: str, other: str) -> str | None:
    """`same` or `different` where that needs no mathematics, else None."""
    values = normalise(one), normalise(other)
    if values[0] == values[1]:
        return "same"
    if contradict(one, other):
        return "different"
    # A number of percent is one of hundredths, too.
    if all(isinstance(value, Fraction) for value in values) and "%" not in one + other:
        return "different"
    texts = words(one), words(other)
    if None not in texts:
        return "same" if texts[0] == texts[1] else "different"
    return None


class _Undecided(Exception):
    """An answer that took too long or too much: perhaps only this time, so no cache is to keep it."""


def _decide(ask: Callable[..., str], *arguments: Any) -> str:
    """An outcome, from a cache where it cannot be another the next time."""
    try:
        return ask(*arguments)
    except _Undecided as undecided:
        return str(undecided)


def _decided(outcome: str) -> str:
    if outcome in ("deadline", "memory"):
        raise _Undecided(outcome)
    return outcome


@functools.lru_cache(maxsize=100_000)
def _verify(verifier: MathVerifier, reference: str, answer: str) -> str:
    return _decided(verifier._pool.call({"verify": [reference, answer]}))


@functools.lru_cache(maxsize=100_000)
def _equal(verifier: MathVerifier, one: str, other: str) -> str:
    return _decided(verifier._pool.call({"equal": [one, other]}))


@functools.lru_cache(maxsize=100_000)
def _parse(verifier: MathVerifier, reference: str) -> str:
    return _decided(verifier._pool.call({"parse": reference}))


@functools.cache
def _pool(num_workers: int, deadline_s: float, memory_mb: int) -> WorkerPool:
    pool = WorkerPool(num_workers, deadline_s, memory_mb)
    atexit.register(pool.close)
    return pool


def _num_cpus() -> int:
    """The CPUs that this process may use, by its affinity and its container's quota, up to 16."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(int(quota) // int(period), 1))
    except (OSError, ValueError):  # no quota
        pass
    return min(count, 16)
