"""How far a policy has gone from where it started."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from polyepo_jax.losses import MAX_LOG_RATIO
from polyepo_jax.model import joined
from polyepo_jax.sharding import BATCH_AXES, PartitionSpec, num_row_shards_in_use
from polyepo_jax.training.packing import pack
from polyepo_jax.training.update import UpdateSpec, packed_logprobs
from polyepo_jax.types import Array, Batch


@functools.partial(jax.jit, static_argnums=0)
def kl_to_start(spec: UpdateSpec, params: Any, start_params: Any, batch: Batch, frozen: Any = ()) -> Array:
    """Estimate of KL(policy || initial policy), nats a token: the mean of Schulman's k3 over tokens that were sampled.

    Of one micro-batch of rows, evenly spaced in the batch, and of all their sampled tokens: also of those that no loss
    trains. A program of its own, which changes nothing in the update.

    Args:
      spec: static.
      params: of the policy that sampled the batch. start_params: of the initial one.
      batch: B rows, as of `train_step`.
      frozen: parameters that both have.

    Returns:
      A scalar; NaN where these rows have no sampled token.
    """
    num_rows, length = batch.tokens_BT.shape
    count = spec.micro_batch_rows or spec.mini_batch_rows or num_rows
    mesh = jax.sharding.get_abstract_mesh()

    def spaced(x_B: Array) -> Array:
        chosen = x_B.reshape(count, num_rows // count, *x_B.shape[1:])[:, 0]
        if mesh.empty or count % num_row_shards_in_use():
            return chosen
        return jax.lax.with_sharding_constraint(chosen, PartitionSpec(BATCH_AXES))

    sampled_BT = batch.mask_BT & (jnp.arange(length) >= spec.prompt_length)[None, :]
    rows = jax.tree.map(spaced, dataclasses.replace(batch, loss_mask_BT=sampled_BT))
    packed = pack(rows, jnp.zeros(count), jnp.ones(count, bool), 0)
    logprobs_RT, start_logprobs_RT = (
        packed_logprobs(spec, joined(p, frozen), packed, 0) for p in (params, start_params)
    )
    log_ratio_RT = jnp.clip(start_logprobs_RT - logprobs_RT, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    # As `losses.kl_estimates`, to more digits where both are close, which they are for long.
    estimates_RT = jnp.expm1(log_ratio_RT) - log_ratio_RT
    num_tokens = jnp.sum(packed.trained_RT)
    total = jnp.sum(jnp.where(packed.trained_RT, estimates_RT, 0))
    return jnp.where(num_tokens > 0, total / num_tokens, jnp.nan)
