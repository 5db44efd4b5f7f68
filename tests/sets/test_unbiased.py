"""Proposition 3.1 without sampling: a policy over six outcomes, and every group it can generate.

E[sum_i grad log pi(y_i) A_i] = M grad E[f(y_1..y_n)]. The left side takes the package's advantages of all 6^N groups;
the right side is the derivative of a sum over all 6^n sets, whose scores come from definitions in plain Python.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyepo_jax.sets import (
    DEGENERATE,
    GRPO,
    DistinctCorrect,
    Diversity,
    LeaveOneOut,
    MajorityAtN,
    MaxRL,
    MeanReward,
    Minority,
    PassAtN,
    Polychromic,
    Product,
    SetAdvantage,
    Sum,
    Worst,
    marginal_advantages,
)
from tests.sets import reference

# Outcomes: correct in two strategies and in none, wrong in a strategy that also succeeds and in one that does not,
# and partly correct.
REWARDS = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.3])
CLUSTERS = np.array([7, 4, DEGENERATE, 7, -2, 4], np.int32)
NUM_OUTCOMES = len(REWARDS)
LOGITS = np.random.default_rng(0).normal(size=NUM_OUTCOMES)
PROBABILITIES = np.exp(LOGITS) / np.sum(np.exp(LOGITS))
# grad log pi(y) of a softmax: the indicator of y minus the probabilities, [outcome, logit].
SCORES = np.eye(NUM_OUTCOMES) - PROBABILITIES[None, :]
TOLERANCE = 1e-10


def spread_of_one_strategy(set_size):
    """A user's own plain function: how far the rewards lie apart where all members share a cluster id."""

    def f(rewards_M, clusters_M):
        return jnp.where(jnp.all(clusters_M == clusters_M[0]), jnp.max(rewards_M) - jnp.min(rewards_M), 0)

    f.set_size = set_size
    return f


# How an objective is made from its set size, and its definition.
OBJECTIVES = {
    "polychromic": (Polychromic, reference.polychromic),
    "polychromic_distinct": (functools.partial(Polychromic, require_distinct=True), reference.polychromic_distinct),
    "mean_reward": (MeanReward, reference.mean_reward),
    "pass_at_n": (PassAtN, reference.best_reward),
    "worst": (Worst, reference.worst_reward),
    "diversity": (Diversity, reference.diversity),
    "distinct_correct": (DistinctCorrect, reference.distinct_correct),
    "majority": (MajorityAtN, reference.majority),
    "minority": (Minority, reference.minority),
    "sum_in_closed_form": (
        lambda n: Sum((PassAtN(n), Diversity(n)), weights=(1.5, -0.25)),
        reference.weighted_sum((1.5, reference.best_reward), (-0.25, reference.diversity)),
    ),
    "sum_enumerated": (
        lambda n: Sum((MeanReward(n), Minority(n)), weights=(0.5, 2.0)),
        reference.weighted_sum((0.5, reference.mean_reward), (2, reference.minority)),
    ),
    "product": (
        lambda n: Product((PassAtN(n), Diversity(n))),
        reference.product(reference.best_reward, reference.diversity),
    ),
    "function": (
        spread_of_one_strategy,
        lambda rewards, clusters: max(rewards) - min(rewards) if len(set(clusters)) == 1 else 0,
    ),
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def tuples(length):
    """All tuples of outcomes, int[6^length, length]."""
    return np.array(list(itertools.product(range(NUM_OUTCOMES), repeat=length)))


def scores_of_sets(f, set_size, rewards=REWARDS):
    """f of every tuple, from exact arithmetic."""
    exact = [reference.Fraction(r) for r in rewards.tolist()]
    ids = CLUSTERS.tolist()
    return np.array([float(f([exact[y] for y in ys], [ids[y] for y in ys])) for ys in tuples(set_size).tolist()])


@functools.partial(jax.jit, static_argnums=2)
def gradient_of_sum(logits, scores, set_size):
    def expected(logits):
        return jnp.sum(jnp.prod(jax.nn.softmax(logits)[tuples(set_size)], axis=1) * scores)

    return jax.grad(expected)(logits)


def gradient_of_expectation(f, set_size, rewards=REWARDS):
    """grad E[f(y_1..y_n)] with respect to the logits."""
    return np.asarray(gradient_of_sum(LOGITS, scores_of_sets(f, set_size, rewards), set_size))


def on_all_groups(advantages, num_generations, rewards=REWARDS):
    """A function of one group's rewards and cluster ids, for every group."""
    groups = tuples(num_generations)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(advantages))(rewards[groups], CLUSTERS[groups]))


def expected_update(advantages):
    """E[sum_i grad log pi(y_i) A_i] from A of every group, [6^N, N]."""
    groups = tuples(advantages.shape[1])
    assert advantages.shape == groups.shape
    assert advantages.dtype == np.float64
    weights = np.prod(PROBABILITIES[groups], axis=1)[:, None] * advantages
    return np.sum(weights[:, :, None] * SCORES[groups], axis=(0, 1))


def choices_of_sets(num_generations, set_size, num_sets):
    """Every choice of K different sets, all equally likely: int32[choices, K, M]."""
    sets = itertools.combinations(range(num_generations), set_size)
    return np.array(list(itertools.combinations(sets, num_sets)), np.int32)


def factor(num_generations, set_size, num_sets, reduce):
    """M of Proposition 3.1; `num_sets` None stands for all of them."""
    N, n, K = num_generations, set_size, num_sets
    if K is None:
        return math.comb(N - 1, n) if reduce == "sum" else (N - n) / n
    T = math.comb(N, n)
    if reduce == "sum":
        return (1 - n / N) * (K - 1) * T / (T - 1)
    in_some_set = 1 - math.comb(T - math.comb(N - 1, n - 1), K) / math.comb(T, K)
    return (N * in_some_set - n) / n


@functools.cache
def set_advantages(name, num_generations, set_size, nums_sets):
    """The advantages of every group, {(K, reduce): [6^N, N]}; with K sets, their mean over all choices of K sets."""
    objective = OBJECTIVES[name][0](set_size)

    def of_group(rewards_N, clusters_N):
        result = []
        for num_sets, reduce in itertools.product(nums_sets, ("mean", "sum")):
            given = functools.partial(marginal_advantages, objective, rewards_N, clusters_N, reduce=reduce)
            if num_sets is None:
                result.append(given())
            else:
                choices = choices_of_sets(num_generations, set_size, num_sets)
                result.append(jnp.mean(jax.vmap(lambda sets_SM, f=given: f(sets_SM=sets_SM))(choices), axis=0))
        return result

    keys = itertools.product(nums_sets, ("mean", "sum"))
    return dict(zip(keys, on_all_groups(of_group, num_generations), strict=True))


SIZES = [(4, 2), pytest.param(4, 3, marks=pytest.mark.slow)]
NUMS_SETS = (None, 2, 3)


@pytest.mark.parametrize(("num_generations", "set_size"), SIZES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_expected_update_is_the_gradient_of_the_objective(name, num_generations, set_size):
    gradient = gradient_of_expectation(OBJECTIVES[name][1], set_size)
    assert np.max(np.abs(gradient)) > 1e-2
    for (num_sets, reduce), advantages in set_advantages(name, num_generations, set_size, NUMS_SETS).items():
        expected = factor(num_generations, set_size, num_sets, reduce) * gradient
        assert np.max(np.abs(expected)) > 1e-3
        np.testing.assert_allclose(
            expected_update(advantages), expected, rtol=0, atol=TOLERANCE, err_msg=f"{num_sets} sets, {reduce}"
        )


@pytest.mark.parametrize(("num_generations", "set_size"), SIZES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_expected_advantage_is_the_population_form(name, num_generations, set_size):
    # E[A_i | y_i] = (N - n) / N (E[f | y_i in the set] - E[f]): of N generations, i itself is in n / N of the sets.
    advantages = set_advantages(name, num_generations, set_size, NUMS_SETS)[None, "mean"]
    others = np.prod(PROBABILITIES[tuples(num_generations)[:, 1:]], axis=1)
    actual = np.sum((others * advantages[:, 0]).reshape(NUM_OUTCOMES, -1), axis=1)
    scores = scores_of_sets(OBJECTIVES[name][1], set_size)
    others = np.prod(PROBABILITIES[tuples(set_size)[:, 1:]], axis=1)
    given_outcome = np.sum((others * scores).reshape(NUM_OUTCOMES, -1), axis=1)
    expected = (given_outcome - PROBABILITIES @ given_outcome) * (num_generations - set_size) / num_generations
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["polychromic", "minority"])
def test_one_set_and_sets_of_all_generations_teach_nothing(name):
    for num_generations, set_size, num_sets in ((3, 2, 1), (3, 3, None)):
        for (_, reduce), advantages in set_advantages(name, num_generations, set_size, (num_sets,)).items():
            assert factor(num_generations, set_size, num_sets, reduce) == 0
            np.testing.assert_allclose(expected_update(advantages), 0, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["polychromic", "minority"])
def test_only_valid_generations_count(name):
    # Seven generations of which three could not be graded, whatever their grades: M is that of four.
    set_size, num_valid = 3, 4
    make, f = OBJECTIVES[name]
    objective = make(set_size)
    valid_N = np.array([True, False, True, True, False, True, False])
    valid_V = np.flatnonzero(valid_N).astype(np.int32)
    choices = valid_V[choices_of_sets(num_valid, set_size, 2)]

    def of_group(rewards_V, clusters_V):
        rewards_N = jnp.full(valid_N.shape, jnp.nan).at[valid_V].set(rewards_V)
        clusters_N = jnp.full(valid_N.shape, CLUSTERS[0]).at[valid_V].set(clusters_V)
        result = {}
        for reduce in ("mean", "sum"):
            given = functools.partial(
                marginal_advantages, objective, rewards_N, clusters_N, valid_N=valid_N, reduce=reduce
            )
            result["all", reduce] = given()
            result["two", reduce] = jnp.mean(jax.vmap(lambda sets_SM, f=given: f(sets_SM=sets_SM))(choices), axis=0)
            # More sets than four generations have: whatever the key, theirs are all drawn. Few and many of the 35 sets
            # of seven generations, since these are drawn differently.
            for num_sets in (6, 30):
                draw = SetAdvantage(objective, num_sets=num_sets, reduce=reduce)
                result[f"{num_sets} drawn", reduce] = draw(jax.random.key(0), rewards_N, clusters_N, valid_N)
        return result

    gradient = gradient_of_expectation(f, set_size)
    for (sets, reduce), advantages in on_all_groups(of_group, num_valid).items():
        assert np.all(advantages[:, ~valid_N] == 0)
        expected = factor(num_valid, set_size, 2 if sets == "two" else None, reduce) * gradient
        assert np.max(np.abs(expected)) > 1e-3
        np.testing.assert_allclose(
            expected_update(advantages[:, valid_N]), expected, rtol=0, atol=TOLERANCE, err_msg=f"{sets}, {reduce}"
        )


def of_baseline(advantage, num_generations, rewards=REWARDS):
    def of_group(rewards_N, clusters_N):
        return advantage(jax.random.key(0), rewards_N, clusters_N, jnp.ones(num_generations, bool))

    return expected_update(on_all_groups(of_group, num_generations, rewards))


@pytest.mark.parametrize("num_generations", [2, 4])
def test_grpo_and_leave_one_out_follow_the_mean_reward(num_generations):
    gradient = gradient_of_expectation(reference.mean_reward, 1)
    for advantage, multiple in ((GRPO(), num_generations - 1), (LeaveOneOut(), num_generations)):
        update = of_baseline(advantage, num_generations)
        np.testing.assert_allclose(update, multiple * gradient, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("num_generations", [2, 4])
def test_maxrl_follows_a_truncated_log_likelihood(num_generations):
    # log p = -sum_{k >= 1} (1 - p)^k / k. A group without a success has advantages 0, whose baseline is thus dropped
    # with probability (1 - p)^N: what remains of the series are its first N - 1 terms, of which N generations are paid.
    rewards = (REWARDS == 1).astype(float)

    def truncated(logits):
        p = jnp.sum(jax.nn.softmax(logits) * rewards)
        return -sum((1 - p) ** k / k for k in range(1, num_generations))

    gradient = np.asarray(jax.grad(truncated)(LOGITS))
    update = of_baseline(MaxRL(), num_generations, rewards)
    # 1e-6 is added to a mean reward of at least 1 / N.
    np.testing.assert_allclose(update / num_generations, gradient, rtol=0, atol=1e-6 * num_generations)


@pytest.mark.parametrize(("num_generations", "set_size"), [(2, 1), (4, 2), (5, 4), (8, 4), (24, 7)])
@pytest.mark.parametrize("p", [0.03, 0.5, 0.8])
def test_pass_at_n_of_a_success_probability(p, num_generations, set_size):
    N, n = num_generations, set_size
    num_others = np.arange(N)
    rewards_PN = (np.arange(N - 1)[None, :] < num_others[:, None]).astype(float)
    rewards_2PN = np.stack([np.insert(rewards_PN, 0, own, axis=1) for own in (1.0, 0.0)])
    advantages = pass_at_n_advantages(n, rewards_2PN.reshape(-1, N))[:, 0].reshape(2, N)
    chance = np.array([math.comb(N - 1, c) * p**c * (1 - p) ** (N - 1 - c) for c in range(N)])
    expected = np.array([(1 - p) ** n, (1 - p) ** n - (1 - p) ** (n - 1)]) * (N - n) / N
    np.testing.assert_allclose(advantages @ chance, expected, rtol=0, atol=TOLERANCE)


@functools.partial(jax.jit, static_argnums=0)
def pass_at_n_advantages(set_size, rewards_PN):
    def of_group(rewards_N):
        return marginal_advantages(PassAtN(set_size), rewards_N, jnp.zeros(rewards_N.shape, int))

    return jax.vmap(of_group)(rewards_PN)
