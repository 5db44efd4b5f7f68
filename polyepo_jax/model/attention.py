"""Rotary embedding and masked grouped-query attention, as functions of arrays."""

import chex
import jax
import jax.numpy as jnp

from polyepo_jax.types import Array


def rotary_factors(positions_BT: Array, head_dim: int, theta: float, dtype=jnp.float32) -> tuple[Array, Array]:
    """Sine and cosine of RoPE's angles (Su et al. 2021, Eq. 15), position * theta^(-2i / A): each [B, T, A / 2]."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    angles_BTa = positions_BT[:, :, None].astype(dtype) * frequencies[None, None, :]
    return jnp.sin(angles_BTa), jnp.cos(angles_BTa)


def rotate(x_BTHA: Array, factors: tuple[Array, Array]) -> Array:
    """Turns each pair (i, i + A / 2) of a head by its angle: the half-split layout of Hugging Face checkpoints."""
    chex.assert_rank([x_BTHA, *factors], [4, 3, 3])
    sin, cos = (factor_BTa[:, :, None, :] for factor_BTa in factors)
    first, second = jnp.split(x_BTHA.astype(sin.dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTHA.dtype)


def attend(query_BTHA: Array, keys_BCKA: Array, values_BCKA: Array, mask_BTC: Array) -> Array:
    """Softmax attention in which key/value head k serves the query heads k * g ... k * g + g - 1.

    Args:
      query_BTHA: unscaled queries; the scale A^-0.5 is applied here.
      keys_BCKA, values_BCKA: H is a multiple g of K.
      mask_BTC: bool, True where query t may look at slot c.

    Returns:
      [B, T, H, A], in the queries' dtype. Scores and softmax are in float32 at least. A query that may look
      nowhere (padding) yields a finite value of no meaning.
    """
    chex.assert_rank([query_BTHA, keys_BCKA, values_BCKA, mask_BTC], [4, 4, 4, 3])
    B, T, H, A = query_BTHA.shape
    K = keys_BCKA.shape[2]
    float_dtype = jnp.promote_types(query_BTHA.dtype, jnp.float32)
    G = H // K
    # The queries of a key/value head in one axis Q = G * T: products of two axes each, which every backend has.
    query_BKQA = query_BTHA.reshape(B, T, K, G, A).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, A)
    scores = jnp.einsum("BKQA,BCKA->BKQC", query_BKQA, keys_BCKA, preferred_element_type=float_dtype)
    # A finite value: with -inf a row that is masked throughout would be 0 / 0.
    scores = scores.reshape(B, K, G, T, -1) * A**-0.5
    scores = jnp.where(mask_BTC[:, None, None], scores, jnp.finfo(float_dtype).min)
    weights_BKQC = jax.nn.softmax(scores, axis=-1).astype(query_BTHA.dtype).reshape(B, K, G * T, -1)
    attended_BKQA = jnp.einsum("BKQC,BCKA->BKQA", weights_BKQC, values_BCKA)
    return attended_BKQA.reshape(B, K, G, T, A).transpose(0, 3, 1, 2, 4).reshape(B, T, H, A)
