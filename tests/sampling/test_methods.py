"""Drawing a token: against float64 NumPy on the same uniform numbers, and truncation against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polyepo_jax.sampling import Sampling, sample_token

draw = jax.jit(jax.vmap(sample_token, in_axes=(None, 0)))


@pytest.mark.parametrize("size", [2, 17, 1000])
def test_inverts_the_cdf(size):
    rng = np.random.default_rng(size)
    logits = rng.normal(scale=2, size=size).astype(np.float32)
    uniforms = rng.random(2000).astype(np.float32)
    tokens, logprobs = draw(logits, uniforms)
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    probabilities /= probabilities.sum()
    cdf = np.cumsum(probabilities)
    expected = np.searchsorted(cdf, uniforms.astype(np.float64), side="right")
    # A uniform within rounding of a step of the CDF may fall on either side of it.
    near_a_step = np.min(np.abs(uniforms[:, None] - cdf[None]), axis=1) < 1e-6
    np.testing.assert_array_equal(np.asarray(tokens)[~near_a_step], expected[~near_a_step])
    assert near_a_step.mean() < 0.02
    np.testing.assert_allclose(logprobs, np.log(probabilities)[tokens], atol=2e-6)


@given(
    weights=st.lists(st.sampled_from([0.0, 1e-30, 1e-6, 1.0, 3.0]), min_size=12, max_size=12).filter(any),
    uniform=st.sampled_from([0.0, 1e-7, 0.5, 1 - 2**-24, 1 - 2**-23]),
)
@example(weights=[0.0, 0.0, 0.0, 0.0, 0.0, 1e-06, 3.0, 3.0, 0.0, 0.0, 0.0, 1e-06], uniform=1 - 2**-23)  # rounds below 0
def test_never_draws_what_has_no_probability(weights, uniform):
    weights = np.array(weights, np.float32)
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(weights), np.finfo(np.float32).min)
    (token,), (logprob,) = draw(logits, jnp.array([uniform], jnp.float32))
    assert weights[token] > 0
    assert np.isfinite(logprob)


def truncated_distribution(logits, method):
    """Temperature, top-k and top-p by their definitions, one token at a time, float64."""
    logits = logits.astype(np.float64) / method.temperature
    order = sorted(range(len(logits)), key=lambda v: -logits[v])
    if method.top_k:
        order = order[: method.top_k]
    weights = {v: np.exp(logits[v] - logits.max()) for v in order}
    total, kept, reached = sum(weights.values()), [], 0.0
    for v in order:
        if method.top_p < 1 and reached >= method.top_p and kept:
            break
        kept.append(v)
        reached += weights[v] / total
    result = np.zeros(len(logits))
    result[kept] = [weights[v] for v in kept]
    return result / result.sum()


@pytest.mark.parametrize(
    "method",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(top_k=1),
        Sampling(top_k=5, temperature=1.3),
        Sampling(top_k=500),
        Sampling(top_p=0.6),
        Sampling(top_p=1e-6),
        Sampling(top_k=7, top_p=0.8, temperature=0.5),
    ],
)
def test_transform_is_the_truncated_distribution(method):
    for seed in range(5):
        logits = np.random.default_rng(seed).normal(scale=2, size=40).astype(np.float32)
        actual = jax.nn.softmax(method.transform(jnp.asarray(logits)))
        np.testing.assert_allclose(actual, truncated_distribution(logits, method), atol=2e-6)


def test_temperature_zero_is_greedy_and_certain():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=40), jnp.float32)
    tokens, logprobs = draw(Sampling(temperature=0).transform(logits), jnp.linspace(0, 0.999, 20))
    assert set(np.asarray(tokens)) == {int(jnp.argmax(logits))}
    np.testing.assert_array_equal(logprobs, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_refuses_impossible_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**arguments)
