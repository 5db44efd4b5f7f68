"""Bootstrap intervals: how often they hold the truth, and what they are where that can be said exactly."""

import numpy as np
import pytest

from polyepo_jax.intervals import bootstrap


@pytest.mark.parametrize(
    ("num_problems", "draw", "mean"),
    [
        (10, lambda rng, shape: rng.normal(size=shape), 0.0),
        (40, lambda rng, shape: rng.beta(0.5, 0.5, size=shape), 0.5),  # problems that are easy or hard
        (100, lambda rng, shape: rng.random(shape) < 0.2, 0.2),
    ],
)
def test_intervals_cover_at_their_rate(num_problems, draw, mean):
    """1,000 benchmarks of problems drawn from a known distribution; binomial error of the rate: 0.7 points."""
    intervals = bootstrap(draw(np.random.default_rng(0), (num_problems, 1000)))
    covered = (intervals[:, 0] <= mean) & (mean <= intervals[:, 1])
    assert 0.92 <= covered.mean() <= 0.975
    assert (intervals[:, 1] < mean).mean() == pytest.approx((mean < intervals[:, 0]).mean(), abs=0.03)


def test_a_plain_percentile_interval_of_few_problems_is_wider_for_its_tails():
    values = np.arange(5.0)
    low, high = bootstrap(values[:, None])[0]
    means = np.array(np.meshgrid(*[values] * 5)).reshape(5, -1).mean(0)  # of all 5^5 draws
    tail = 0.00095  # Phi(-sqrt(5 / 4) * 2.776), with Student's t of 4 degrees of freedom
    assert low == pytest.approx(np.quantile(means, tail), abs=0.21)
    assert high == pytest.approx(np.quantile(means, 1 - tail), abs=0.21)
    assert low < np.quantile(means, 0.025)
    assert high > np.quantile(means, 0.975)


def test_pairs_are_tighter_than_runs_apart():
    rng = np.random.default_rng(1)
    difficulty = rng.random((60, 1))
    first, second = difficulty + 0.05, difficulty + rng.normal(0, 0.02, (60, 1))
    paired = bootstrap(second - first)[0]
    assert paired[1] < 0
    assert np.ptp(paired) < 0.2 * np.ptp(bootstrap(first)[0])


def test_the_same_problems_are_drawn_for_all_values():
    values = np.random.default_rng(2).random((30, 1))
    alone, negative = bootstrap(np.hstack([values, -values]))
    np.testing.assert_allclose(alone, -negative[::-1], atol=1e-12)


def test_problems_without_a_value_are_left_out():
    values = np.random.default_rng(3).random((40, 1))
    with_gaps = np.vstack([values, np.full((400, 1), np.nan)])
    np.testing.assert_allclose(bootstrap(with_gaps)[0], bootstrap(values)[0], atol=0.03)
    assert np.isnan(bootstrap([[1.0], [np.nan]])).all()
    assert np.isnan(bootstrap(np.zeros((1, 2)))).all()
    np.testing.assert_array_equal(bootstrap(np.ones((9, 1))), [[1, 1]])


@pytest.mark.parametrize(
    ("values", "level", "message"),
    [([1.0], 0.95, r"\[P, K\]"), ([[np.inf], [0]], 0.95, "1 infinite"), ([[1.0]], 1.0, "level")],
)
def test_bad_input_is_refused(values, level, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(values, level)
