"""The paper's multiplication domain: a product of two numbers of two digits, by a decomposition of one's choice.

A prompt is `43*67:`, and a response one line of work, each part of it the one before worked out further:

    (40+3)*67=2680+201=2881$                            split the first factor by place value
    43*(70-3)=3010-129=2881$                            round the second up, and subtract
    (40+3)*(60+7)=2400+280+180+21=2680+201=2881$        partial products
    42*67 by (6*7)*67=6*469=2814$                       small factors of the first
    42*67 by (42/2)*(67*2)=21*134=2680+134=2814$        halve and double

Each of the twelve can follow `67*43=`, which commutes the factors first. So there are 24 strategies, recognised by the
operations that are written, whatever comes out of them.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

import numpy as np

from polyepo_jax.model.tokenizer import CharacterTokenizer
from polyepo_jax.tasks import mistakes
from polyepo_jax.tasks.task import Split
from polyepo_jax.types import DEGENERATE, Problem

# Factors: of two digits, none of which is 0.
FACTORS = tuple(n for n in range(11, 100) if n % 10)
# Characters of the longest solution, 98*97=(100-3)*(100-2)=10000-200-300+6=9800-294=9506$.
MAX_LENGTH = 53
_HIDDEN_STRATEGIES = 4
_TOKENIZER = CharacterTokenizer(alphabet="0123456789+-*/()=:$", stop="$")
# [0-9], as \d takes digits of any script.
_FACTOR, _NUMBER = "[0-9]{2}", "[0-9]{1,5}"
_COMMUTED = re.compile(rf"{_FACTOR}\*{_FACTOR}")
Solve = Callable[[int, int], list[tuple[str, ...]]]


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way to decompose a product.

    name: for people. pattern: of the parts of its solutions, joined by "=". solve: the solutions of a product, each as
    its parts, of which the first says what is done; none where it cannot be done.
    """

    name: str
    pattern: re.Pattern
    solve: Solve


@dataclasses.dataclass(frozen=True)
class _Form:
    """How a factor is written as a sum of `parts`, whose signs are always the same."""

    name: str
    pattern: str
    signs: tuple[int, ...]
    parts: Callable[[int], tuple[int, ...]]

    def text(self, n: int) -> str:
        return str(n) if len(self.signs) == 1 else f"({_sum(self.parts(n))})"


_WHOLE = _Form("whole", _FACTOR, (1,), lambda n: (n,))
_SPLIT = _Form("split", r"\([1-9]0\+[1-9]\)", (1, 1), lambda n: (n - n % 10, n % 10))
_ROUNDED = _Form("rounded", r"\([1-9][0-9]?0-[1-9]\)", (1, -1), lambda n: (n - n % 10 + 10, n % 10 - 10))


def _sum(terms: Sequence[int]) -> str:
    return "".join(f"{term:+d}" for term in terms).removeprefix("+")


def _sum_pattern(signs: Sequence[int]) -> str:
    return "".join(rf"\{'+' if sign > 0 else '-'}{_NUMBER}" for sign in signs).removeprefix(r"\+")


def _by_sums(first: _Form, second: _Form) -> Strategy:
    """Products of the parts of both factors; of four of them the sums of two each before the whole."""

    def solve(a: int, b: int) -> list[tuple[str, ...]]:
        products = [[p * q for q in second.parts(b)] for p in first.parts(a)]
        rows = [sum(row) for row in products]
        lines = [f"{first.text(a)}*{second.text(b)}", _sum([product for row in products for product in row])]
        if len(rows) * len(products[0]) == 4:
            lines.append(_sum(rows))
        return [(*lines, str(a * b))]

    lines = [rf"{first.pattern}\*{second.pattern}", _sum_pattern([p * q for p in first.signs for q in second.signs])]
    if len(first.signs) * len(second.signs) == 4:
        lines.append(_sum_pattern(first.signs))
    return Strategy(f"{first.name} x {second.name}", re.compile("=".join([*lines, _NUMBER])), solve)


def _small_factors(n: int) -> list[tuple[int, int]]:
    """(d, n / d) with d of one digit, and the other not 1."""
    return [(d, n // d) for d in range(2, 10) if n % d == 0 and n > d]


def _factor_first(a: int, b: int) -> list[tuple[str, ...]]:
    return [(f"({d}*{rest})*{b}", f"{d}*{rest * b}", str(a * b)) for d, rest in _small_factors(a)]


def _factor_second(a: int, b: int) -> list[tuple[str, ...]]:
    return [(f"{a}*({rest}*{d})", f"{a * rest}*{d}", str(a * b)) for d, rest in _small_factors(b)]


def _halves(n: int) -> bool:
    """Whether half of it is of two digits, none of which is 0."""
    return n % 2 == 0 and n // 2 in FACTORS


def _halve_first(a: int, b: int) -> list[tuple[str, ...]]:
    terms = _sum([part * 2 * b for part in _SPLIT.parts(a // 2)])
    return [(f"({a}/2)*({b}*2)", f"{a // 2}*{2 * b}", terms, str(a * b))] if _halves(a) else []


def _halve_second(a: int, b: int) -> list[tuple[str, ...]]:
    terms = _sum([2 * a * part for part in _SPLIT.parts(b // 2)])
    return [(f"({a}*2)*({b}/2)", f"{2 * a}*{b // 2}", terms, str(a * b))] if _halves(b) else []


def _by_products(name: str, head: str, lines: Sequence[str], solve: Solve) -> Strategy:
    return Strategy(name, re.compile("=".join([head, *lines, _NUMBER])), solve)


_PRODUCT, _TWO_TERMS = rf"{_NUMBER}\*{_NUMBER}", rf"{_NUMBER}\+{_NUMBER}"
STRATEGIES = (
    *(_by_sums(*forms) for forms in ((_SPLIT, _WHOLE), (_WHOLE, _SPLIT), (_ROUNDED, _WHOLE), (_WHOLE, _ROUNDED))),
    _by_products("factors x whole", rf"\([2-9]\*[0-9]{{1,2}}\)\*{_FACTOR}", [_PRODUCT], _factor_first),
    _by_products("whole x factors", rf"{_FACTOR}\*\([0-9]{{1,2}}\*[2-9]\)", [_PRODUCT], _factor_second),
    _by_products("halved x doubled", rf"\({_FACTOR}/2\)\*\({_FACTOR}\*2\)", [_PRODUCT, _TWO_TERMS], _halve_first),
    _by_products("doubled x halved", rf"\({_FACTOR}\*2\)\*\({_FACTOR}/2\)", [_PRODUCT, _TWO_TERMS], _halve_second),
    *(_by_sums(first, second) for first in (_SPLIT, _ROUNDED) for second in (_SPLIT, _ROUNDED)),
)
NUM_CLUSTERS = 2 * len(STRATEGIES)


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A response whose form is one of the strategies'.

    strategy: index into STRATEGIES. commuted: whether the factors change places first.
    """

    strategy: int
    commuted: bool

    @property
    def cluster(self) -> int:
        """From 0 to NUM_CLUSTERS - 1."""
        return 2 * self.strategy + self.commuted


def parse(response: str) -> Parsed | None:
    """What a response does; None if it is malformed, unterminated, or does something else."""
    text, end, rest = response.partition("$")
    if not end or rest:
        return None
    first, _, others = text.partition("=")
    commuted = _COMMUTED.fullmatch(first) is not None
    for strategy, candidate in enumerate(STRATEGIES):
        if candidate.pattern.fullmatch(others if commuted else text):
            return Parsed(strategy, commuted)
    return None


def solutions(a: int, b: int, cluster: int) -> list[str]:
    """All that a strategy writes of a product; none where it cannot be followed."""
    commuted = f"{b}*{a}=" if cluster % 2 else ""
    if commuted:
        a, b = b, a
    return [f"{commuted}{'='.join(parts)}$" for parts in STRATEGIES[cluster // 2].solve(a, b)]


@functools.lru_cache(maxsize=8)
def _splits(seed: int) -> dict[str, tuple[Problem, ...]]:
    """a * b and b * a are always in the same split."""
    pairs = [(a, b) for a in FACTORS for b in FACTORS if a <= b]
    order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    num_test, num_validation = len(pairs) // 5, len(pairs) // 20
    bounds = {"test": (0, num_test), "validation": (num_test, num_test + num_validation)}
    bounds["train"] = (num_test + num_validation, len(pairs))
    splits = {}
    for split, (start, stop) in bounds.items():
        both = [product for i in order[start:stop] for product in dict.fromkeys((pairs[i], pairs[i][::-1]))]
        shuffled = np.random.default_rng([seed, start]).permutation(len(both)).tolist()
        splits[split] = tuple(
            Problem(100 * a + b, f"{a}*{b}:", str(a * b)) for a, b in (both[index] for index in shuffled)
        )
    return splits


@dataclasses.dataclass(frozen=True)
class Multiplication:
    """6,561 products of two-digit numbers without a 0: 20 % for testing, 5 % for validation, the rest for training.

    Attributes:
      split_seed: which products are held out.
      error_rate: share of demonstrations with one wrong digit in the result.
      spread: demonstrations choose a strategy, of those that can be followed, with probability proportional to
        exp(-index / spread) + 0.02.
    """

    split_seed: int = 0
    error_rate: float = 0.3
    spread: float = 6.0

    def __post_init__(self):
        mistakes.check(self.error_rate, self.spread)

    @property
    def name(self) -> str:
        return "multiplication/held_out"

    @property
    def tokenizer(self) -> CharacterTokenizer:
        return _TOKENIZER

    def problems(self, split: Split) -> Sequence[Problem]:
        """In a fixed random order."""
        return _splits(self.split_seed)[split]

    def verify(self, problem: Problem, response: str) -> float:
        """1 if the response is one of its strategy's solutions, every term of every part, else 0.

        That all parts have the value of the product is not enough: work that was not done could be written so.
        """
        parsed = parse(response)
        return float(parsed is not None and response in solutions(*divmod(problem.id, 100), parsed.cluster))

    def cluster(self, problem: Problem, responses: Sequence[str]) -> Sequence[int]:
        """The strategy, right or wrong; DEGENERATE where there is none."""
        parsed = [parse(response) for response in responses]
        return [DEGENERATE if work is None else work.cluster for work in parsed]

    def meets_hidden_requirement(self, problem: Problem, response: str) -> bool:
        """Whether it follows one of four strategies, at random for each product; training knows nothing of them."""
        parsed = parse(response)
        return parsed is not None and parsed.cluster in _hidden(problem.id)

    def demonstrate(self, problem: Problem, rng: np.random.Generator) -> str:
        """A solution by a random strategy, with a wrong digit in its result at `error_rate`."""
        a, b = divmod(problem.id, 100)
        by_cluster = [solutions(a, b, cluster) for cluster in range(NUM_CLUSTERS)]
        weights = np.exp(-np.arange(NUM_CLUSTERS) / self.spread) + 0.02
        weights *= [bool(found) for found in by_cluster]
        chosen = by_cluster[int(rng.choice(NUM_CLUSTERS, p=weights / weights.sum()))]
        text = chosen[int(rng.integers(len(chosen)))]
        return mistakes.with_wrong_digit(text, rng) if rng.random() < self.error_rate else text


@functools.lru_cache(maxsize=16384)
def _hidden(problem_id: int) -> frozenset[int]:
    return frozenset(np.random.default_rng(problem_id).permutation(NUM_CLUSTERS)[:_HIDDEN_STRATEGIES].tolist())
