"""What docs/objectives.md says one more generation of a strategy is worth, against every outcome of a small policy."""

import functools
import itertools
import math

import numpy as np
import pytest

from polyepo_jax.sets import DistinctCorrect, MeanReward, Polychromic, Sum

N = 4
SHARES = np.array([0.15, 0.25, 0.6])  # q_x, how often the policy uses strategy x
ACCURACIES = np.array([0.35, 0.9, 0.7])  # a_x, how often x then succeeds
STRATEGIES = range(len(SHARES))


def chance(group):
    return math.prod(SHARES[x] * (ACCURACIES[x] if r else 1 - ACCURACIES[x]) for x, r in group)


OTHERS = [(g, chance(g)) for g in itertools.product(itertools.product(STRATEGIES, (0, 1)), repeat=N - 1)]


def expected(function):
    """Over the other generations of a set."""
    return sum(p * function(group) for group, p in OTHERS)


def expected_score(objective, x):
    """E[f(G) | some generation of G uses x]."""
    total = 0.0
    for reward, p in ((1, ACCURACIES[x]), (0, 1 - ACCURACIES[x])):
        total += p * expected(lambda group, own=(x, reward): score(objective, tuple(sorted((own, *group)))))
    return total


@functools.cache  # sorted: an objective is symmetric
def score(objective, group):
    clusters, rewards = np.array(group, np.int32).T
    return float(objective(rewards.astype(np.float32), clusters))


def polychromic(x):
    """Its row: what x earns by being correct, and what it earns by being rare."""
    variety = expected(lambda group: len({x, *(y for y, _ in group)})) / N
    rarity = expected(lambda group: sum(r for _, r in group) if all(y != x for y, _ in group) else 0) / N
    without_x = expected(lambda group: all(y != x for y, _ in group))
    assert without_x == pytest.approx((1 - SHARES[x]) ** (N - 1))
    return ACCURACIES[x] * variety + rarity


def mixture(x, weight):
    a, q = ACCURACIES[x], SHARES[x]
    return a * (1 - weight + weight * (1 - a * q) ** (N - 1))


@pytest.mark.parametrize(
    ("objective", "worth"),
    [
        (MeanReward(N), lambda x: mixture(x, 0)),
        (DistinctCorrect(N), lambda x: mixture(x, 1)),
        (Sum((MeanReward(N), DistinctCorrect(N)), (0.7, 0.3)), lambda x: mixture(x, 0.3)),
        (Polychromic(N), polychromic),
    ],
    ids=lambda value: type(value).__name__,
)
def test_worth_of_one_more_generation(objective, worth):
    found = np.array([N * expected_score(objective, x) for x in STRATEGIES])
    said = np.array([worth(x) for x in STRATEGIES])
    np.testing.assert_allclose(found - found[0], said - said[0], atol=1e-6)
    assert np.ptp(said) > 0.05
