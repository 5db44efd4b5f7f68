"""Rotary frequencies against their definitions, one pair after the other."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyepo_jax.model import LinearRopeScaling, Llama3RopeScaling, YarnRopeScaling
from polyepo_jax.model.config import RopeScaling
from polyepo_jax.model.rotary import rotary_factors, rotary_frequencies, rotary_scale


def scaled_by_llama3(frequency: float, scaling: Llama3RopeScaling) -> float:
    """By the cases of the wavelength."""
    wavelength = 2 * math.pi / frequency
    longest = scaling.original_max_position_embeddings / scaling.low_freq_factor
    shortest = scaling.original_max_position_embeddings / scaling.high_freq_factor
    if wavelength > longest:
        return frequency / scaling.factor
    if wavelength > shortest:
        # In turns of the original context: 0 of the way at low_freq_factor, all of it at high_freq_factor.
        turns = scaling.original_max_position_embeddings / wavelength
        way = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        return (1 - way) * frequency / scaling.factor + way * frequency
    return frequency


def scaled_by_yarn(frequency: float, pair: int, head_dim: int, theta: float, scaling: YarnRopeScaling) -> float:
    """By the pair's place between those that turn beta_fast and beta_slow times in the original context."""
    # theta^(-2i / A) = 2 pi turns / length, solved for i.
    length = scaling.original_max_position_embeddings
    first, last = (
        -head_dim / 2 * math.log(2 * math.pi * turns / length) / math.log(theta)
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    if pair <= first:
        return frequency
    if pair >= last:
        return frequency / scaling.factor
    way = (pair - first) / (last - first)
    return (1 - way) * frequency + way * frequency / scaling.factor


def frequencies_of_the_definition(head_dim: int, theta: float, scaling: RopeScaling | None) -> list[float]:
    found = []
    for pair in range(head_dim // 2):
        frequency = theta ** (-2 * pair / head_dim)
        match scaling:
            case LinearRopeScaling():
                frequency /= scaling.factor
            case Llama3RopeScaling():
                frequency = scaled_by_llama3(frequency, scaling)
            case YarnRopeScaling():
                frequency = scaled_by_yarn(frequency, pair, head_dim, theta, scaling)
        found.append(frequency)
    return found


@pytest.mark.parametrize(
    ("head_dim", "theta", "scaling"),
    [
        (128, 1e6, None),
        (10, 1e4, None),
        (128, 1e4, LinearRopeScaling(4.0)),
        (128, 5e5, Llama3RopeScaling(8.0, 1.0, 4.0, 8192)),  # Llama 3.1
        (64, 5e5, Llama3RopeScaling(32.0, 1.0, 4.0, 8192)),  # Llama 3.2
        (64, 1e4, Llama3RopeScaling(3.0, 0.5, 9.0, 256)),
        (128, 1e6, YarnRopeScaling(4.0, 32768)),  # Qwen2.5 and Qwen3
        (64, 1e4, YarnRopeScaling(3.0, 512, beta_fast=8.0, beta_slow=0.5, truncate=False)),
    ],
)
def test_rotary_frequencies_equal_their_definition(head_dim, theta, scaling):
    expected = frequencies_of_the_definition(head_dim, theta, scaling)
    np.testing.assert_allclose(rotary_frequencies(head_dim, theta, scaling), expected, rtol=1e-5)
    with jax.enable_x64(True):
        exact = rotary_frequencies(head_dim, theta, scaling, jnp.float64)
        np.testing.assert_allclose(exact, expected, rtol=1e-12)
    ratio = np.asarray(frequencies_of_the_definition(head_dim, theta, None)) / expected
    if isinstance(scaling, LinearRopeScaling):
        np.testing.assert_allclose(ratio, scaling.factor)
    elif scaling is not None:
        # All three cases occur.
        assert np.isclose(ratio, 1).any()
        assert np.isclose(ratio, scaling.factor).any()
        assert ((ratio > 1.01) & (ratio < 0.99 * scaling.factor)).any()


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, 1),
        (LinearRopeScaling(4.0), 1),
        (Llama3RopeScaling(8.0, 1.0, 4.0, 8192), 1),
        (YarnRopeScaling(4.0, 32768), 1.138629436111989),  # 0.1 ln 4 + 1
        (YarnRopeScaling(1.0, 32768), 1),
        (YarnRopeScaling(4.0, 32768, attention_factor=0.5, mscale=2.0, mscale_all_dim=1.0), 0.5),
        (YarnRopeScaling(4.0, 32768, mscale=2.0), 1.138629436111989),
        (YarnRopeScaling(4.0, 32768, mscale=2.0, mscale_all_dim=0.0), 1.138629436111989),
        (YarnRopeScaling(math.e**10, 32768, mscale=2.0, mscale_all_dim=1.0), 1.5),
        (YarnRopeScaling(4.0, 32768, mscale=2.0, mscale_all_dim=2.0), 1),
    ],
)
def test_scale_of_sine_and_cosine(scaling, expected):
    scale = rotary_scale(scaling)
    assert scale == pytest.approx(expected, rel=1e-12)
    positions, frequencies = jnp.arange(5)[None], jnp.array([1.0, 0.3])
    angles = np.arange(5)[None, :, None] * np.array([1.0, 0.3])
    sin, cos = rotary_factors(positions, frequencies, scale)
    np.testing.assert_allclose(sin, expected * np.sin(angles), rtol=1e-5)
    np.testing.assert_allclose(cos, expected * np.cos(angles), rtol=1e-5)
