r"""Mathematics with a final answer in \boxed{}: problems from any set, graded by comparing the final answers."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from polyepo_jax.judges.answers import Answers
from polyepo_jax.judges.rules import number_by_key
from polyepo_jax.model.tokenizer import HFTokenizer
from polyepo_jax.rewards.answers import final_answer
from polyepo_jax.rewards.math import MathVerifier
from polyepo_jax.rewards.verdict import Verdict
from polyepo_jax.tasks.dataset import Dataset, Source, name_of
from polyepo_jax.tasks.rows import Row, Rows, load
from polyepo_jax.tasks.task import Split
from polyepo_jax.types import Problem

INSTRUCTION = "\n\nReason step by step, and put your final answer within \\boxed{}."

# Ids of held-out problems start here: no training row has them, and the training set need not be read to know them.
FIRST_TEST_ID = 2**30


@dataclasses.dataclass(frozen=True)
class Math:
    """Problems with a final answer each, to train on and held out.

    A set is a Dataset (`polyepo_jax.tasks.benchmarks` has the published ones), the path of a file with the fields
    `problem` and `answer`, or a function that yields mappings with these keys. It is read on first use. What cannot
    be used is left out and said in `notes`, as are training problems that are in one of the held-out sets too.

    Attributes:
      train: the set to train on.
      tokenizer_dir: the directory of the model's tokenizer, see HFTokenizer; None for that of init.model_dir, or of
        the run in init.run_dir.
      test: a set held out, or None.
      benchmarks: more sets held out; each is evaluated by itself.
      chat: prompts are turns of the chat template; False for a model without one.
      num_validation: how many training problems, always the same, are held out for validation.
      instruction: follows the problem in each prompt, also where that is chat messages, whose turns before it are
        kept.
      verifier: (problem, response) -> reward or Verdict: a MathVerifier, or a function of your own.
    """

    train: Any
    tokenizer_dir: str | None = None
    test: Any = None
    benchmarks: tuple[Any, ...] = ()
    chat: bool = True
    num_validation: int = 0
    instruction: str = INSTRUCTION
    verifier: Any = MathVerifier()

    def __post_init__(self):
        if self.num_validation < 0:
            raise ValueError(f"num_validation must be at least 0, got {self.num_validation}")
        if not callable(self.verifier):
            raise ValueError(f"verifier must be called as (problem, response), got {self.verifier!r}")
        if type(self.verifier).__hash__ is None:
            raise ValueError(f"verifier must be hashable, got {self.verifier!r}: declare it @dataclass(frozen=True)")
        for source in (self.train, *self._held_out):
            if not isinstance(source, (str, Dataset)) and not callable(source):
                raise ValueError(f"a set must be a Dataset, a path or a function that yields problems, got {source!r}")
        names = [name_of(source) for source in self._held_out]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two held-out sets are called {min(repeated)!r}: name them apart, for eval.json")

    @property
    def _held_out(self) -> tuple[Source, ...]:
        return (*(() if self.test is None else (self.test,)), *self.benchmarks)

    @property
    def name(self) -> str:
        return f"math/{'validation' if self.test is None else name_of(self.test)}"

    @property
    def benchmark_tasks(self) -> tuple["Math", ...]:
        """One task a benchmark, with it as the test split; they read nothing else for it."""
        return tuple(dataclasses.replace(self, test=source, benchmarks=()) for source in self.benchmarks)

    @property
    def tokenizer(self) -> HFTokenizer:
        return HFTokenizer(self.tokenizer_dir or "", self.chat)

    def problems(self, split: Split) -> Sequence[Problem]:
        """Those of a split. An id is the row in the set, whatever else is left out; for "test", from FIRST_TEST_ID on.

        Raises:
          ValueError: a set that cannot be had or is not as described, or more validation problems than leave one to
            train on.
        """
        return _test(self) if split == "test" else _train_and_validation(self)[split]

    @property
    def notes(self) -> tuple[str, ...]:
        """A line on each set: how many rows it has, and how many are left out and why; another where these are many.

        Raises:
          ValueError: as of `problems`.
        """
        sets = (_train_rows(self), *(self._load(source) for source in self._held_out))
        return tuple(note for rows in sets for note in rows.notes)

    def _load(self, source: Source) -> Rows:
        return load(source, self.verifier)

    @property
    def verify_concurrency(self) -> int:
        """How many threads may call `verify` at a time."""
        return getattr(self.verifier, "concurrency", 1)

    @property
    def verify_faults(self) -> tuple[str, ...]:
        """The faults that the verifier's Verdicts can have."""
        return tuple(getattr(self.verifier, "faults", ()))

    @property
    def verify_failures(self) -> tuple[str, ...]:
        """The kinds of GradeFailures that the verifier can raise."""
        return tuple(getattr(self.verifier, "failures", ()))

    def verify(self, problem: Problem, response: str) -> float | Verdict:
        return self.verifier(problem, response)

    def cluster(self, problem: Problem, responses: Sequence[str]) -> Sequence[int]:
        r"""Equal final answers share an id, numbered as they appear; DEGENERATE without \boxed{}.

        Equal are those that the verifier's `equal` holds for equal; as numbers or texts where it has none.
        """
        if hasattr(self.verifier, "equal"):
            return Answers(self.verifier).cluster(problem, responses)
        return number_by_key(map(final_answer, responses))


def _problem(row: Row, task: Math, first_id: int = 0) -> Problem:
    return Problem(first_id + row.id, row.problem + task.instruction, row.answer, row.turns)


@functools.lru_cache(maxsize=16)
def _test(task: Math) -> tuple[Problem, ...]:
    return () if task.test is None else tuple(_problem(row, task, FIRST_TEST_ID) for row in task._load(task.test).kept)


@functools.lru_cache(maxsize=8)
def _train_rows(task: Math) -> Rows:
    """The training set, with the validation problems, without what is in a held-out set."""
    return functools.reduce(Rows.without, map(task._load, task._held_out), task._load(task.train))


@functools.lru_cache(maxsize=8)
def _train_and_validation(task: Math) -> dict[Split, tuple[Problem, ...]]:
    rows = _train_rows(task)
    if task.num_validation >= len(rows.kept):
        raise ValueError(
            f"num_validation = {task.num_validation} leaves none of the {len(rows.kept)} problems of {rows.name} to "
            "train on: lower it"
        )
    by_id = {row.id: row for row in rows.kept}
    # An order of all rows: to leave one out, or to take one more benchmark, moves no other between the splits.
    order = [i for i in np.random.default_rng(0).permutation(rows.num_rows).tolist() if i in by_id]
    held_out, kept = order[: task.num_validation], sorted(order[task.num_validation :])
    return {
        "train": tuple(_problem(by_id[i], task) for i in kept),
        "validation": tuple(_problem(by_id[i], task) for i in held_out),
    }
