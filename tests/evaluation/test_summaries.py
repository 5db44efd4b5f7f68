"""Means over problems, and what becomes of numbers that some problems lack."""

import json

import numpy as np
import pytest

from polyepo_jax.evaluation import describe, summarize
from polyepo_jax.intervals import bootstrap


def test_an_entry_of_eval_json():
    problems = [
        describe([1, 1, 0, 1, 1, 0], [4, 4, 5, 9, -1, -1], [0, 0, 1, 0, 0, 0]),
        describe([0, 0, 0, 0, 0, 0], [2, 2, 2, 2, 2, -1], [1, 1, 0, 0, 0, 0]),
    ]
    summary = summarize(problems)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["pass_at_k"] == pytest.approx({"1": 1 / 3, "2": 7 / 15, "4": 0.5, "6": 0.5}, abs=1e-15)
    assert summary["vote_share_at_k"]["6"] == pytest.approx((2 / 6 + 5 / 6) / 2)
    expected = {
        "num_prompts": 2,
        "coverage": 0.5,
        "distinct": 2.0,
        "distinct_correct": 1.0,
        "distinct_incorrect": 1.0,
        "distinct_correct_if_solved": 2.0,
        "degenerate_frac": 0.25,
        "truncated_frac": 0.25,
    }
    assert {name: summary[name] for name in expected} == pytest.approx(expected)
    assert summary["rarefied_problems"] == {"1": 1, "2": 1, "4": 1}
    intervals = summary["intervals"]
    assert intervals["distinct_correct_if_solved"] is None
    assert intervals["pass_at_k"]["1"] == pytest.approx([0, 2 / 3])
    assert set(intervals) == set(summary) - {"num_prompts", "rarefied_problems", "intervals"}


def test_intervals_are_the_bootstrap_of_each_number():
    rng = np.random.default_rng(0)
    problems = [describe(rng.integers(0, 2, 4), rng.integers(-1, 3, 4)) for _ in range(50)]
    summary = summarize(problems)
    for name in ("pass_at_k", "majority_at_k"):
        values = np.array([[problem[name][k]] for problem in problems for k in ("2",)])
        np.testing.assert_allclose(summary["intervals"][name]["2"], bootstrap(values)[0], atol=1e-12)
        assert summary[name]["2"] == pytest.approx(values.mean(), abs=1e-12)


def test_curves_go_as_far_as_all_problems_do():
    summary = summarize([describe([1] * 6, [0] * 6), describe([1] * 8, [0] * 8)], with_intervals=False)
    assert list(summary["pass_at_k"]) == ["1", "2", "4"]
    assert list(summary["rarefied_correct"]) == ["1", "2", "4", "6", "8"]
    assert summary["rarefied_problems"] == {"1": 2, "2": 2, "4": 2, "6": 1, "8": 1}
    assert "intervals" not in summary


def test_nothing_was_ever_correct():
    summary = summarize([describe([0, 0], [0, 1]), describe([0, 0], [0, 0])])
    assert summary["rarefied_correct"] == summary["rarefied_problems"] == {}
    assert summary["distinct_correct_if_solved"] is None
    with pytest.raises(ValueError, match="at least 1 problem"):
        summarize([])
