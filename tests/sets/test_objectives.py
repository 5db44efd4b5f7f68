"""Every objective against its definition: of one set, and of all sets of a group through advantages and means."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyepo_jax.sets import (
    DEGENERATE,
    DistinctCorrect,
    Diversity,
    MajorityAtN,
    MeanReward,
    Minority,
    PassAtN,
    Polychromic,
    Product,
    SetAdvantage,
    Sum,
    Worst,
    all_sets,
    marginal_advantages,
    mean_over_sets,
    sample_sets,
)
from tests.sets import reference as ref

INT32 = np.iinfo(np.int32)

# name: how it is made from n, its definition, and the largest |f| for rewards in [-1, 1], to scale rounding by.
OBJECTIVES = {
    "polychromic": (Polychromic, ref.polychromic, 1),
    "polychromic_distinct": (functools.partial(Polychromic, require_distinct=True), ref.polychromic_distinct, 1),
    "mean_reward": (MeanReward, ref.mean_reward, 1),
    "pass_at_n": (PassAtN, ref.best_reward, 1),
    "worst": (Worst, ref.worst_reward, 1),
    "diversity": (Diversity, ref.diversity, 1),
    "distinct_correct": (DistinctCorrect, ref.distinct_correct, 1),
    "majority": (MajorityAtN, ref.majority, 1),
    "minority": (Minority, ref.minority, 1),
    "sum_without_weights": (
        lambda n: Sum((MeanReward(n), Diversity(n), Worst(n))),
        ref.weighted_sum((1, ref.mean_reward), (1, ref.diversity), (1, ref.worst_reward)),
        3,
    ),
    "sum_of_closed_forms": (
        lambda n: Sum((PassAtN(n), Polychromic(n, True), DistinctCorrect(n)), (1.0, -2.0, 0.5)),
        ref.weighted_sum((1, ref.best_reward), (-2, ref.polychromic_distinct), (0.5, ref.distinct_correct)),
        3,
    ),
    "sum_of_some_closed_forms": (
        lambda n: Sum((MajorityAtN(n), MeanReward(n)), (-0.5, 2.0)),
        ref.weighted_sum((-0.5, ref.majority), (2, ref.mean_reward)),
        2.5,
    ),
    "sum_of_sums": (
        lambda n: Sum((Sum((Worst(n), Diversity(n)), (0.25, 1.0)), Polychromic(n)), (2.0, 1.0)),
        ref.weighted_sum((0.5, ref.worst_reward), (2, ref.diversity), (1, ref.polychromic)),
        3,
    ),
    "sum_of_a_product": (
        lambda n: Sum((Product((MeanReward(n), Diversity(n))), PassAtN(n)), (1.0, -0.25)),
        ref.weighted_sum((1, ref.polychromic), (-0.25, ref.best_reward)),
        1.5,
    ),
    "product": (
        lambda n: Product((PassAtN(n), DistinctCorrect(n), MeanReward(n))),
        ref.product(ref.best_reward, ref.distinct_correct, ref.mean_reward),
        4,
    ),
    "product_of_a_sum": (
        lambda n: Product((Sum((MeanReward(n), Worst(n)), (1.0, -1.0)), Minority(n))),
        ref.product(ref.weighted_sum((1, ref.mean_reward), (-1, ref.worst_reward)), ref.minority),
        8,
    ),
}
CLOSED = {
    *("polychromic", "polychromic_distinct", "mean_reward", "pass_at_n", "worst", "diversity", "distinct_correct"),
    *("sum_without_weights", "sum_of_closed_forms", "sum_of_sums"),
}

# Few shapes, each of which compiles once for each objective.
SHAPES = [(4, 2), (5, 3), (6, 4)]

# Whole numbers tie; XLA takes subnormal numbers for 0, and an objective asks whether a reward is positive.
REWARDS = st.integers(-4, 4).map(float) | st.floats(-4, 4, width=32, allow_subnormal=False)
IDS = st.sampled_from([DEGENERATE, 0, 1, 2, INT32.min, INT32.max])


@st.composite
def groups(draw, shapes=SHAPES):
    """n, and rewards_N, clusters_N, valid_N. At least n - 1 are valid; the grades of the others may be anything."""
    N, n = draw(st.sampled_from(shapes))
    rewards_N = np.array(draw(st.lists(REWARDS, min_size=N, max_size=N)), np.float32)
    clusters_N = np.array(draw(st.lists(IDS, min_size=N, max_size=N)), np.int32)
    valid_N = np.ones(N, bool)
    grades = st.sampled_from([np.nan, np.inf, 1e30, 2.0])
    for i, grade in draw(st.just([]) | st.lists(st.tuples(st.integers(0, N - 1), grades), max_size=N - n + 1)):
        rewards_N[i], valid_N[i] = grade, False
    return n, rewards_N, clusters_N, valid_N


@functools.partial(jax.jit, static_argnums=0)
def _advantages_and_mean(objective, rewards_N, clusters_N, valid_N):
    advantages = {
        reduce: marginal_advantages(objective, rewards_N, clusters_N, valid_N=valid_N, reduce=reduce)
        for reduce in ("mean", "sum")
    }
    return advantages, mean_over_sets(objective, rewards_N, clusters_N, valid_N=valid_N)


def _floats(fractions):
    return np.array([float(a) for a in fractions])


def _assert_close(actual, expected, atol):
    np.testing.assert_allclose(np.asarray(actual, np.float64), np.asarray(expected, np.float64), rtol=0, atol=atol)


def _assert_is_the_definition(name, group, reduce):
    make, f, scale = OBJECTIVES[name]
    n, *arrays = group
    advantages, mean = _advantages_and_mean(make(n), *arrays)
    rewards_N, clusters_N, valid_N = arrays
    assert advantages[reduce].dtype == mean.dtype == np.float32
    exact = ref.advantages(f, rewards_N, clusters_N, n, valid=valid_N, reduce=reduce)
    atol = 4e-6 * scale
    num_sets_of_one = math.comb(len(rewards_N) - 1, n - 1) if reduce == "sum" else 1
    _assert_close(advantages[reduce], _floats(exact), atol * num_sets_of_one)
    if valid_N.sum() >= n:
        _assert_close(mean, float(ref.mean_over_sets(f, rewards_N, clusters_N, n, valid=valid_N)), atol)


REDUCE = st.sampled_from(["mean", "sum"])


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=2000)
@given(group=groups(), reduce=REDUCE)
def test_thousands_of_groups_are_the_definition(name, group, reduce):
    _assert_is_the_definition(name, group, reduce)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=40)
@given(group=groups(shapes=[(5, 3)]), reduce=REDUCE)
def test_advantages_and_means_are_the_definition(name, group, reduce):
    _assert_is_the_definition(name, group, reduce)


def _random_groups(num_prompts, num_generations, *, seed, dtype=np.float32):
    """Groups of binary and of real rewards, of few clusters and of many, of which a tenth is not valid."""
    rng = np.random.default_rng(seed)
    shape = (num_prompts, num_generations)
    rewards_PN = np.where(rng.random((num_prompts, 1)) < 0.4, rng.integers(0, 2, shape), rng.uniform(-2, 2, shape))
    clusters_PN = rng.integers(0, 10**6, shape) % rng.integers(2, num_generations, (num_prompts, 1)) - 1
    return rewards_PN.astype(dtype), clusters_PN.astype(np.int32), rng.random(shape) < 0.9


def _assert_most_have_signal(advantages_PN):
    """Zeros compared with zeros would say nothing."""
    assert np.median(np.max(np.abs(advantages_PN), axis=1)) > 0.01


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_closed_forms_are_enumeration_of_hundreds_of_sets(name):
    objective = OBJECTIVES[name][0](5)

    @jax.jit
    @jax.vmap
    def both(rewards_N, clusters_N, valid_N):
        group = objective, rewards_N, clusters_N
        return [
            (marginal_advantages(*group, valid_N=valid_N, **sets), mean_over_sets(*group, valid_N=valid_N, **sets))
            for sets in ({}, {"sets_SM": all_sets(12, 5)})
        ]

    with jax.enable_x64(True):
        groups = _random_groups(6, 12, seed=1, dtype=np.float64)
        (closed_PN, closed_P), (enumerated_PN, enumerated_P) = both(*groups)
    assert closed_PN.dtype == enumerated_PN.dtype == closed_P.dtype == np.float64
    _assert_close(closed_PN, enumerated_PN, atol=1e-10)
    _assert_close(closed_P, enumerated_P, atol=1e-10)
    _assert_most_have_signal(closed_PN)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_means_have_a_closed_form_where_every_part_has_one(name):
    closed_form = getattr(OBJECTIVES[name][0](3), "conditional_means", None)
    assert (closed_form is not None) == (name in CLOSED)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - CLOSED))
def test_float64_is_honoured_where_sets_are_enumerated(name):
    make, f, _ = OBJECTIVES[name]
    rewards_N = np.array([0.7, -0.1, 1.3, 0, 0.3])
    clusters_N, valid_N = np.array([2, 2, 5, 8, DEGENERATE], np.int32), np.ones(5, bool)
    with jax.enable_x64(True):
        advantages, mean = _advantages_and_mean(make(3), rewards_N, clusters_N, valid_N)
    assert advantages["mean"].dtype == advantages["sum"].dtype == mean.dtype == np.float64
    exact = ref.advantages(f, rewards_N, clusters_N, 3)
    assert any(exact)
    _assert_close(advantages["mean"], _floats(exact), atol=1e-13)
    _assert_close(mean, float(ref.mean_over_sets(f, rewards_N, clusters_N, 3)), atol=1e-13)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_float32_stays_float32_under_x64(name):
    group = np.ones(5, np.float32), np.zeros(5, np.int32), np.ones(5, bool)
    with jax.enable_x64(True):
        shapes = jax.eval_shape(functools.partial(_advantages_and_mean, OBJECTIVES[name][0](3)), *group)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}


# Of one set, by hand: rewards, clusters as letters (. is degenerate), f.
OF_ONE_SET = [
    (MajorityAtN(4), [1, 0, 1, 1], "AABC", 0.5),
    (MajorityAtN(4), [1, 0, 1, 1], "AABB", 0.75),
    (MajorityAtN(4), [1, 0, 0.5, 0], "A.B.", 0.75),
    (MajorityAtN(4), [1, 1, 1, -2], "...A", -2),
    (MajorityAtN(4), [1, 1, 1, 1], "....", 0),
    (Minority(4), [1, 0, 1, 0.5], "AABC", 0.75),
    (Minority(4), [1, 0, 1, 1], "AABB", 0.75),
    (Minority(4), [1, 1, 0, 0.5], "AAAB", 0.5),
    (Minority(4), [9, 0.25, 0.75, 1], ".AAA", 2 / 3),
    (Minority(4), [1, 1, 1, 1], "....", 0),
    (DistinctCorrect(4), [1, 0, 1, 1], "AABB", 0.5),
    (DistinctCorrect(4), [0, 0, 1, 1], "AABB", 0.25),
    (DistinctCorrect(4), [1, 0.5, -1, 1], "ABC.", 0.5),
    (DistinctCorrect(4), [0, -1, 0, 0], "ABCD", 0),
    (Worst(4), [0.5, -2, 3, 0], "AABC", -2),
    (Worst(4), [0.5, 2, 0.25, 1], "AB.A", 0.25),
    (Diversity(4), [-3, 0, 0, 0], "AAB.", 0.5),
    (Diversity(4), [1, 1, 1, 1], "....", 0),
    (PassAtN(4), [-3, -1, -2, -3], "A.BB", -1),
    (MeanReward(4), [1, 0, 0, 2], "A..B", 0.75),
    (Polychromic(4), [1, 0, 1, 1], "AAB.", 0.375),
    (Polychromic(4), [1, 0, 1, 1], "AAA.", 0.1875),
    (Polychromic(4, require_distinct=True), [1, 0, 1, 1], "AAB.", 0.375),
    (Polychromic(4, require_distinct=True), [1, 0, 1, 1], "AAA.", 0),
    (Sum((Worst(4), Diversity(4))), [0.5, -2, 3, 0], "AAB.", -1.5),
    (Sum((Worst(4), Diversity(4), PassAtN(4)), (2.0, 0.0, -1.0)), [0.5, -2, 3, 0], "AAB.", -7),
    (Product((Worst(4), Diversity(4), PassAtN(4))), [0.5, -2, 3, 0], "AAB.", -3),
    (Product((MajorityAtN(4),)), [1, 0, 3, 7], "AAB.", 0.5),
]


@pytest.mark.parametrize(("objective", "rewards", "letters", "expected"), OF_ONE_SET)
def test_of_one_set(objective, rewards, letters, expected):
    clusters_M = jnp.array([DEGENERATE if c == "." else ord(c) for c in letters])
    value = objective(jnp.array(rewards, jnp.float32), clusters_M)
    assert value.shape == ()
    _assert_close(value, expected, atol=1e-6)


@pytest.mark.parametrize("kind", [MeanReward, PassAtN, Worst, Diversity, DistinctCorrect, MajorityAtN, Minority])
@pytest.mark.parametrize("set_size", [0, -1, 2.0, "4"])
def test_a_set_size_that_is_no_positive_integer_is_refused(kind, set_size):
    with pytest.raises(ValueError, match=f"set_size must be an integer of at least 1, got {set_size}"):
        kind(set_size)


def spread(rewards_M, clusters_M):
    """A user's objective: a plain function with an attribute."""
    return jnp.max(rewards_M) - jnp.min(rewards_M)


spread.set_size = 3


def total(rewards_M, clusters_M):
    """Without a set_size."""
    return jnp.sum(rewards_M)


@pytest.mark.parametrize("kind", [Sum, Product])
@pytest.mark.parametrize(
    "parts",
    [
        (MeanReward(3), Diversity(4)),
        (MeanReward(4), spread),
        (MeanReward(3), Sum((Worst(4), Diversity(4)))),
        [MeanReward(3), Diversity(3)],
        (MeanReward(3), total),
        (total,),
        (),
        MeanReward(3),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(kind, parts):
    with pytest.raises(ValueError, match=f"{kind.__name__} takes a tuple of objectives that all have the same set_siz"):
        kind(parts)


@pytest.mark.parametrize("weights", [(), (1.0,), (1.0, 2.0, 3.0)])
def test_a_wrong_number_of_weights_is_refused(weights):
    with pytest.raises(ValueError, match="Sum takes a weight for each of its 2 parts, as a tuple, got"):
        Sum((MeanReward(3), Diversity(3)), weights)


def test_combinations_take_functions():
    group = np.array([0.5, -2, 3, 1, 1], np.float32), np.array([7, 7, 4, DEGENERATE, 9], np.int32), np.ones(5, bool)
    f = ref.weighted_sum((1, ref.best_reward), (-1, ref.worst_reward))
    for combination, whole in (
        (Sum((spread, MajorityAtN(3)), (1.0, 3.0)), ref.weighted_sum((1, f), (3, ref.majority))),
        (Product((spread, Diversity(3))), ref.product(f, ref.diversity)),
    ):
        assert combination.set_size == 3
        assert getattr(combination, "conditional_means", None) is None
        advantages, _ = _advantages_and_mean(combination, *group)
        _assert_close(advantages["mean"], _floats(ref.advantages(whole, *group[:2], 3)), atol=1e-5)


# Identities, which need no reference.


@functools.partial(jax.jit, static_argnums=0)
def _batched(objective, rewards_PN, clusters_PN, valid_PN):
    def one(rewards_N, clusters_N, valid_N):
        return marginal_advantages(objective, rewards_N, clusters_N, valid_N=valid_N)

    return jax.vmap(one)(rewards_PN, clusters_PN, valid_PN)


def test_polychromic_is_the_product_of_mean_reward_and_diversity():
    groups = _random_groups(20, 7, seed=5)
    product_PN = _batched(Product((MeanReward(4), Diversity(4))), *groups)
    _assert_close(product_PN, _batched(Polychromic(4), *groups), atol=2e-6)
    _assert_most_have_signal(product_PN)
    # The variant with the indicator is another objective, which these groups tell apart.
    distinct_PN = np.asarray(_batched(Polychromic(4, require_distinct=True), *groups))
    assert np.max(np.abs(product_PN - distinct_PN)) > 0.01


def test_worst_is_pass_at_n_of_the_negated_rewards():
    rewards_PN, *rest = _random_groups(20, 7, seed=6)
    worst_PN = _batched(Worst(4), rewards_PN, *rest)
    _assert_close(worst_PN, -_batched(PassAtN(4), -rewards_PN, *rest), atol=1e-6)
    _assert_most_have_signal(worst_PN)


def test_distinct_correct_of_correct_generations_is_diversity():
    rewards_PN, *rest = _random_groups(20, 7, seed=7)
    diversity_PN = _batched(Diversity(4), rewards_PN, *rest)
    np.testing.assert_array_equal(_batched(DistinctCorrect(4), np.abs(rewards_PN) + 0.5, *rest), diversity_PN)
    _assert_most_have_signal(diversity_PN)


@pytest.mark.parametrize("kind", [MajorityAtN, Minority])
def test_of_one_cluster_majority_and_minority_are_the_mean_reward(kind):
    rewards_PN, _, valid_PN = _random_groups(20, 7, seed=8)
    groups = rewards_PN, np.full((20, 7), 3, np.int32), valid_PN
    advantages_PN = _batched(kind(4), *groups)
    _assert_close(advantages_PN, _batched(MeanReward(4), *groups), atol=2e-6)
    _assert_most_have_signal(advantages_PN)


def test_majority_at_3_of_five_answers():
    # Answers A A B B C, A is right. Of the ten sets: AAx three times gives 1, BBx three times 0, ABC four times 1/3.
    rewards_N, clusters_N = np.array([1, 1, 0, 0, 0], np.float32), np.array([7, 7, 4, 4, 9], np.int32)
    _assert_close(mean_over_sets(MajorityAtN(3), rewards_N, clusters_N), (3 + 4 / 3) / 10, atol=1e-6)


# Means over sets, and what is logged of them.


@pytest.mark.parametrize("name", ["polychromic", "majority", "sum_of_closed_forms", "product"])
def test_the_mean_over_given_sets(name):
    make, f, scale = OBJECTIVES[name]
    rewards_PN, clusters_PN, valid_PN = _random_groups(8, 6, seed=9)
    sets_SM = np.asarray(all_sets(6, 3))[::3]
    # Nothing is left of sets that all hold a generation that is not valid.
    valid_PN[0] = ~np.isin(np.arange(6), [0, 3])
    sets_PSM = np.tile(sets_SM, (8, 1, 1))
    sets_PSM[0] = np.where(np.any(np.isin(sets_SM, [0, 3]), axis=1, keepdims=True), sets_SM, [0, 1, 2])

    def one(r, c, v, s):
        return mean_over_sets(make(3), r, c, valid_N=v, sets_SM=s)

    actual_P = jax.jit(jax.vmap(one))(rewards_PN, clusters_PN, valid_PN, sets_PSM)
    exact = [
        ref.mean_over_sets(f, r, c, sets=s, valid=v)
        for r, c, v, s in zip(rewards_PN, clusters_PN, valid_PN, sets_PSM, strict=True)
    ]
    _assert_close(actual_P, _floats(exact), atol=2e-6 * scale)
    assert actual_P[0] == 0
    assert np.median(np.abs(actual_P)) > 0.01


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_mean_over_no_sets_is_zero(name):
    # Two valid generations make no set of three.
    valid_N = np.array([True, False, True, False, False])
    group = np.ones(5, np.float32), np.arange(5, dtype=np.int32), valid_N
    _, mean = _advantages_and_mean(OBJECTIVES[name][0](3), *group)
    assert float(mean) == 0


def test_the_mean_over_sets_refuses_what_advantages_refuse():
    group = np.zeros(5, np.float32), np.zeros(5, np.int32)
    with pytest.raises(ValueError, match=r"set_size must be between 1 and the 5 .*got 6"):
        mean_over_sets(Worst(6), *group)
    with pytest.raises(ValueError, match=r"has no set_size: .*or pass sets_SM"):
        mean_over_sets(total, *group)
    with pytest.raises(ValueError, match=r"Minority.* has no closed form and C\(64, 16\) = 488526937079580 sets"):
        mean_over_sets(Minority(16), np.zeros(64), np.zeros(64, int))


def _diagnosed(advantage, keys_P, groups):
    scalars = jax.jit(jax.vmap(advantage.diagnostics))(keys_P, *groups)
    return {name: np.asarray(value_P) for name, value_P in scalars.items()}


@functools.lru_cache
def _sampler(num_generations, set_size, num_sets):
    """(keys_P, valid_PN) -> the sets of each prompt, [P, K, M]."""
    return jax.jit(jax.vmap(lambda key, valid_N: sample_sets(key, num_generations, set_size, num_sets, valid_N)))


@pytest.mark.parametrize("name", ["polychromic", "polychromic_distinct", "worst", "minority"])
def test_diagnostics(name):
    make, f, scale = OBJECTIVES[name]
    num_prompts = 8
    keys_P = jax.random.split(jax.random.key(3), num_prompts)
    rewards_PN, clusters_PN, valid_PN = _random_groups(num_prompts, 6, seed=10)
    valid_PN[0], valid_PN[1] = np.arange(6) < 3, np.arange(6) != 2
    groups = np.where(valid_PN, rewards_PN, np.nan).astype(np.float32), clusters_PN, valid_PN
    is_polychromic = name.startswith("polychromic")
    for num_sets in (None, 5):
        scalars = _diagnosed(SetAdvantage(make(3), num_sets=num_sets), keys_P, groups)
        assert scalars.keys() == {"objective", "too_few_valid_frac"} | ({"term1", "term2"} if is_polychromic else set())
        assert scalars["too_few_valid_frac"].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
        # Where a closed form gives the mean over all sets, no sample takes its place.
        sampled = num_sets is not None and name not in CLOSED
        sets = _sampler(6, 3, num_sets)(keys_P, valid_PN) if sampled else [None] * num_prompts
        for p, (r, c, v) in enumerate(zip(*groups, strict=True)):
            if p == 0:  # too few are valid: nothing of it has a meaning
                assert np.isnan(scalars["objective"][p])
                continue
            exact = ref.mean_over_sets(f, r, c, 3, sets=None if sets[p] is None else np.asarray(sets[p]), valid=v)
            _assert_close(scalars["objective"][p], float(exact), atol=4e-6 * scale)
            if is_polychromic:
                terms = ref.two_terms(r, c, 3, valid=v, require_distinct=name == "polychromic_distinct")
                for term, values in zip(("term1", "term2"), terms, strict=True):
                    _assert_close(scalars[term][p], float(sum(map(abs, values)) / int(v.sum())), atol=2e-6)
        if is_polychromic:
            assert np.isnan(scalars["term1"][0])
            assert np.isnan(scalars["term2"][0])
            assert np.sum(scalars["term1"] > 0.01) > 2
            assert np.sum(scalars["term2"] > 0.001) > 2


@pytest.mark.parametrize("name", ["polychromic_distinct", "majority"])
def test_groups_of_too_few_valid_generations_have_no_advantages(name):
    # n valid generations make one set, which there is nothing to compare with; one more, and there is.
    valid_PN = np.arange(6) < np.arange(6)[:, None]
    rewards_PN = np.where(valid_PN, np.array([2, -1, 0.5, 1, -3, 4], np.float32), np.nan)
    clusters_PN = np.tile(np.array([3, 5, 4, 3, 5, DEGENERATE], np.int32), (6, 1))
    keys_P = jax.random.split(jax.random.key(0), 6)
    for num_sets in (None, 5):
        advantage = SetAdvantage(OBJECTIVES[name][0](3), num_sets=num_sets)
        advantages_PN = jax.jit(jax.vmap(advantage))(keys_P, rewards_PN, clusters_PN, valid_PN)
        np.testing.assert_array_equal(advantages_PN[:4], np.zeros((4, 6)))
        assert np.all(np.max(np.abs(advantages_PN[4:]), axis=1) > 0.01)
    scalars = _diagnosed(SetAdvantage(Worst(3)), keys_P, (rewards_PN, clusters_PN, valid_PN))
    np.testing.assert_array_equal(scalars["too_few_valid_frac"], [1, 1, 1, 1, 0, 0])


# Sampled sets.


@pytest.mark.parametrize(("name", "reduce"), [("majority", "mean"), ("sum_of_closed_forms", "sum")])
def test_sampled_advantages_are_those_of_the_sampled_sets(name, reduce):
    make, f, scale = OBJECTIVES[name]
    N, n, num_sets, num_prompts = 8, 3, 5, 12
    keys_P = jax.random.split(jax.random.key(1), num_prompts)
    rewards_PN, *groups = _random_groups(num_prompts, N, seed=11)
    valid_PN = groups[1]
    valid_PN[:3] = np.arange(N) < np.array([[4], [5], [8]])  # 4 valid generations: fewer sets than are asked for
    sampled = jax.jit(jax.vmap(SetAdvantage(make(n), num_sets=num_sets, reduce=reduce)))
    unknown_PN, huge_PN = (
        sampled(keys_P, np.where(valid_PN, rewards_PN, grade).astype(np.float32), *groups) for grade in (np.nan, 1e30)
    )
    np.testing.assert_array_equal(unknown_PN, huge_PN)

    @jax.jit
    @jax.vmap
    def given(r, c, v, s):
        return marginal_advantages(make(n), r, c, sets_SM=s, valid_N=v, reduce=reduce)

    sets_PSM = np.asarray(_sampler(N, n, num_sets)(keys_P, valid_PN))
    _assert_close(unknown_PN, given(rewards_PN, *groups, sets_PSM), atol=1e-6 * scale)
    _assert_most_have_signal(unknown_PN)
    alone = False
    for actual_N, r, c, v, s in zip(np.asarray(unknown_PN), rewards_PN, *groups, sets_PSM, strict=True):
        used = [G for G in s.tolist() if v[G].all()]
        assert len(set(map(tuple, used))) == min(num_sets, math.comb(int(v.sum()), n))
        exact = _floats(ref.advantages(f, r, c, sets=used, reduce=reduce))
        _assert_close(actual_N, exact, atol=4e-6 * scale * (1 if reduce == "mean" else num_sets))
        in_no_set = sorted(set(range(N)) - set(itertools.chain(*used)))
        assert np.all(actual_N[in_no_set] == 0)
        alone |= bool(np.any(v[in_no_set]))
    assert alone, "every valid generation is in some set: another seed would show more"


@pytest.mark.parametrize("name", ["polychromic", "minority"])
def test_a_sample_of_all_sets_is_all_sets(name):
    groups = _random_groups(8, 6, seed=12)
    objective = OBJECTIVES[name][0](3)
    drawn = jax.jit(jax.vmap(SetAdvantage(objective, num_sets=math.comb(6, 3))))
    drawn_PN = drawn(jax.random.split(jax.random.key(2), 8), *groups)
    _assert_close(drawn_PN, _batched(objective, *groups), atol=2e-6)
    _assert_most_have_signal(drawn_PN)
