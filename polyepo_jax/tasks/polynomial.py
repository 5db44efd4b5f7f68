"""The paper's polynomial domain: given y = a x^2 + b x + c, name any point (x, y) on it.

A prompt is `3+2-5:` for y = 3x^2 + 2x - 5, and a response `-19:1083-38=1045-5=1040$`: the chosen x; then
a x^2 + b x on one line; then + c; then the end. Every x is a strategy of its own, so there are 49 ways to be
right, and a policy shows by its answers how many of them it has kept.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np

from polyepo_jax.model.tokenizer import CharacterTokenizer
from polyepo_jax.tasks.task import Split
from polyepo_jax.types import DEGENERATE, Problem

MAX_X = 24
_COEFFICIENTS = [(a, b, c) for a in range(1, 4) for b in range(-9, 10) for c in range(-9, 10)]
_TOKENIZER = CharacterTokenizer(alphabet="0123456789+-:=$", stop="$")

# The longest response is 25 characters, e.g. -24:1728-216=1512-9=1503$. [0-9], as \d takes digits of any script.
_RESPONSE = re.compile(r"(-?[0-9]{1,2}):[0-9]{1,4}[+-][0-9]{1,3}=-?[0-9]{1,4}[+-][0-9]=(-?[0-9]{1,4})\$")


def parse(response: str) -> tuple[int, int] | None:
    """The point (x, y) that a response names, or None if it is malformed, unterminated or |x| > 24.

    The steps in between must have the form but are not checked: only the point counts.
    """
    match = _RESPONSE.fullmatch(response)
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
def _splits(seed: int) -> dict[str, tuple[Problem, ...]]:
    problems = [Problem(i, f"{a}{b:+d}{c:+d}:", f"{a} {b} {c}") for i, (a, b, c) in enumerate(_COEFFICIENTS)]
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
      error_rate: share of demonstrations with one wrong digit in the final answer; a base model is broad and
        often wrong, and reinforcement learning needs something to correct.
      spread: demonstrations choose x with probability proportional to exp(-|x| / spread) + 0.02.
    """

    split_seed: int = 0
    error_rate: float = 0.4
    spread: float = 6.0

    def __post_init__(self):
        if not 0 <= self.error_rate <= 1:
            raise ValueError(f"error_rate must be between 0 and 1, got {self.error_rate}")
        if not self.spread > 0:
            raise ValueError(f"spread must be positive, got {self.spread}")

    @property
    def name(self) -> str:
        return "polynomial/held_out"

    @property
    def tokenizer(self) -> CharacterTokenizer:
        return _TOKENIZER

    def problems(self, split: Split) -> Sequence[Problem]:
        """In a fixed random order."""
        return _splits(self.split_seed)[split]

    def verify(self, problem: Problem, response: str) -> float:
        """1 if the response names a point of the polynomial, else 0."""
        point = parse(response)
        return float(point is not None and point[1] == _value(problem.reference, point[0]))

    def cluster(self, problem: Problem, responses: Sequence[str]) -> Sequence[int]:
        """The chosen x, as a non-negative id; DEGENERATE where malformed."""
        points = [parse(response) for response in responses]
        return [DEGENERATE if point is None else point[0] + MAX_X for point in points]

    def demonstrate(self, problem: Problem, rng: np.random.Generator) -> str:
        """A solution at a random x, with a wrong digit in its final answer at `error_rate`."""
        xs = np.arange(-MAX_X, MAX_X + 1)
        weights = np.exp(-np.abs(xs) / self.spread) + 0.02
        text = solution(problem.reference, int(rng.choice(xs, p=weights / weights.sum())))
        if rng.random() < self.error_rate:
            start = text.rindex("=") + 1
            position = int(rng.choice([i for i in range(start, len(text)) if text[i].isdigit()]))
            digit = (int(text[position]) + int(rng.integers(1, 10))) % 10
            text = f"{text[:position]}{digit}{text[position + 1 :]}"
        return text
