"""Marginal advantages: golden numbers, symmetries, sampled sets, and the objectives users bring."""

import dataclasses
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyepo_jax.sets import (
    DEGENERATE,
    MeanReward,
    PassAtN,
    Polychromic,
    SetAdvantage,
    all_sets,
    marginal_advantages,
    sample_sets,
)
from tests.sets import reference

INT32 = np.iinfo(np.int32)


@dataclasses.dataclass(frozen=True)
class DistinctAmongCorrect:
    """A user's objective: a dataclass without a closed form."""

    set_size: int = 3

    def __call__(self, rewards_M, clusters_M):
        rank_M = jnp.arange(rewards_M.shape[0])
        correct_M = (rewards_M > 0) & (clusters_M != DEGENERATE)
        same_MM = (clusters_M[:, None] == clusters_M[None, :]) & correct_M[:, None] & correct_M[None, :]
        repeated_M = jnp.any(same_MM & (rank_M[None, :] < rank_M[:, None]), axis=1)
        return jnp.sum(correct_M & ~repeated_M) / rewards_M.shape[0]


def _distinct_among_correct(rewards, clusters):
    return reference.Fraction(
        len({c for r, c in zip(rewards, clusters, strict=True) if r > 0 and c != DEGENERATE}), len(rewards)
    )


def spread(rewards_M, clusters_M):
    """A user's objective: a plain function with an attribute."""
    return jnp.max(rewards_M) - jnp.min(rewards_M)


spread.set_size = 3


def median_of_three(rewards_M, clusters_M):
    """A user's objective: a plain function, whose sets the caller gives."""
    return jnp.median(rewards_M)


def count_correct(rewards_M, clusters_M):
    """A user's objective that returns an integer."""
    return jnp.sum(rewards_M > 0)


PAIRS = {
    "polychromic": (Polychromic(3), reference.polychromic),
    "polychromic_distinct": (Polychromic(3, require_distinct=True), reference.polychromic_distinct),
    "mean_reward": (MeanReward(3), reference.mean_reward),
    "pass_at_n": (PassAtN(3), reference.best_reward),
    "dataclass": (DistinctAmongCorrect(3), _distinct_among_correct),
    "function": (spread, lambda rewards, clusters: max(rewards) - min(rewards)),
}
N = 6


def _floats(fractions):
    return np.array([float(a) for a in fractions])


def _assert_close(actual, expected, atol=4e-6):
    np.testing.assert_allclose(np.asarray(actual, np.float64), np.asarray(expected, np.float64), rtol=0, atol=atol)


# XLA takes subnormal numbers for 0, and an objective may ask whether a reward is positive.
REWARDS = st.sampled_from([0.0, 1.0]) | st.floats(-4, 4, width=32, allow_subnormal=False)
IDS = st.sampled_from([DEGENERATE, 0, 1, 2, -2, INT32.min, INT32.max])


@st.composite
def groups(draw, rewards=REWARDS, num_generations=N):
    """rewards_N, clusters_N."""
    rewards_N = draw(st.lists(rewards, min_size=num_generations, max_size=num_generations))
    clusters_N = draw(st.lists(IDS, min_size=num_generations, max_size=num_generations))
    return np.array(rewards_N, np.float32), np.array(clusters_N, np.int32)


NAMES = st.sampled_from(["polychromic", "polychromic_distinct", "pass_at_n", "dataclass"])
EVERYONE = np.ones(N, bool)
VALID = st.lists(st.booleans(), min_size=N, max_size=N).map(np.array)


class Properties(chex.TestCase):
    """One shape throughout, (N, n) = (6, 3), so that each objective compiles once."""

    def _advantages(self):
        advantages = self.variant(marginal_advantages, static_argnums=0, static_argnames="reduce")

        # A default that is left out and one that is given are two functions to `jax.jit`.
        def with_defaults(objective, rewards_N, clusters_N, valid_N=EVERYONE, reduce="mean", **sets):
            return advantages(objective, rewards_N, clusters_N, valid_N=valid_N, reduce=reduce, **sets)

        return with_defaults

    @chex.variants(with_jit=True, without_jit=True)
    @settings(max_examples=30)
    @given(name=NAMES, group=groups(), valid_N=VALID | st.just(EVERYONE), reduce=st.sampled_from(["mean", "sum"]))
    def test_advantages_are_the_definition(self, name, group, valid_N, reduce):
        objective, f = PAIRS[name]
        actual = self._advantages()(objective, *group, valid_N=valid_N, reduce=reduce)
        assert actual.dtype == np.float32
        _assert_close(actual, _floats(reference.advantages(f, *group, 3, valid=valid_N, reduce=reduce)), atol=2e-5)

    @chex.variants(with_jit=True, without_jit=True)
    @settings(max_examples=15)
    @given(name=NAMES, group=groups(), order=st.permutations(range(N)))
    def test_permuting_generations_permutes_advantages(self, name, group, order):
        advantages = self._advantages()
        objective, order = PAIRS[name][0], np.array(order)
        rewards_N, clusters_N = group
        permuted = advantages(objective, rewards_N[order], clusters_N[order])
        _assert_close(permuted, np.asarray(advantages(objective, *group))[order])

    @chex.variants(with_jit=True, without_jit=True)
    @settings(max_examples=15)
    @given(
        name=NAMES,
        group=groups(),
        new_ids=st.lists(
            st.integers(INT32.min, INT32.max).filter(lambda c: c != DEGENERATE), min_size=N, max_size=N, unique=True
        ),
    )
    def test_relabelling_clusters_changes_nothing(self, name, group, new_ids):
        advantages = self._advantages()
        rewards_N, clusters_N = group
        labels = dict(zip(sorted(set(clusters_N.tolist()) - {DEGENERATE}), new_ids, strict=False))
        relabelled_N = np.array([labels.get(c, DEGENERATE) for c in clusters_N.tolist()], np.int32)
        before = advantages(PAIRS[name][0], rewards_N, clusters_N)
        after = advantages(PAIRS[name][0], rewards_N, relabelled_N)
        np.testing.assert_array_equal(before, after)

    @chex.variants(with_jit=True, without_jit=True)
    @settings(max_examples=15)
    @given(name=NAMES, group=groups(), valid_N=VALID)
    def test_advantages_over_all_sets_sum_to_zero(self, name, group, valid_N):
        advantages_N = self._advantages()(PAIRS[name][0], *group, valid_N=valid_N)
        _assert_close(np.sum(advantages_N), 0, atol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    @settings(max_examples=15)
    @given(require_distinct=st.booleans(), group=groups(rewards=st.just(0.0)), valid_N=VALID)
    def test_polychromic_gives_wrong_groups_zero(self, require_distinct, group, valid_N):
        objective = Polychromic(3, require_distinct=require_distinct)
        np.testing.assert_array_equal(self._advantages()(objective, *group, valid_N=valid_N), np.zeros(N))

    @chex.variants(with_jit=True, without_jit=True)
    @settings(max_examples=15)
    @given(name=NAMES, group=groups(), grades=groups(rewards=st.sampled_from([np.nan, np.inf, 1e30])), valid_N=VALID)
    def test_invalid_generations_change_nothing(self, name, group, grades, valid_N):
        # Whatever their grades: as if they had been removed, with 0 in their places.
        advantages = self._advantages()
        objective, f = PAIRS[name]
        rewards_N, clusters_N = (np.where(valid_N, real, other) for real, other in zip(group, grades, strict=True))
        actual = np.asarray(advantages(objective, rewards_N, clusters_N, valid_N=valid_N))
        assert np.all(actual[~valid_N] == 0)
        if valid_N.sum() > 3:
            removed = reference.advantages(f, rewards_N[valid_N], clusters_N[valid_N], 3)
            _assert_close(actual[valid_N], _floats(removed))
        else:
            np.testing.assert_array_equal(actual, np.zeros(N))

    @chex.variants(with_jit=True, without_jit=True)
    @settings(max_examples=15)
    @given(
        name=NAMES,
        group=groups(),
        valid_N=VALID | st.just(EVERYONE),
        reduce=st.sampled_from(["mean", "sum"]),
        sets=st.lists(st.sampled_from(list(itertools.combinations(range(N), 3))), min_size=4, max_size=4, unique=True),
    )
    def test_given_sets_are_the_definition(self, name, group, valid_N, reduce, sets):
        objective, f = PAIRS[name]
        sets_SM = np.array(sets, np.int32)
        actual = self._advantages()(objective, *group, valid_N=valid_N, sets_SM=sets_SM, reduce=reduce)
        _assert_close(actual, _floats(reference.advantages(f, *group, sets=sets, valid=valid_N, reduce=reduce)))
        if reduce == "sum":
            _assert_close(np.sum(actual), 0, atol=1e-5)

    @chex.variants(with_jit=True)
    def test_vmap_is_a_loop(self):
        rng = np.random.default_rng(3)
        rewards_PN = rng.random((4, N)).astype(np.float32)
        clusters_PN = rng.integers(-1, 3, (4, N)).astype(np.int32)
        valid_PN = rng.random((4, N)) < 0.8
        sets_PSM = np.stack([all_sets(N, 3)[start : start + 5] for start in range(4)])
        for name in ("polychromic_distinct", "dataclass"):
            objective, f = PAIRS[name]

            def one(r, c, v, s, objective=objective):
                everything = marginal_advantages(objective, r, c, valid_N=v)
                return everything, marginal_advantages(objective, r, c, valid_N=v, sets_SM=s)

            exact_PN, given_PN = self.variant(jax.vmap(one))(rewards_PN, clusters_PN, valid_PN, sets_PSM)
            for p, (r, c, v, s) in enumerate(zip(rewards_PN, clusters_PN, valid_PN, sets_PSM, strict=True)):
                _assert_close(exact_PN[p], _floats(reference.advantages(f, r, c, 3, valid=v)))
                _assert_close(given_PN[p], _floats(reference.advantages(f, r, c, sets=s, valid=v)))


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("name", PAIRS)
def test_float64_is_honoured_over_given_sets(name, reduce):
    objective, f = PAIRS[name]
    rng = np.random.default_rng(4)
    rewards_N = rng.uniform(-1, 1, N)
    clusters_N = rng.integers(-1, 3, N).astype(np.int32)
    sets_SM = np.asarray(all_sets(N, 3))[::5]
    with jax.enable_x64(True):
        actual = marginal_advantages(objective, rewards_N, clusters_N, sets_SM=sets_SM, reduce=reduce)
    assert actual.dtype == np.float64
    expected = reference.advantages(f, rewards_N, clusters_N, sets=sets_SM, reduce=reduce)
    _assert_close(actual, _floats(expected), atol=1e-13)


@pytest.mark.parametrize("name", ["dataclass", "function"])
def test_float64_is_honoured_where_sets_are_enumerated(name):
    objective, f = PAIRS[name]
    rewards_N, clusters_N = np.linspace(-1, 0.7, N), np.array([1, 1, 2, 3, -1, 3], np.int32)
    with jax.enable_x64(True):
        actual = marginal_advantages(objective, rewards_N, clusters_N)
    assert actual.dtype == np.float64
    _assert_close(actual, _floats(reference.advantages(f, rewards_N, clusters_N, 3)), atol=1e-13)


# Known numbers of the paper's recipe, N = 8, n = 4; clusters as letters.
FIVE_CORRECT = [1, 1, 1, 1, 1, 0, 0, 0]
GOLDEN = {
    "all_wrong": ([0] * 8, "AABBCDEF", False, [0.0] * 8),
    "all_wrong_indicator": ([0] * 8, "AABBCDEF", True, [0.0] * 8),
    "all_right_6_1_1": ([1] * 8, "AAAAAABC", False, [-0.0357] * 6 + [0.1071] * 2),
    "five_right_4_1_1_1_1": (FIVE_CORRECT, "AAAABCDE", False, [-0.0036] * 4 + [0.0839] + [-0.0232] * 3),
    "five_right_5_1_1_1": (FIVE_CORRECT, "AAAAABCD", False, [0.0] * 8),
    "five_right_5_1_1_1_indicator": (FIVE_CORRECT, "AAAAABCD", True, [-0.0107] * 5 + [0.0179] * 3),
}


@pytest.mark.parametrize("path", ["closed_form", "enumeration"])
@pytest.mark.parametrize("case", GOLDEN)
def test_golden_numbers(case, path):
    rewards, letters, require_distinct, expected = GOLDEN[case]
    objective = Polychromic(set_size=4, require_distinct=require_distinct)
    sets_SM = all_sets(8, 4) if path == "enumeration" else None
    actual = marginal_advantages(objective, np.array(rewards), np.array([ord(c) for c in letters]), sets_SM=sets_SM)
    _assert_close(actual, expected, atol=5.1e-5)  # the numbers are rounded to four digits
    if not any(expected):
        _assert_close(actual, expected, atol=1e-6)


def test_golden_wrong_one_alone_gets_a_positive_advantage():
    advantages_N = marginal_advantages(Polychromic(4), np.array([1] * 7 + [0]), np.array([5] * 7 + [6]))
    _assert_close(advantages_N[-1], 0.0625, atol=1e-6)


def test_golden_all_clusters_distinct_is_a_seventh_of_grpo():
    rewards_N = np.array([1, 0, 0, 1, 1, 0, 1, 0], np.float32)
    actual = marginal_advantages(Polychromic(4), rewards_N, np.arange(8))
    _assert_close(actual, _floats(reference.grpo(rewards_N)) / 7, atol=1e-6)


def test_polychromic_of_single_generations_is_grpo():
    rewards_N = np.array([0.5, 0, -1, 1, 1, 0], np.float32)
    clusters_N = np.array([2, 2, 7, 2, 3, 7])
    actual = marginal_advantages(Polychromic(1), rewards_N, clusters_N)
    _assert_close(actual, _floats(reference.grpo(rewards_N)), atol=1e-6)
    np.testing.assert_array_equal(marginal_advantages(Polychromic(1, True), rewards_N, clusters_N), np.zeros(6))


@pytest.mark.parametrize("set_size", range(1, N + 1))
def test_mean_reward_is_grpo_up_to_a_factor(set_size):
    rewards_N = np.array([1, 0, 0, 0.25, -3, 1], np.float32)
    factor = (N - set_size) / (set_size * (N - 1))
    actual = marginal_advantages(MeanReward(set_size), rewards_N, np.zeros(N, np.int32))
    _assert_close(actual, _floats(reference.grpo(rewards_N)) * factor, atol=1e-6)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_a_generation_in_no_set_gets_zero(reduce):
    rewards_N = np.array([1, 0, 1, 0, 1, 1], np.float32)
    sets_SM = np.array([[0, 1, 2], [1, 2, 3], [0, 2, 3], [0, 1, 3]])
    advantages_N = marginal_advantages(Polychromic(3), rewards_N, np.arange(6), sets_SM=sets_SM, reduce=reduce)
    assert np.all(np.asarray(advantages_N)[4:] == 0)
    assert np.any(np.asarray(advantages_N)[:4] != 0)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_a_set_with_an_invalid_member_is_left_out(reduce):
    rewards_N = np.array([1, 0, 1, np.nan, 1, 0], np.float32)
    clusters_N = np.array([0, 0, 1, 2, 1, 3])
    valid_N = np.array([1, 1, 1, 0, 1, 1], bool)
    sets_SM = np.array([[0, 1, 2], [1, 2, 3], [0, 4, 5], [3, 4, 5]])

    def given(sets_SM, valid_N=valid_N):
        return marginal_advantages(
            Polychromic(3), rewards_N, clusters_N, sets_SM=sets_SM, valid_N=valid_N, reduce=reduce
        )

    np.testing.assert_array_equal(given(sets_SM), given(sets_SM[[0, 2]]))
    assert np.any(np.asarray(given(sets_SM)) != 0)
    np.testing.assert_array_equal(given(sets_SM[[1, 3]]), np.zeros(6))


def test_sum_is_mean_times_the_sets_of_a_generation():
    rewards_N = np.array([1, 0, 1, 0, 1, 1, 0, 0], np.float32)
    valid_N = np.array([1, 1, 1, 1, 1, 1, 0, 1], bool)
    mean_N, sum_N = (
        marginal_advantages(Polychromic(4), rewards_N, np.arange(8) // 2, valid_N=valid_N, reduce=reduce)
        for reduce in ("mean", "sum")
    )
    _assert_close(sum_N, np.asarray(mean_N) * math.comb(6, 3), atol=1e-5)


@pytest.mark.parametrize("objective", [median_of_three, count_correct, Polychromic(99)])
def test_given_sets_need_no_set_size(objective):
    # The sets say how large they are, whatever the objective's own set_size.
    rewards_N = np.array([0.5, -1, 3, 0.25], np.float32)
    functions = {
        median_of_three: lambda rewards, clusters: sorted(rewards)[1],
        count_correct: lambda rewards, clusters: sum(r > 0 for r in rewards),
    }
    actual = marginal_advantages(objective, rewards_N, np.arange(4), sets_SM=all_sets(4, 3))
    f = functions.get(objective, reference.polychromic)
    _assert_close(actual, _floats(reference.advantages(f, rewards_N, np.arange(4), 3)))


@pytest.mark.parametrize("rewards", [[True, False, True, False, False, False], [1, 0, 1, 0, 0, 0]])
def test_rewards_need_not_be_floats(rewards):
    actual = marginal_advantages(MeanReward(1), np.array(rewards), np.arange(6))
    assert actual.dtype == np.float32
    _assert_close(actual, [2 / 3, -1 / 3, 2 / 3, -1 / 3, -1 / 3, -1 / 3])


R, C = np.zeros(5, np.float32), np.zeros(5, np.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: marginal_advantages(Polychromic(4), np.zeros((2, 5)), np.zeros((2, 5), int)), r"\(2, 5\).*jax.vmap"),
        (lambda: marginal_advantages(Polychromic(4), R, C[:4]), r"got shapes \(5,\), \(4,\) and \(5,\)"),
        (lambda: marginal_advantages(Polychromic(4), R, R), "clusters_N must hold integer ids, got float32"),
        (lambda: marginal_advantages(Polychromic(4), R, C, valid_N=np.ones(4, bool)), r"\(5,\), \(5,\) and \(4,\)"),
        (lambda: marginal_advantages(Polychromic(4), R, C, valid_N=True), r"\(5,\), \(5,\) and \(\)"),
        (lambda: marginal_advantages(Polychromic(2), R, C, sets_SM=[[0, 5]]), "indices 0 .. 4"),
        (lambda: marginal_advantages(Polychromic(2), R, C, sets_SM=[[0, -1]]), "indices 0 .. 4"),
        (lambda: marginal_advantages(Polychromic(6), R, C), "set_size must be between 1 and the 5 .*got 6"),
        (lambda: marginal_advantages(DistinctAmongCorrect(6), R, C), "set_size must be between 1 and the 5 .*got 6"),
        (lambda: marginal_advantages(median_of_three, R, C), "has no set_size: .*or pass sets_SM"),
        (lambda: marginal_advantages(Polychromic(4), R, C, reduce="max"), "reduce must be 'mean' or 'sum', got 'max'"),
        (lambda: SetAdvantage(Polychromic(4), reduce="max"), "reduce must be 'mean' or 'sum', got 'max'"),
        (lambda: marginal_advantages(Polychromic(4), R, C, sets_SM=np.arange(4)), r"sets_SM must be .*int\d+\[4\]"),
        (lambda: marginal_advantages(Polychromic(4), R, C, sets_SM=np.zeros((1, 4))), r"sets_SM must be .*float"),
        (
            lambda: marginal_advantages(DistinctAmongCorrect(16), np.zeros(64), np.zeros(64, int)),
            r"no closed form and C\(64, 16\) = 488526937079580 sets.*sets_SM=sample_sets",
        ),
        (
            lambda: marginal_advantages(MeanReward(100), np.zeros(200), np.zeros(200, int), reduce="sum"),
            "overflows float32: use reduce='mean'",
        ),
        (lambda: Polychromic(0), "set_size must be an integer of at least 1, got 0"),
    ],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("advantage", "message"),
    [
        (SetAdvantage(Polychromic(8)), "less than num_generations = 8.*got 8"),
        (SetAdvantage(Polychromic(9)), "less than num_generations = 8.*got 9"),
        (SetAdvantage(Polychromic(4), num_sets=1), r"num_sets must be between 2 .*C\(8, 4\) = 70.*got 1"),
        (SetAdvantage(Polychromic(4), num_sets=0), "num_sets must be between 2 .*got 0"),
        (SetAdvantage(Polychromic(4), num_sets=71), r"C\(8, 4\) = 70.*got 71"),
        (SetAdvantage(median_of_three), "needs an attribute set_size"),
    ],
)
def test_set_advantage_refuses_groups_without_signal(advantage, message):
    with pytest.raises(ValueError, match=message):
        advantage.check(8)


def test_advantages_that_can_learn_are_accepted():
    for advantage in (
        SetAdvantage(Polychromic(4)),
        SetAdvantage(Polychromic(7), num_sets=2),
        SetAdvantage(Polychromic(4), num_sets=70),
        SetAdvantage(spread, num_sets=56),
    ):
        advantage.check(8)


def test_set_advantage_calls_the_function():
    rng = np.random.default_rng(6)
    key, rewards_N = jax.random.key(0), rng.random(N).astype(np.float32)
    clusters_N, valid_N = np.array([1, 2, 1, -1, 2, 0], np.int32), np.array([1, 1, 1, 1, 1, 0], bool)
    grades = (rewards_N, clusters_N, valid_N)
    objective, f = Polychromic(3), reference.polychromic
    everything = reference.advantages(f, rewards_N, clusters_N, 3, valid=valid_N)
    _assert_close(SetAdvantage(objective)(key, *grades), _floats(everything))
    sets_SM = np.asarray(sample_sets(key, N, 3, 4, valid_N))
    assert valid_N[sets_SM].all()
    sampled = reference.advantages(f, rewards_N, clusters_N, sets=sets_SM, valid=valid_N, reduce="sum")
    assert any(sampled)
    _assert_close(SetAdvantage(objective, num_sets=4, reduce="sum")(key, *grades), _floats(sampled))


@pytest.mark.parametrize(("num_generations", "set_size"), [(8, 4), (16, 8), (64, 16)])
@pytest.mark.parametrize("given", [False, True])
def test_a_sum_over_very_many_sets_makes_no_signal_of_rounding(num_generations, set_size, given):
    # One cluster never has two: f is 0 for every set, whatever the rewards.
    rewards_N = np.random.default_rng(0).random(num_generations).astype(np.float32)
    clusters_N = np.zeros(num_generations, np.int32)
    sets_SM = sample_sets(jax.random.key(0), num_generations, set_size, 60) if given else None
    advantages_N = marginal_advantages(
        Polychromic(set_size, require_distinct=True), rewards_N, clusters_N, sets_SM=sets_SM, reduce="sum"
    )
    np.testing.assert_array_equal(advantages_N, np.zeros(num_generations))
