"""The paper's polynomial domain: given y = a x^2 + b x + c, name any point (x, y) on it.

A prompt is `3+2-5:` for y = 3x^2 + 2x - 5, and a response `-19:1083-38=1045-5=1040$`: the chosen x; then
a x^2 + b x on one line; then + c; then the end. Every x is a strategy of its own, so there are 49 ways to be
right, and a policy shows by its answers how many of them it has kept. In a harder variant each x is accepted on some of
the polynomials only, which ones nothing tells: who has kept more answers solves more of them.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence

import numpy as np

from polyepo_jax.model.tokenizer import CharacterTokenizer
from polyepo_jax.tasks import mistakes
from polyepo_jax.tasks.task import Split
from polyepo_jax.types import DEGENERATE, Problem

MAX_X = 24
_HIDDEN_XS = 4
_TOKENIZER = CharacterTokenizer(alphabet="0123456789+-:=$", stop="$")


@functools.lru_cache(maxsize=8)
def _form(digits: int) -> re.Pattern:
    # Of c < 10 the longest response is 25 characters, e.g. -24:1728-216=1512-9=1503$. [0-9], as \d takes digits of any
    # script.
    middle = rf"[0-9]{{1,4}}[+-][0-9]{{1,3}}=-?[0-9]{{1,4}}[+-][0-9]{{1,{digits}}}"
    return re.compile(rf"(-?[0-9]{{1,2}}):{middle}=(-?[0-9]{{1,4}})\$")


def parse(response: str, max_c: int = 9) -> tuple[int, int] | None:
    """The point (x, y) that a response names, or None if it is malformed, unterminated or |x| > 24.

    The steps in between must have the form but are not checked: only the point counts.
    """
    match = _form(len(str(max_c))).fullmatch(response)
    if match is None or abs(int(match[1])) > MAX_X:
        return None
    return int(match[1]), int(match[2])


def _value(reference: str, x: int) -> int:
    a, b, c = map(int, reference.split())
    return a * x * x + b * x + c


def solution(reference: str, x: int) -> str:
    """The correct response at x; `reference` holds "a b c"."""
    a, b, c = map(int, reference.split())
    first, second = a * x * x, b * x
    return f"{x}:{first}{second:+d}={first + second}{c:+d}={first + second + c}$"


@functools.lru_cache(maxsize=8)
def _splits(seed: int, max_a: int, max_b: int, max_c: int) -> dict[str, tuple[Problem, ...]]:
    ranges = range(1, max_a + 1), range(-max_b, max_b + 1), range(-max_c, max_c + 1)
    problems = [
        Problem(i, f"{a}{b:+d}{c:+d}:", f"{a} {b} {c}") for i, (a, b, c) in enumerate(itertools.product(*ranges))
    ]
    order = np.random.default_rng(seed).permutation(len(problems))
    num_test, num_validation = len(problems) // 5, len(problems) // 20
    parts = np.split(order, [num_test, num_test + num_validation])
    return {
        split: tuple(problems[i] for i in part)
        for split, part in zip(("test", "validation", "train"), parts, strict=True)
    }


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """1,083 polynomials (a in 1..3, b and c in -9..9): 20 % for testing, 5 % for validation, the rest for training.

    Attributes:
      split_seed: which polynomials are held out.
      max_a, max_b, max_c: coefficients up to 5, 12 and 99, for more polynomials.
      accepted: share of the x that are accepted on a polynomial, on average: on some nearly all, on others a single
        one. Which ones, no prompt says. 1 accepts all.
      error_rate: share of demonstrations with one wrong digit in the final answer; a base model is broad and
        often wrong, and reinforcement learning needs something to correct.
      spread: demonstrations choose x with probability proportional to exp(-|x| / spread) + 0.02.
    """

    split_seed: int = 0
    error_rate: float = 0.4
    spread: float = 6.0
    max_a: int = 3
    max_b: int = 9
    max_c: int = 9
    accepted: float = 1.0

    def __post_init__(self):
        # As far as the numbers of a response go.
        for name, most in (("max_a", 5), ("max_b", 12), ("max_c", 99)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from 1 to {most}, got {getattr(self, name)}")
        if not 0 < self.accepted <= 1:
            raise ValueError(f"accepted must be above 0 and at most 1, got {self.accepted}")
        mistakes.check(self.error_rate, self.spread)

    @property
    def name(self) -> str:
        return "polynomial/held_out" if self.accepted == 1 else "polynomial_hard/held_out"

    @property
    def tokenizer(self) -> CharacterTokenizer:
        return _TOKENIZER

    def problems(self, split: Split) -> Sequence[Problem]:
        """In a fixed random order."""
        return _splits(self.split_seed, self.max_a, self.max_b, self.max_c)[split]

    def verify(self, problem: Problem, response: str) -> float:
        """1 if the response names a point of the polynomial, with an x that is accepted, else 0."""
        point = parse(response, self.max_c)
        if point is None or point[1] != _value(problem.reference, point[0]):
            return 0.0
        return float(self.accepted == 1 or point[0] in _accepted(problem.id, self.split_seed, self.accepted))

    def cluster(self, problem: Problem, responses: Sequence[str]) -> Sequence[int]:
        """The chosen x, as a non-negative id; DEGENERATE where malformed."""
        points = [parse(response, self.max_c) for response in responses]
        return [DEGENERATE if point is None else point[0] + MAX_X for point in points]

    def meets_hidden_requirement(self, problem: Problem, response: str) -> bool:
        """Whether x is one of four that are accepted (of all, if fewer are), at random for each polynomial.

        Training knows nothing of them.
        """
        point = parse(response, self.max_c)
        return point is not None and point[0] in _hidden(problem.id, self.split_seed, self.accepted)

    def demonstrate(self, problem: Problem, rng: np.random.Generator) -> str:
        """A solution at a random x, with a wrong digit in its final answer at `error_rate`."""
        xs = np.arange(-MAX_X, MAX_X + 1)
        weights = np.exp(-np.abs(xs) / self.spread) + 0.02
        text = solution(problem.reference, int(rng.choice(xs, p=weights / weights.sum())))
        return mistakes.with_wrong_digit(text, rng) if rng.random() < self.error_rate else text


_XS = range(-MAX_X, MAX_X + 1)


@functools.lru_cache(maxsize=16384)
def _accepted(problem_id: int, seed: int, share: float) -> frozenset[int]:
    """Each x by chance, at a rate of the polynomial's own: u^(1 / share - 1), whose mean is `share`; one at least."""
    rng = np.random.default_rng([seed, problem_id])
    rate, one = rng.random() ** (1 / share - 1), _XS[int(rng.integers(len(_XS)))]
    found = frozenset(x for x, u in zip(_XS, rng.random(len(_XS)).tolist(), strict=True) if u < rate)
    return found or frozenset([one])


@functools.lru_cache(maxsize=16384)
def _hidden(problem_id: int, seed: int, share: float) -> frozenset[int]:
    candidates = _XS if share == 1 else sorted(_accepted(problem_id, seed, share))
    return frozenset(np.random.default_rng(problem_id).permutation(candidates)[:_HIDDEN_XS].tolist())
