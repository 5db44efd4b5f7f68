"""Rotary embedding and masked grouped-query attention, as functions of arrays."""

import chex
import jax
import jax.numpy as jnp

from polyepo_jax.types import Array


def rotary_angles(positions_BT: Array, head_dim: int, theta: float, dtype=jnp.float32) -> Array:
    """Angles of RoPE (Su et al. 2021, Eq. 15): position * theta^(-2i / A), [B, T, A / 2], radians."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    return positions_BT[:, :, None].astype(dtype) * frequencies[None, None, :]


def rotate(x_BTHA: Array, angles_BTa: Array) -> Array:
    """Turns each pair (i, i + A / 2) of a head by its angle: the half-split layout of Hugging Face checkpoints."""
    chex.assert_rank([x_BTHA, angles_BTa], [4, 3])
    sin, cos = jnp.sin(angles_BTa)[:, :, None, :], jnp.cos(angles_BTa)[:, :, None, :]
    first, second = jnp.split(x_BTHA.astype(angles_BTa.dtype), 2, axis=-1)
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
    query_BTKGA = query_BTHA.reshape(B, T, K, H // K, A)
    scores = jnp.einsum("BTKGA,BCKA->BKGTC", query_BTKGA, keys_BCKA, preferred_element_type=float_dtype)
    scores = scores * A**-0.5
    # A finite value: with -inf a row that is masked throughout would be 0 / 0.
    scores = jnp.where(mask_BTC[:, None, None], scores, jnp.finfo(float_dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(query_BTHA.dtype)
    return jnp.einsum("BKGTC,BCKA->BTKGA", weights, values_BCKA).reshape(B, T, H, A)
