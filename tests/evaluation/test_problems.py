"""One problem's numbers against enumeration of all ways to draw some of its samples."""

import itertools
import json
import math

import hypothesis
import jax
import numpy as np
import pytest

from polyepo_jax.evaluation import describe
from polyepo_jax.evaluation.problems import any_of
from polyepo_jax.sets import pass_at_k
from polyepo_jax.types import DEGENERATE
from tests.evaluation.test_votes import prompts


@hypothesis.given(prompts(max_samples=8))
def test_curves_equal_enumeration(prompt):
    rewards, clusters = prompt
    hidden = [reward > 0 and i % 2 == 0 for i, reward in enumerate(rewards)]
    found = describe(rewards, clusters, hidden_M=hidden)
    for k in map(int, found["pass_at_k"]):
        sets = list(itertools.combinations(range(len(rewards)), k))
        for name, marked in (("pass_at_k", [r > 0 for r in rewards]), ("hidden_at_k", hidden)):
            expected = math.fsum(any(marked[i] for i in members) for members in sets) / len(sets)
            assert found[name][str(k)] == pytest.approx(expected, abs=1e-12)
    correct = [c for r, c in zip(rewards, clusters, strict=True) if r > 0]
    assert list(found["rarefied_correct"]) == [k for k in found["pass_at_k"] if int(k) <= len(correct)]
    for s, value in found["rarefied_correct"].items():
        counts = [len(set(members) - {DEGENERATE}) for members in itertools.combinations(correct, int(s))]
        assert value == pytest.approx(math.fsum(counts) / len(counts), abs=1e-12)


@pytest.mark.parametrize("num_samples", [64, 1000])
def test_pass_at_k_is_that_of_the_sets(num_samples):
    counts, ks = np.arange(0, num_samples + 1, 7)[:, None], np.array([1, 2, 5, num_samples // 2, num_samples])
    with jax.enable_x64(True):
        expected = np.asarray(pass_at_k(num_samples, counts, ks))
    found = [[any_of(num_samples, c, k) for k in ks.tolist()] for c in counts[:, 0].tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_one_problem():
    found = describe([1, 1, 0, 1, 1, 0], [4, 4, 5, 9, -1, -1], [0, 0, 1, 0, 0, 0])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found["pass_at_k"]) == list(found["majority_at_k"]) == ["1", "2", "4", "6"]
    assert found["pass_at_k"] == pytest.approx({"1": 2 / 3, "2": 14 / 15, "4": 1, "6": 1}, abs=1e-15)
    assert found["vote_share_at_k"]["6"] == pytest.approx(2 / 6)
    # Of the four correct ones two share a cluster and one has none: of two, 6 pairs have 1, 2, 1, 2, 1, 1 clusters.
    assert found["rarefied_correct"] == pytest.approx({"1": 3 / 4, "2": 8 / 6, "4": 2}, abs=1e-15)
    expected = {
        "num_samples": 6,
        "num_correct": 4,
        "coverage": 1.0,
        "distinct": 3.0,
        "distinct_correct": 2.0,
        "distinct_incorrect": 1.0,
        "distinct_correct_if_solved": 2.0,
        "degenerate_frac": 1 / 3,
        "truncated_frac": 1 / 6,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert "hidden_at_k" not in found


def test_a_problem_that_was_not_solved():
    found = describe([0, -1.0], [3, 3])
    assert (found["coverage"], found["distinct_correct"], found["distinct_incorrect"]) == (0, 0, 1)
    assert found["distinct_correct_if_solved"] is None
    assert found["rarefied_correct"] == {}


@pytest.mark.parametrize(
    ("rewards", "clusters", "truncated", "message"),
    [
        (np.ones((1, 3)), np.ones((1, 3), int), np.ones((1, 3)), r"\[M\]"),
        (np.ones(3), np.ones(2, int), np.ones(3), "equal shape"),
        (np.ones(0), np.ones(0, int), np.ones(0), "1 to 1000 samples"),
        (np.ones(1001), np.ones(1001, int), np.ones(1001), "1 to 1000 samples"),
        (np.ones(2), np.ones(2), np.ones(2), "integer ids, got float64"),
        (np.array([np.nan]), np.ones(1, int), np.ones(1), "finite"),
    ],
)
def test_bad_input_is_refused(rewards, clusters, truncated, message):
    with pytest.raises(ValueError, match=message):
        describe(rewards, clusters, truncated)
