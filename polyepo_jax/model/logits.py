"""From hidden states to logits, and the gradient of that."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from polyepo_jax.model.config import ModelConfig
from polyepo_jax.sharding import constrain
from polyepo_jax.types import Array

Params = dict[str, Any]


def output_params(config: ModelConfig, params: Params) -> Params:
    """The part of the parameters that `unembed` needs."""
    name = "embed_tokens" if config.tie_word_embeddings else "lm_head"
    return {name: params[name]}


def rounded_output(config: ModelConfig, output: Params) -> Params:
    """What `unembed` takes beside `output_params` so as not to round them in every pass of a loop."""
    (table,) = output.values()
    return {} if table.dtype == config.dtype else {"rounded": jax.lax.stop_gradient(table.astype(config.dtype))}


def unembed(config: ModelConfig, params: Params, hidden: Array) -> Array:
    """Logits [..., V] of hidden states [..., D], in float32 at least. `output_params` of the params suffice.

    The gradient by the logits is rounded to config.dtype before it is multiplied, as all activations are; the table's
    is summed in float32 at least.
    """
    axes = "VD" if config.tie_word_embeddings else "DV"
    (table,) = output_params(config, params).values()
    logits = _logits(axes, hidden, table, params.get("rounded", table.astype(hidden.dtype)))
    return constrain(logits, "batch", *(None,) * (logits.ndim - 2), "vocab")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logits(axes: str, hidden: Array, table: Array, rounded: Array) -> Array:
    """hidden times `rounded`, which is the table in the dtype of hidden; all of the gradient is the table's."""
    float_dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    return jnp.einsum(f"...D,{axes}->...V", hidden, rounded, preferred_element_type=float_dtype)


def _logits_forward(axes: str, hidden: Array, table: Array, rounded: Array):
    return _logits(axes, hidden, table, rounded), (hidden, table, rounded)


def _logits_backward(axes: str, saved: tuple[Array, Array, Array], gradient: Array):
    hidden, table, rounded = saved
    gradient = gradient.astype(hidden.dtype)
    by_hidden = jnp.einsum(f"...V,{axes}->...D", gradient, rounded)
    rows = gradient.reshape(-1, gradient.shape[-1]), hidden.reshape(-1, hidden.shape[-1])
    float_dtype = jnp.promote_types(table.dtype, jnp.float32)
    by_table = jnp.einsum(f"NV,ND->{axes}", *rows, preferred_element_type=float_dtype)
    return by_hidden, by_table.astype(table.dtype), jnp.zeros_like(rounded)


_logits.defvjp(_logits_forward, _logits_backward)
