"""What a task is: problems, and what is said of responses to them."""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from polyepo_jax.model.tokenizer import Tokenizer
from polyepo_jax.rewards.verdict import Verdict
from polyepo_jax.types import Problem

Split = Literal["train", "validation", "test"]


class Task(Protocol):
    """A domain, as a frozen dataclass. Responses are a model's output: hostile text, never to be executed.

    It may also have `meets_hidden_requirement(problem, response) -> bool`: of correct responses, what training does not
    reward and an evaluation counts (hidden_at_k).
    """

    @property
    def name(self) -> str:
        """Of the held-out benchmark in eval.json."""
        ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def problems(self, split: Split) -> Sequence[Problem]:
        """The problems of a split; splits share none."""
        ...

    def verify(self, problem: Problem, response: str) -> float | Verdict:
        """The reward of a response; called from several threads where `verify_concurrency` says how many."""
        ...

    def cluster(self, problem: Problem, responses: Sequence[str]) -> Sequence[int]:
        """Strategy ids of all responses to one problem, DEGENERATE where there is none."""
        ...


class TaskWithDemonstrations(Task, Protocol):
    """A task that can also show how it is done, for a supervised warm start."""

    def demonstrate(self, problem: Problem, rng: np.random.Generator) -> str:
        """One response, its end token included."""
        ...
