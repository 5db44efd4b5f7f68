"""Rotary embedding: frequencies, the ways to slow them down for long contexts, and the rotation."""

import math

import chex
import jax.numpy as jnp

from polyepo_jax.model.config import LinearRopeScaling, Llama3RopeScaling, RopeScaling, YarnRopeScaling
from polyepo_jax.types import Array


def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None, dtype=jnp.float32) -> Array:
    """RoPE's angle per position of each pair (Su et al. 2021, Eq. 15), theta^(-2i / A), scaled: [A / 2]."""
    frequencies_a = theta ** (-jnp.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    match scaling:
        case None:
            return frequencies_a
        case LinearRopeScaling():
            return frequencies_a / scaling.factor
        case Llama3RopeScaling():
            kept_a = _kept_by_llama3(frequencies_a, scaling)
        case YarnRopeScaling():
            kept_a = _kept_by_yarn(frequencies_a, head_dim, theta, scaling)
    return frequencies_a * (kept_a + (1 - kept_a) / scaling.factor)


def rotary_scale(scaling: RopeScaling | None) -> float:
    """What sine and cosine are multiplied by."""
    return scaling.attention_scale if isinstance(scaling, YarnRopeScaling) else 1.0


def _kept_by_llama3(frequencies_a: Array, scaling: Llama3RopeScaling) -> Array:
    """How much of each frequency stays: 0 for fewer turns than low_freq_factor, 1 for more than high_freq_factor."""
    wavelengths_a = 2 * math.pi / frequencies_a
    turns_a = scaling.original_max_position_embeddings / wavelengths_a  # within the original context
    kept_a = (turns_a - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return jnp.clip(kept_a, 0, 1)


def _kept_by_yarn(frequencies_a: Array, head_dim: int, theta: float, scaling: YarnRopeScaling) -> Array:
    """How much of each frequency stays: 1 for the pairs before those that turn beta_fast times, 0 from those on that
    turn beta_slow times, linear in the pair's number between (Peng et al. 2023, Eq. 23, as `transformers` has it)."""

    def pair_of(turns: float) -> float:
        """The pair, as a fraction, that turns so often within the original context."""
        return (
            head_dim * math.log(scaling.original_max_position_embeddings / (turns * 2 * math.pi)) / 2 / math.log(theta)
        )

    first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 0.001  # a step where the two meet
    return 1 - jnp.clip((jnp.arange(head_dim // 2, dtype=frequencies_a.dtype) - first) / width, 0, 1)


def rotary_factors(positions_BT: Array, frequencies_a: Array, scale: float = 1.0) -> tuple[Array, Array]:
    """Sine and cosine of the angles position * frequency, times `scale`: each [B, T, A / 2]."""
    angles_BTa = positions_BT[:, :, None].astype(frequencies_a.dtype) * frequencies_a[None, None, :]
    return jnp.sin(angles_BTa) * scale, jnp.cos(angles_BTa) * scale


def rotate(x_BTHA: Array, factors: tuple[Array, Array]) -> Array:
    """Turns each pair (i, i + A / 2) of a head by its angle: the half-split layout of Hugging Face checkpoints."""
    chex.assert_rank([x_BTHA, *factors], [4, 3, 3])
    sin, cos = (factor_BTa[:, :, None, :] for factor_BTa in factors)
    first, second = jnp.split(x_BTHA.astype(sin.dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTHA.dtype)
