"""Prefixes and partings against sets and pairs."""

import itertools

import hypothesis
import numpy as np
from hypothesis import strategies as st

from polyepo_jax.evaluation import branching
from polyepo_jax.evaluation.variety import first_divergence


def test_branching_counts_prefixes():
    tokens = [[5, 6, 7, 0], [5, 6, 0, 0], [5, 6, 7, 0], [5, 8, 7, 1]]
    mask = [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert branching(tokens, mask).tolist() == [1, 2, 3, 3]


@hypothesis.given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_branching_equals_sets_of_prefixes(num_rollouts, length, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 3, (num_rollouts, length))
    lengths = rng.integers(0, length + 1, num_rollouts)
    rows = [list(row[:n]) for row, n in zip(tokens.tolist(), lengths, strict=True)]
    expected = [
        len({tuple(row[:t]) + (("end",) if len(row) < t else ()) for row in rows}) for t in range(1, length + 1)
    ]
    assert branching(tokens, np.arange(length)[None, :] < lengths[:, None]).tolist() == expected


def test_two_rollouts_part_at_their_first_different_token():
    tokens = [[5, 6, 7, 0], [5, 6, 0, 0], [5, 6, 7, 0], [5, 8, 7, 1]]
    mask = [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    # Pairs: 3 (one ends), same, 2; 3, 2; 2.
    assert first_divergence(tokens, mask) == (12 / 5, 1 / 6)


@hypothesis.given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_partings_equal_those_of_all_pairs(num_rollouts, length, seed):
    rng = np.random.default_rng(seed)
    tokens, lengths = rng.integers(0, 2, (num_rollouts, length)), rng.integers(1, length + 1, num_rollouts).tolist()
    texts = ["".join(map(str, row[:n])) + "$" * (n < length) for row, n in zip(tokens.tolist(), lengths, strict=True)]
    partings, same = [], []
    for first, second in itertools.combinations(texts, 2):
        same.append(first == second)
        if first != second:
            partings.append(1 + next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b))
    found = first_divergence(tokens, np.arange(length)[None, :] < np.array(lengths)[:, None])
    expected = [np.mean(values) if values else np.nan for values in (partings, same)]
    np.testing.assert_allclose(found, expected)
