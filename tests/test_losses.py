"""Losses against their formulas, and what may be held in memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyepo_jax.losses import (
    PolicyLoss,
    SupervisedLoss,
    clipped_token_losses,
    importance_weights,
    kl_estimates,
    token_logprobs,
)


def array_shapes(jaxpr):
    """Shapes of every intermediate value of a jaxpr, inner ones included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield tuple(variable.aval.shape)
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, (list, tuple)) else [parameter]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from array_shapes(inner)


@pytest.mark.parametrize("chunk_length", [1, 4, 5, 100])
@pytest.mark.parametrize("num_wanted", [None, 10, 6, 0])
def test_token_logprobs_and_their_gradient_equal_the_unchunked_ones(chunk_length, num_wanted):
    rng = np.random.default_rng(0)
    wanted = jnp.broadcast_to(jnp.arange(10) < (10 if num_wanted is None else num_wanted), (2, 10))
    hidden, table = rng.normal(size=(2, 10, 6)).astype(np.float32), rng.normal(size=(6, 9)).astype(np.float32)
    targets = rng.integers(0, 9, (2, 10))
    weights = rng.normal(size=(2, 10)).astype(np.float32)

    def chunked(hidden, table):
        logprobs = token_logprobs(lambda p, _, h: h @ p, table, hidden, targets, chunk_length, num_wanted)
        return jnp.sum(jnp.where(wanted, weights * logprobs, 0))

    def plain(hidden, table):
        logprobs = jax.nn.log_softmax(hidden @ table)
        chosen = jnp.take_along_axis(logprobs, targets[..., None], axis=2)[..., 0]
        return jnp.sum(jnp.where(wanted, weights * chosen, 0))

    actual = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(hidden, table)
    expected = jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(hidden, table)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)


def test_no_array_of_all_logits_exists_in_forward_or_backward():
    B, T, D, V, C = 3, 64, 5, 101, 16
    table = jnp.ones((D, V))

    def loss(hidden, table):
        return jnp.sum(token_logprobs(lambda p, _, h: h @ p, table, hidden, jnp.zeros((B, T), int), C))

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(jnp.ones((B, T, D)), table).jaxpr
    sizes = [int(np.prod(shape)) for shape in array_shapes(jaxpr)]
    assert B * C * V in sizes  # one chunk is held: the walk sees inside the loops
    assert max(sizes) < B * T * V


def reference_clipped(ratio, advantage, low, high, dual_clip):
    objective = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    if dual_clip is not None and advantage < 0:
        objective = max(objective, dual_clip * advantage)
    return -objective


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_clipped_loss_is_the_formula_and_clipped_tokens_have_no_gradient(dual_clip):
    ratios = np.array([0.05, 0.5, 0.79, 0.81, 1.0, 1.27, 1.29, 2.0, 3.5, 40.0])
    for advantage in (-0.7, 0.0, 1.3):

        def losses(logprobs, advantage=advantage):
            return clipped_token_losses(
                logprobs, jnp.zeros(10), jnp.full(10, advantage), epsilon=0.2, epsilon_high=0.28, dual_clip=dual_clip
            )

        logprobs = jnp.log(jnp.array(ratios, jnp.float32))
        values, clipped = losses(logprobs)
        expected = [reference_clipped(r, advantage, 0.2, 0.28, dual_clip) for r in ratios]
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
        gradient = np.diagonal(jax.jacobian(lambda x: losses(x)[0])(logprobs))
        if advantage:
            np.testing.assert_array_equal(gradient == 0, clipped)
            np.testing.assert_allclose(
                gradient[~np.asarray(clipped)], (-advantage * ratios)[~np.asarray(clipped)], rtol=1e-5
            )
        else:
            assert not np.any(clipped)


def test_extreme_log_ratios_stay_finite():
    logprobs, old = jnp.array([-1e30, 0.0, -3e38]), jnp.array([0.0, -500.0, -1.0])
    for advantage in (-1.0, 1.0):

        def total(x, advantage=advantage):
            return jnp.sum(clipped_token_losses(x, old, jnp.full(3, advantage), epsilon=0.2, epsilon_high=0.2)[0])

        value, gradient = jax.value_and_grad(total)(logprobs)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


def test_kl_estimate_is_unbiased_and_not_negative():
    p, q = np.array([0.1, 0.2, 0.7]), np.array([0.3, 0.3, 0.4])
    estimates = np.asarray(kl_estimates(jnp.log(p), jnp.log(q)))
    assert np.all(estimates >= 0)
    assert np.sum(p * estimates) == pytest.approx(np.sum(p * np.log(p / q)), rel=1e-5)


def row(loss, mask, advantage=0.5, logprobs=None):
    logprobs = jnp.linspace(-2, -0.1, 6) if logprobs is None else logprobs
    old = jnp.linspace(-1.8, -0.2, 6)
    return row_of(loss, logprobs, old, old + 0.1, old - 0.3, advantage, jnp.array(mask))


def row_of(loss, logprobs, sampler, proximal, reference, advantage, mask):
    """The loss of a row, its denominator included, and its sums."""
    losses, sums = loss.tokens(logprobs, sampler, proximal, reference, jnp.full(mask.shape, advantage), mask)
    return jnp.sum(losses) * loss.token_weights(jnp.sum(mask)[None], mask.size)[0], sums


def test_denominators():
    mask = np.array([True, True, True, False, False, False])
    losses, _ = clipped_token_losses(
        jnp.linspace(-2, -0.1, 6), jnp.linspace(-1.8, -0.2, 6), jnp.full(6, 0.5), epsilon=0.2, epsilon_high=0.28
    )
    total = float(jnp.sum(losses[:3]))
    assert float(row(PolicyLoss(), mask)[0]) == pytest.approx(total / 6)
    assert float(row(PolicyLoss(denominator="completion_length"), mask)[0]) == pytest.approx(total / 3)
    assert float(row(PolicyLoss(denominator="completion_length"), mask * False)[0]) == 0


def test_beta_adds_the_kl_penalty():
    mask = np.ones(6, bool)
    plain, _ = row(PolicyLoss(), mask)
    penalised, sums = row(PolicyLoss(beta=0.1), mask)
    kl = kl_estimates(jnp.linspace(-2, -0.1, 6), jnp.linspace(-1.8, -0.2, 6) - 0.3)
    assert float(penalised - plain) == pytest.approx(0.1 * float(jnp.mean(kl)), rel=1e-4)
    assert float(sums["kl"]) == pytest.approx(float(jnp.sum(kl)), rel=1e-5)


def test_importance_cap_weighs_tokens_and_clips_to_the_proximal_policy():
    random = np.random.default_rng(0)
    logprobs, sampler, proximal = (random.normal(size=8) * 0.7 - 2 for _ in range(3))
    mask = np.array([True] * 7 + [False])
    for advantage in (-0.7, 1.3):
        loss = PolicyLoss(importance_cap=1.5)
        arrays = [jnp.asarray(x, jnp.float32) for x in (logprobs, sampler, proximal)]
        value, sums = row_of(loss, *arrays, arrays[0], advantage, jnp.array(mask))
        expected, capped = 0.0, 0
        for t in range(7):
            ratio, weight = np.exp(logprobs[t] - proximal[t]), np.exp(proximal[t] - sampler[t])
            capped += weight > 1.5
            expected += min(weight, 1.5) * reference_clipped(ratio, advantage, 0.2, 0.28, None)
        assert 0 < capped < 7
        assert int(sums["importance_capped"]) == capped
        assert float(value) == pytest.approx(expected / 8, rel=1e-5)
        # The weights are constants: through them comes no gradient.
        weights, _ = importance_weights(arrays[2], arrays[1], 1.5)

        def weighed(proximal, weights=weights, arrays=arrays, advantage=advantage):
            losses, _ = clipped_token_losses(
                arrays[0], proximal, jnp.full(8, advantage), epsilon=0.2, epsilon_high=0.28
            )
            return jnp.sum(jnp.where(mask, weights * losses, 0)) / 8

        def row_loss(proximal, loss=loss, arrays=arrays, advantage=advantage):
            return row_of(loss, arrays[0], arrays[1], proximal, arrays[0], advantage, jnp.array(mask))[0]

        np.testing.assert_allclose(jax.grad(row_loss)(arrays[2]), jax.grad(weighed)(arrays[2]), rtol=1e-5)


def test_masked_tokens_may_hold_anything():
    mask = np.array([True] * 3 + [False] * 3)
    logprobs = jnp.array([-1.0, -2.0, -0.5, np.nan, np.inf, -np.inf])
    for loss in (PolicyLoss(beta=0.1), SupervisedLoss()):
        value, gradient = jax.value_and_grad(lambda x: row(loss, mask, logprobs=x)[0])(logprobs)  # noqa: B023
        assert np.isfinite(value)
        np.testing.assert_array_equal(np.asarray(gradient)[:3] != 0, True)


def test_supervised_loss_is_the_mean_cross_entropy():
    mask = np.array([[True, True, False], [True, False, False]])
    logprobs = jnp.array([[-1.0, -2.0, -9.0], [-0.5, -9.0, -9.0]])
    loss = SupervisedLoss()
    rows = [row_of(loss, lp, lp, lp, lp, 1.0, m)[0] for lp, m in zip(logprobs, jnp.asarray(mask), strict=True)]
    assert float(sum(rows) / loss.normalizer(jnp.asarray(mask))) == pytest.approx(3.5 / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -0.1}, "epsilon must be"),
        ({"epsilon": 1.1}, "epsilon must be"),
        ({"epsilon_high": -1.0}, "epsilon_high must be"),
        ({"denominator": "tokens"}, "denominator must be"),
        ({"beta": -1.0}, "beta must be"),
        ({"dual_clip": 1.0}, "dual_clip must be"),
        ({"importance_cap": 0.0}, "importance_cap must be"),
        ({"importance_cap": math.inf}, "importance_cap must be"),
    ],
)
def test_refuses_impossible_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        PolicyLoss(**arguments)
