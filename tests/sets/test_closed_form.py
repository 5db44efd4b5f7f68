"""Exact means over all subsets against enumeration, counting and exact binomials."""

import functools
import itertools

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
    pass_at_k,
)
from tests.sets import reference

OBJECTIVES = {
    "polychromic": (Polychromic, reference.polychromic),
    "polychromic_distinct": (functools.partial(Polychromic, require_distinct=True), reference.polychromic_distinct),
    "mean_reward": (MeanReward, reference.mean_reward),
    "pass_at_n": (PassAtN, reference.best_reward),
}
INT32 = np.iinfo(np.int32)


def _batched(objective, rewards_PN, clusters_PN, valid_PN, reduce="mean"):
    # Not jitted: operations compiled for one objective and set size serve all others, jitted functions would not.
    def one(rewards_N, clusters_N, valid_N):
        return marginal_advantages(objective, rewards_N, clusters_N, valid_N=valid_N, reduce=reduce)

    return jax.vmap(one)(rewards_PN, clusters_PN, valid_PN)


def _groups(num_prompts, num_generations, *, seed=0, dtype=np.float32):
    """Random groups that cover binary and real rewards, few and many clusters, any number of invalid members."""
    rng = np.random.default_rng(seed)
    shape = (num_prompts, num_generations)
    binary = rng.random((num_prompts, 1)) < 0.4
    rewards_PN = np.where(binary, rng.integers(0, 2, shape), rng.uniform(-2, 2, shape)).astype(dtype)
    num_clusters_P1 = rng.integers(1, num_generations + 2, (num_prompts, 1))
    clusters_PN = (rng.integers(0, 10**6, shape) % num_clusters_P1 - 1).astype(np.int32)
    valid_PN = rng.random(shape) < rng.choice([0.3, 0.8, 1.0], (num_prompts, 1))
    return rewards_PN, clusters_PN, valid_PN


def _exact(f, rewards_PN, clusters_PN, valid_PN, set_size, reduce="mean"):
    return np.array(
        [
            [float(a) for a in reference.advantages(f, r, c, set_size, valid=v, reduce=reduce)]
            for r, c, v in zip(rewards_PN, clusters_PN, valid_PN, strict=True)
        ]
    )


# One shape for most tests: compiling for another costs more than all the examples together.
N = 6


@pytest.mark.parametrize("set_size", range(1, N + 1))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_closed_form_is_enumeration(name, set_size):
    make, f = OBJECTIVES[name]
    groups = _groups(40, N)
    actual = _batched(make(set_size), *groups)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, _exact(f, *groups, set_size), rtol=0, atol=2e-6)


@pytest.mark.parametrize("set_size", [2, 5])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_closed_form_in_float64(name, set_size):
    make, f = OBJECTIVES[name]
    groups = _groups(40, N, dtype=np.float64)
    with jax.enable_x64(True):
        mean = _batched(make(set_size), *groups)
        total = _batched(make(set_size), *groups, reduce="sum")
    assert mean.dtype == total.dtype == np.float64
    np.testing.assert_allclose(mean, _exact(f, *groups, set_size), rtol=0, atol=1e-13)
    np.testing.assert_allclose(total, _exact(f, *groups, set_size, reduce="sum"), rtol=0, atol=1e-12)


def test_a_single_generation_has_nothing_to_be_compared_with():
    np.testing.assert_array_equal(marginal_advantages(Polychromic(1), np.ones(1), np.zeros(1, int)), [0])


class ClosedFormVariants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @settings(max_examples=30)
    @given(data=st.data())
    def test_closed_form_is_enumeration(self, data):
        # Hypothesis looks where random groups seldom are: ties, huge ids, nothing valid, rewards all the same.
        name = data.draw(st.sampled_from(sorted(OBJECTIVES)))
        set_size = data.draw(st.sampled_from([2, 4]))
        make, f = OBJECTIVES[name]

        def listed(elements):
            return data.draw(st.lists(elements, min_size=N, max_size=N))

        rewards_N = np.array(
            listed(st.sampled_from([0.0, 1.0]) | st.floats(-4, 4, width=32, allow_subnormal=False)), np.float32
        )
        ids = st.sampled_from([DEGENERATE, 0, 1, 2, -2, INT32.min, INT32.max])
        clusters_N = np.array(listed(ids), np.int32)
        valid_N = np.array(listed(st.booleans()), bool)
        advantages = self.variant(marginal_advantages, static_argnums=0)
        actual = advantages(make(set_size), rewards_N, clusters_N, valid_N=valid_N)
        exact = reference.advantages(f, rewards_N, clusters_N, set_size, valid=valid_N)
        np.testing.assert_allclose(actual, [float(a) for a in exact], rtol=0, atol=4e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_closed_form_is_our_enumeration(name):
    # The same through `sets_SM`, without the reference: the two paths of the package agree.
    objective = OBJECTIVES[name][0](4)
    rewards_PN, clusters_PN, valid_PN = _groups(40, N, seed=1)
    sets_SM = all_sets(N, 4)
    enumerated = jax.vmap(lambda r, c, v: marginal_advantages(objective, r, c, valid_N=v, sets_SM=sets_SM))
    expected = enumerated(rewards_PN, clusters_PN, valid_PN)
    np.testing.assert_allclose(_batched(objective, rewards_PN, clusters_PN, valid_PN), expected, rtol=0, atol=2e-6)


# N = 64, n = 16 has 4.9e14 sets: the reference counts them instead.


def _large_groups():
    rng = np.random.default_rng(5)
    rewards_PN = np.stack([rng.random(64) < p for p in (0.02, 0.3, 0.9)] + [rng.uniform(-1, 1, 64)])
    clusters_PN = np.stack([rng.integers(-1, count, 64) for count in (3, 8, 60, 20)]).astype(np.int32)
    return rewards_PN.astype(np.float32), clusters_PN


def _counted(name, rewards_PN, clusters_PN, set_size):
    result = []
    for rewards_N, clusters_N in zip(rewards_PN, clusters_PN, strict=True):
        if name == "pass_at_n":
            exact = reference.best_reward_advantages_by_counting(rewards_N, set_size)
        elif name == "mean_reward":
            num_generations = len(rewards_N)
            factor = (num_generations - set_size) / (set_size * (num_generations - 1))
            exact = [a * factor for a in reference.grpo(rewards_N)]
        else:
            exact = reference.polychromic_advantages_by_counting(
                rewards_N, clusters_N, set_size, require_distinct=name == "polychromic_distinct"
            )
        result.append([float(a) for a in exact])
    return np.array(result)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_counting_reference_is_enumeration(name):
    rewards_PN, clusters_PN, _ = _groups(15, 7, seed=2)
    exact = _exact(OBJECTIVES[name][1], rewards_PN, clusters_PN, np.ones((15, 7), bool), 3)
    np.testing.assert_allclose(_counted(name, rewards_PN, clusters_PN, 3), exact, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_accuracy_at_64_generations(name):
    objective = OBJECTIVES[name][0](16)
    rewards_PN, clusters_PN = _large_groups()
    valid_PN = np.ones(rewards_PN.shape, bool)
    exact = _counted(name, rewards_PN, clusters_PN, 16)
    single = _batched(objective, rewards_PN, clusters_PN, valid_PN)
    with jax.enable_x64(True):
        double = _batched(objective, rewards_PN.astype(np.float64), clusters_PN, valid_PN)
    assert single.dtype == np.float32
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, exact, rtol=0, atol=1e-12)
    # Rounding must stay below what counts as signal, |A| = 1e-6.
    np.testing.assert_allclose(single, double, rtol=0, atol=1e-6)


@pytest.mark.parametrize("require_distinct", [False, True])
def test_rounding_is_not_signal_at_64_generations(require_distinct):
    # All wrong; all right and all distinct; all right in one cluster; all right and degenerate: nothing to learn.
    rewards_PN = np.repeat(np.array([[0], [1], [1], [1]], np.float32), 64, axis=1)
    clusters_PN = np.stack([np.arange(64) % 9, np.arange(64), np.full(64, 3), np.full(64, DEGENERATE)])
    objective = Polychromic(16, require_distinct=require_distinct)
    advantages_PN = _batched(objective, rewards_PN, clusters_PN.astype(np.int32), np.ones((4, 64), bool))
    assert np.max(np.abs(advantages_PN)) < 1e-6


def test_pass_at_k_everywhere():
    grids = [np.meshgrid([m], np.arange(m + 1), np.arange(1, m + 1)) for m in (8, 64)]
    num_samples, num_correct, k = (np.concatenate([grid[i].ravel() for grid in grids]) for i in range(3))
    expected = np.vectorize(reference.pass_at_k)(num_samples, num_correct, k)
    actual = np.asarray(pass_at_k(num_samples, num_correct, k))
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    assert np.all(actual[num_correct == 0] == 0)
    assert np.all(actual[num_samples - num_correct < k] == 1)
    assert np.all((actual >= 0) & (actual <= 1))
    with jax.enable_x64(True):
        double = pass_at_k(num_samples, num_correct, k)
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, expected, rtol=0, atol=1e-12)


def test_pass_at_k_of_1024_samples():
    rng = np.random.default_rng(0)
    num_correct = np.concatenate([rng.integers(0, 1025, 500), rng.integers(1, 20, 500), [1, 1, 512, 1023, 1024]])
    k = np.concatenate([rng.integers(1, 1025, 500), 2 ** rng.integers(0, 11, 500), [1, 1024, 512, 1, 1]])
    expected = np.vectorize(reference.pass_at_k)(1024, num_correct, k)
    np.testing.assert_allclose(pass_at_k(1024, num_correct, k), expected, rtol=0, atol=1e-6)


class PassAtKVariants(chex.TestCase):
    @chex.all_variants(with_pmap=False)
    def test_arrays_broadcast(self):
        value = self.variant(pass_at_k)(np.array([[8], [10]]), np.array([[3], [0]]), np.array([[1, 2, 8]]))
        expected = [[reference.pass_at_k(8, 3, k) for k in (1, 2, 8)], [0, 0, 0]]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6)

    @chex.all_variants(with_pmap=False)
    def test_vmap(self):
        value = self.variant(jax.vmap(pass_at_k, in_axes=(None, 0, None)))(8, np.arange(9), 4)
        np.testing.assert_allclose(value, [reference.pass_at_k(8, c, 4) for c in range(9)], rtol=0, atol=1e-6)


def test_pass_at_k_of_python_integers_is_a_scalar():
    assert pass_at_k(8, 2, 3).shape == ()


def test_pass_at_k_is_the_mean_of_pass_at_n_over_all_sets():
    rewards_N = np.array([1, 0, 0, 1, 0, 0], np.float32)
    for n in (1, 3, 5):
        f = PassAtN(n)
        means_N = f.conditional_means(jnp.asarray(rewards_N), jnp.zeros(N, jnp.int32), jnp.ones(N, bool))
        np.testing.assert_allclose(np.mean(means_N), reference.pass_at_k(N, 2, n), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, -1, 2), "num_correct must be between 0 and num_samples = 8, got -1"),
        ((8, 9, 2), "num_correct must be between 0 and num_samples = 8, got 9"),
        ((8, 2, 0), "k must be between 1 and num_samples = 8, got 0"),
        ((8, 2, 9), "k must be between 1 and num_samples = 8, got 9"),
        ((8, np.array([1, 9]), 2), "num_correct must be between 0"),
        ((np.array([8, 4]), 2, np.array([5, 5])), "k must be between 1"),
    ],
)
def test_pass_at_k_refuses_impossible_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(*arguments)


def test_pass_at_k_is_nan_for_impossible_traced_numbers():
    values = jax.jit(pass_at_k)(8, np.array([-1, 2, 9, 2, 2]), np.array([2, 2, 2, 0, 9]))
    np.testing.assert_array_equal(np.isnan(values), [True, False, True, True, True])


def test_pass_at_k_takes_any_integer_type():
    expected = np.asarray(pass_at_k(200, np.arange(3), 4))
    for dtype in (np.int8, np.uint8, np.uint32):
        np.testing.assert_array_equal(pass_at_k(200, np.arange(3, dtype=dtype), dtype(4)), expected)


def test_enumeration_keeps_its_accuracy_with_many_sets():
    rng = np.random.default_rng(0)
    rewards, clusters = (rng.random((4, 16)) < 0.4).astype(np.float32), rng.integers(-1, 6, (4, 16))
    enumerated = jax.vmap(
        lambda r, c: marginal_advantages(Polychromic(8), r, c, sets_SM=all_sets(16, 8)),
    )(rewards, clusters)
    np.testing.assert_allclose(
        enumerated, _batched(Polychromic(8), rewards, clusters, np.ones((4, 16), bool)), atol=5e-7
    )


@pytest.mark.parametrize("require_distinct", [False, True])
def test_the_two_terms_of_equation_15(require_distinct):
    with jax.enable_x64(True):
        objective = Polychromic(3, require_distinct)
        rng = np.random.default_rng(3)
        for _ in range(5):
            rewards, clusters, valid = rng.normal(size=7), rng.integers(-1, 3, 7), rng.random(7) < 0.85
            sets = [G for G in itertools.combinations(range(7), 3) if valid[list(G)].all()]
            reward = np.array([rewards[list(G)].mean() for G in sets])
            distinct = np.array([len(set(clusters[list(G)]) - {DEGENERATE}) for G in sets])
            diversity = distinct / 3 * ((distinct >= 2) if require_distinct else 1)
            expected = np.zeros((2, 7))
            for i in np.flatnonzero(valid):
                with_i = np.array([i in G for G in sets])
                r, d = reward[with_i], diversity[with_i]
                expected[0, i] = r.mean() * d.mean() - reward.mean() * diversity.mean()
                covariance = (r * d).mean() - r.mean() * d.mean()
                expected[1, i] = covariance - ((reward * diversity).mean() - reward.mean() * diversity.mean())
            terms = objective.terms(*map(jnp.asarray, (rewards, clusters, valid)))
            np.testing.assert_allclose(terms, expected, atol=1e-12)
            advantages = marginal_advantages(objective, rewards, clusters, valid_N=valid)
            np.testing.assert_allclose(terms[0] + terms[1], advantages, atol=1e-12)
            scalars = SetAdvantage(objective).diagnostics(
                jax.random.key(0), *map(jnp.asarray, (rewards, clusters, valid))
            )
            assert float(scalars["objective"]) == pytest.approx((reward * diversity).mean())
            assert float(scalars["term1"]) == pytest.approx(np.abs(expected[0, valid]).mean())
