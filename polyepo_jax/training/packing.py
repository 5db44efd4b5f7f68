"""Texts laid end to end, so that an update computes little padding: the rows of a batch in bins.

One compiled shape: there are as many bins as full rows would need. What is short leaves the last bins empty, and these
are not computed.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from polyepo_jax.model.attention import knows_segments
from polyepo_jax.types import Array, Batch

# Positions of a bin for several rows, at most: beyond that attention among them costs more than the padding.
_MAX_FOLDED = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """R bins of T positions; of a position without a token all is 0.

    segments_RT: int32, 1 + the row of the batch that a token is of; tokens of one row are consecutive.
    positions_RT: int32, within the row's text.
    trained_RT: bool, whether the token is trained.
    advantages_RT, weights_RT: of the token's row; the weight of its loss.
    """

    tokens_RT: Array
    segments_RT: Array
    positions_RT: Array
    trained_RT: Array
    sampler_logprobs_RT: Array
    proximal_logprobs_RT: Array
    advantages_RT: Array
    weights_RT: Array


def first_fit(lengths_B: Array, num_bins: int, size: int) -> tuple[Array, Array]:
    """Bins of the texts, longest first, each in the first that has room (first-fit decreasing).

    Args:
      lengths_B: int[B], none above size * num_bins / B; 0 takes no room.

    Returns:
      bins_B, and offsets_B of the texts in them.
    """

    def put(free_R: Array, length: Array) -> tuple[Array, tuple[Array, Array]]:
        chosen = jnp.argmax(free_R >= length)
        return free_R.at[chosen].add(-length), (chosen, size - free_R[chosen])

    order_B = jnp.argsort(-lengths_B, stable=True)
    _, (bins, offsets) = jax.lax.scan(put, jnp.full(num_bins, size, lengths_B.dtype), lengths_B[order_B])
    back_B = jnp.argsort(order_B)
    return bins[back_B], offsets[back_B]


def pack(batch: Batch, weights_B: Array, kept_B: Array, fold: int) -> Packed:
    """The batch's rows in bins of `fold` times their length.

    Args:
      weights_B: of the rows' tokens in the loss.
      kept_B: bool; other rows are left out.
      fold: 0 puts every row in a bin of its own, where its tokens stay in their columns; rows that are left out come
        last.
    """
    num_rows, length = batch.tokens_BT.shape
    num_bins, size = (num_rows, length) if fold == 0 else (-(-num_rows // fold), fold * length)
    there_BT = batch.mask_BT & kept_B[:, None]
    starts_B = jnp.argmax(batch.mask_BT, axis=1).astype(jnp.int32)
    if fold == 0:
        bins_B, offsets_B = jnp.argsort(jnp.argsort(~kept_B, stable=True)), starts_B
    else:
        bins_B, offsets_B = first_fit(jnp.sum(there_BT, axis=1, dtype=jnp.int32), num_bins, size)
    within_BT = jnp.arange(length, dtype=jnp.int32)[None, :] - starts_B[:, None]
    target_BT = bins_B[:, None].astype(jnp.int32) * size + offsets_B[:, None].astype(jnp.int32) + within_BT
    nowhere = num_bins * size
    sources = jnp.full(nowhere, num_rows * length, jnp.int32)
    sources = sources.at[jnp.where(there_BT, target_BT, nowhere).reshape(-1)].set(
        jnp.arange(num_rows * length, dtype=jnp.int32), mode="drop"
    )

    def take(values_BT: Array) -> Array:
        taken: Any = jnp.take(values_BT.reshape(-1), sources, mode="fill", fill_value=0)
        return taken.reshape(num_bins, size)

    def spread(values_B: Array) -> Array:
        return take(jnp.broadcast_to(values_B[:, None], batch.tokens_BT.shape))

    return Packed(
        tokens_RT=take(batch.tokens_BT),
        segments_RT=spread(jnp.arange(1, num_rows + 1, dtype=jnp.int32)),
        positions_RT=take(jnp.maximum(within_BT, 0)),
        trained_RT=take(batch.loss_mask_BT),
        sampler_logprobs_RT=take(batch.sampler_logprobs_BT),
        proximal_logprobs_RT=take(batch.proximal_logprobs_BT),
        advantages_RT=spread(batch.advantages_B),
        weights_RT=spread(weights_B),
    )


def folding(kernel: str, num_rows: int, micro_rows: int, length: int, num_devices: int) -> int:
    """How many rows of full length a bin of an update has room for; 0 where nothing is packed, as a micro-batch of all
    rows would hold the empty bins too.

    A bin of several is filled better, but has attention among all of them. That pays where they are short, and is kept
    to one device: of several each would have too few bins to cut them well.
    """
    if micro_rows == num_rows or not knows_segments(kernel):
        return 0
    if kernel != "xla" or num_devices > 1:
        return 1
    return next((fold for fold in (8, 4, 2) if fold * length <= _MAX_FOLDED and micro_rows % fold == 0), 1)


@jax.custom_vjp
def permuted(x_RTD: Array, order_RT: Array, back_RT: Array) -> Array:
    """The positions of each row in another order; `back_RT` is the inverse."""
    return jnp.take_along_axis(x_RTD, order_RT[:, :, None], axis=1)


def _forward(x_RTD, order_RT, back_RT):
    return permuted(x_RTD, order_RT, back_RT), back_RT


def _backward(back_RT, gradient_RTD):
    # A gather too: XLA would scatter.
    return jnp.take_along_axis(gradient_RTD, back_RT[:, :, None], axis=1), None, None


permuted.defvjp(_forward, _backward)
