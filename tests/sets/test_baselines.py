"""Advantages that weigh each generation by itself, and what counts as signal."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyepo_jax.sets import (
    DEGENERATE,
    GRPO,
    GRPODiv,
    LeaveOneOut,
    MaxRL,
    grpo_advantages,
    grpo_div_advantages,
    has_signal,
)
from tests.sets import reference as ref

KEY = jax.random.key(0)
N = 6
EVERYONE = np.ones(N, bool)

# name: the advantage, and its definition for rewards and cluster ids of valid generations.
BASELINES = {
    "grpo": (GRPO(), lambda rewards, clusters: ref.grpo(rewards)),
    "grpo_by_std": (GRPO(divide_by_std=True), lambda rewards, clusters: ref.grpo_by_std(rewards)),
    "leave_one_out": (LeaveOneOut(), lambda rewards, clusters: ref.leave_one_out(rewards)),
    "max_rl": (MaxRL(), lambda rewards, clusters: ref.max_rl(rewards)),
    "grpo_div": (GRPODiv(0.7), lambda rewards, clusters: ref.grpo_div(rewards, clusters, 0.7)),
}

# Eighths, so that a spread is none or large: a small one, divided by itself, would show the rounding of float32.
EIGHTHS = st.integers(-32, 32).map(lambda k: k / 8)
GRADES = st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1.0, 0.5])


@st.composite
def groups(draw, rewards=EIGHTHS):
    """rewards_N, clusters_N and valid_N; the grades of generations that are not valid may be anything."""

    def listed(elements):
        return draw(st.lists(elements, min_size=N, max_size=N))

    valid_N = np.array(draw(st.just([True] * N) | st.lists(st.booleans(), min_size=N, max_size=N)))
    rewards_N = np.array(listed(rewards), np.float32)
    if not np.all(valid_N):
        rewards_N = np.where(valid_N, rewards_N, np.array(listed(GRADES), np.float32))
    return rewards_N, np.array(listed(st.sampled_from([DEGENERATE, 0, 1, 2, -2])), np.int32), valid_N


def _floats(numbers):
    return np.array([float(a) for a in numbers])


def _assert_close(actual, expected, atol):
    np.testing.assert_allclose(np.asarray(actual, np.float64), np.asarray(expected, np.float64), rtol=0, atol=atol)


def _expected(name, rewards_N, clusters_N, valid_N):
    """The definition of the valid generations alone, and 0 for the others."""
    expected_N = np.zeros(len(rewards_N))
    if np.any(valid_N):
        expected_N[valid_N] = _floats(BASELINES[name][1](rewards_N[valid_N], clusters_N[valid_N]))
    return expected_N


class Definitions(chex.TestCase):
    """One shape throughout, so that each baseline compiles once."""

    def _assert_definition(self, name, group, atol):
        advantages_N = self.variant(BASELINES[name][0])(KEY, *group)
        assert advantages_N.dtype == np.float32
        _assert_close(advantages_N, _expected(name, *group), atol)

    @chex.variants(with_jit=True, without_jit=True)
    @settings(max_examples=40)
    @given(name=st.sampled_from(["grpo", "leave_one_out", "grpo_div"]), group=groups())
    def test_baselines_are_their_definitions(self, name, group):
        self._assert_definition(name, group, atol=4e-6)

    @chex.variants(with_jit=True, without_jit=True)
    @settings(max_examples=40)
    @given(group=groups(rewards=st.sampled_from([0.0, 1.0]) | EIGHTHS))
    def test_grpo_by_the_standard_deviation_is_its_definition(self, group):
        self._assert_definition("grpo_by_std", group, atol=2e-5)

    @chex.variants(with_jit=True, without_jit=True)
    @settings(max_examples=40)
    @given(group=groups(rewards=st.sampled_from([0.0, 1.0]) | EIGHTHS.map(abs)))
    def test_max_rl_is_its_definition(self, group):
        self._assert_definition("max_rl", group, atol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    @settings(max_examples=20)
    @given(group=groups(rewards=st.sampled_from([-0.125, 1.0, 0.0])))
    def test_max_rl_of_a_negative_reward_is_nan(self, group):
        rewards_N, _, valid_N = group
        advantages_N = np.asarray(self.variant(MaxRL())(KEY, *group))
        assert np.all(advantages_N[~valid_N] == 0)
        np.testing.assert_array_equal(np.isnan(advantages_N), valid_N & np.any(rewards_N[valid_N] < 0))

    @chex.variants(with_jit=True, without_jit=True)
    @settings(max_examples=20)
    @given(group=groups(), grade=GRADES, cluster=st.integers(-2, 2))
    def test_invalid_generations_change_nothing(self, group, grade, cluster):
        rewards_N, clusters_N, valid_N = group
        other_rewards_N = np.where(valid_N, rewards_N, np.float32(grade))
        other_clusters_N = np.where(valid_N, clusters_N, np.int32(cluster))
        for advantage, _ in BASELINES.values():
            one = np.asarray(self.variant(advantage)(KEY, *group))
            other = np.asarray(self.variant(advantage)(KEY, other_rewards_N, other_clusters_N, valid_N))
            np.testing.assert_array_equal(one, other)
            assert np.all(one[~valid_N] == 0)

    @chex.variants(with_jit=True)
    def test_vmap_is_a_loop(self):
        rng = np.random.default_rng(3)
        rewards_PN = rng.random((4, N)).astype(np.float32)
        clusters_PN = rng.integers(-1, 3, (4, N)).astype(np.int32)
        valid_PN = np.arange(N) < np.array([[6], [5], [1], [0]])
        for name, (advantage, _) in BASELINES.items():
            batched = self.variant(jax.vmap(functools.partial(advantage, KEY)))
            advantages_PN = batched(rewards_PN, clusters_PN, valid_PN)
            for actual_N, *group in zip(advantages_PN, rewards_PN, clusters_PN, valid_PN, strict=True):
                _assert_close(actual_N, _expected(name, *group), atol=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_float64_is_honoured(name):
    # Small rewards, next to which the 1e-6 of a denominator is large.
    rewards_N = np.array([1e-5, 3e-5, 0, 2e-5, 1.7e-5, 1])
    clusters_N = np.array([3, 3, 5, DEGENERATE, 7, 7], np.int32)
    valid_N = np.arange(6) < 5
    with jax.enable_x64(True):
        advantages_N = BASELINES[name][0](KEY, rewards_N, clusters_N, valid_N)
        single_N = BASELINES[name][0](KEY, rewards_N.astype(np.float32), clusters_N, valid_N)
    assert advantages_N.dtype == np.float64
    assert single_N.dtype == np.float32
    _assert_close(advantages_N, _expected(name, rewards_N, clusters_N, valid_N), atol=1e-13)


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"grpo_div"}))
def test_clusters_play_no_part(name):
    rewards_N = np.array([1, 0, 0.25, 1, 0, 2], np.float32)
    one, other = (BASELINES[name][0](KEY, rewards_N, clusters_N, EVERYONE) for clusters_N in (np.arange(N), np.ones(N)))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, 0.7, 1000.1])
@pytest.mark.parametrize("name", BASELINES)
def test_rounding_of_equal_rewards_is_not_signal(name, value):
    # One cluster, so that the bonus of GRPO+DIV is equal too. Each number of valid generations rounds its own way.
    valid_PN = np.arange(16) < np.arange(17)[:, None]
    rewards_PN = np.where(valid_PN, np.float32(value), np.float32(np.nan))
    batched = jax.jit(jax.vmap(functools.partial(BASELINES[name][0], KEY)))
    advantages_PN = np.asarray(batched(rewards_PN, np.full(rewards_PN.shape, 4), valid_PN))
    assert np.max(np.abs(advantages_PN)) < 1e-6
    assert not np.any(has_signal(advantages_PN))


@pytest.mark.parametrize("value", [0.1, 2.5])
@pytest.mark.parametrize("name", BASELINES)
def test_a_single_valid_generation_gets_zero(name, value):
    rewards_N = np.array([np.nan, value, 1, 0, 7, np.inf], np.float32)
    advantages_N = BASELINES[name][0](KEY, rewards_N, np.array([1, 1, 2, DEGENERATE, 1, 4]), np.arange(N) == 1)
    np.testing.assert_array_equal(advantages_N, np.zeros(N))


def test_known_numbers():
    rewards_N, clusters_N = np.array([1, 0, 0, 0], np.float32), np.array([5, 5, 5, 8])
    everyone = np.ones(4, bool)
    for advantage, expected in (
        (GRPO(), [0.75, -0.25, -0.25, -0.25]),
        (GRPO(divide_by_std=True), [1.5, -0.5, -0.5, -0.5]),  # the std is 1/2
        (LeaveOneOut(), [1, -1 / 3, -1 / 3, -1 / 3]),
        (MaxRL(), [3, -1, -1, -1]),
        # d = 1/9, 1/9, 1/9, 1: u = 10/9, 1/9, 1/9, 1, of mean 7/12.
        (GRPODiv(1.0), [10 / 9 - 7 / 12, 1 / 9 - 7 / 12, 1 / 9 - 7 / 12, 5 / 12]),
    ):
        _assert_close(advantage(KEY, rewards_N, clusters_N, everyone), expected, atol=2e-5)


def test_grpo_div_gives_degenerate_generations_no_bonus():
    clusters_N = np.array([DEGENERATE, DEGENERATE, 4, 9])
    # d = 0, 0, 1, 1: the mean bonus is 1/2.
    _assert_close(grpo_div_advantages(np.zeros(4, np.float32), clusters_N, 2.0), [-1, -1, 1, 1], atol=1e-6)
    all_degenerate = np.full(4, DEGENERATE)
    np.testing.assert_array_equal(grpo_div_advantages(np.zeros(4, np.float32), all_degenerate, 2.0), np.zeros(4))


def test_the_functions_take_all_generations_where_validity_is_not_given():
    rewards_N, clusters_N = np.array([1, 0, 0, 0.25, -3, 1], np.float32), np.array([1, 2, 1, DEGENERATE, 2, 0])
    _assert_close(grpo_advantages(rewards_N), _floats(ref.grpo(rewards_N)), atol=1e-6)
    exact = ref.grpo_div(rewards_N, clusters_N, 0.5)
    _assert_close(grpo_div_advantages(rewards_N, clusters_N, 0.5), _floats(exact), atol=1e-6)
    for actual, (advantage, _) in (
        (grpo_advantages(rewards_N), BASELINES["grpo"]),
        (grpo_div_advantages(rewards_N, clusters_N, 0.7), BASELINES["grpo_div"]),
    ):
        np.testing.assert_array_equal(actual, advantage(KEY, rewards_N, clusters_N, EVERYONE))


def test_rewards_need_not_be_floats():
    for rewards_N in (np.array([1, 0, 0, 1]), np.array([True, False, False, True])):
        advantages_N = LeaveOneOut()(KEY, rewards_N, np.arange(4), np.ones(4, bool))
        assert advantages_N.dtype == np.float32
        _assert_close(advantages_N, np.array([2, -2, -2, 2]) / 3, atol=1e-6)


R, C, V = np.zeros(5, np.float32), np.zeros(5, np.int32), np.ones(5, bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grpo_advantages(np.zeros((2, 4))), r"\(2, 4\).*jax.vmap"),
        (lambda: grpo_advantages(R, valid_N=V[:4]), r"got shapes \(5,\), \(5,\) and \(4,\)"),
        (lambda: grpo_div_advantages(R, C[:4], 0.5), r"got shapes \(5,\), \(4,\)"),
        (lambda: grpo_div_advantages(R, R, 0.5), "clusters_N must hold integer ids, got float32"),
        (lambda: LeaveOneOut()(KEY, np.zeros((2, 5)), C, V), r"\(2, 5\).*jax.vmap"),
        (lambda: MaxRL()(KEY, R, C, V[:3]), r"got shapes \(5,\), \(5,\) and \(3,\)"),
        (lambda: GRPO(divide_by_std=True)(KEY, R[:, None], C, V), r"\(5, 1\).*jax.vmap"),
        (lambda: GRPODiv(float("nan")), "weight must be finite, got nan"),
        (lambda: GRPODiv(float("inf")), "weight must be finite, got inf"),
    ],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_has_signal():
    below = np.nextafter(np.float32(1e-6), np.float32(0))
    advantages_PN = np.array(
        [
            [0, 0, 0],
            [below, -below, 0],
            [0, 1e-6, 0],
            [0, 0, -2e-6],
            [np.nan, 0, 0],
            [0.5, -0.5, np.nan],
            [0, -np.inf, 0],
        ],
        np.float32,
    )
    expected_P = [False, False, True, True, True, True, True]
    for signal_P in (
        has_signal(advantages_PN),
        has_signal(jnp.asarray(advantages_PN)),
        jax.jit(has_signal)(advantages_PN),
    ):
        np.testing.assert_array_equal(signal_P, expected_P)
    # The last axis is the group's, whatever others there are.
    assert has_signal(advantages_PN[0]).shape == ()
    np.testing.assert_array_equal(
        has_signal(np.stack([advantages_PN, 0 * advantages_PN[:1] + advantages_PN[::-1]])),
        [expected_P, expected_P[::-1]],
    )
