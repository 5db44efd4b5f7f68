"""A decoder of the Qwen3 architecture.

Flax NNX declares and initialises the parameters; outside of this folder a model is its config, a nested dict of
arrays and the functions `init`, `forward`, `hidden_states` and `unembed`. The layers are stacked along a leading
axis and scanned, so compile time does not grow with depth.
"""

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from polyepo_jax.model.attention import attend, rotary_factors, rotate
from polyepo_jax.model.cache import Cache
from polyepo_jax.model.config import ModelConfig
from polyepo_jax.types import Array

Params = dict[str, Any]

# Layers of models this shallow are unrolled: a scan copies what the backward pass needs into stacked arrays, and
# XLA's CPU backend runs a loop's body on one core.
_MAX_UNROLLED_LAYERS = 4

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def _parameter(config: ModelConfig, rngs: nnx.Rngs, shape, axes, fan_in: int) -> nnx.Param:
    """A normal-initialised parameter of variance 1 / fan_in, annotated with its logical axes."""
    value = jax.random.normal(rngs.params(), shape, config.param_dtype) * fan_in**-0.5
    return nnx.Param(value, logical_axes=axes)


def _project(x: Array, weight: Array, num_contracted: int = 1) -> Array:
    """Contracts the last axes of x with the first of the weight, in x's dtype.

    As one matrix product of two axes: with several, XLA's CPU backend transposes them in the backward pass, which
    takes longer than the product.
    """
    contracted, kept = weight.shape[:num_contracted], weight.shape[num_contracted:]
    leading = x.shape[: x.ndim - num_contracted]
    size = math.prod(contracted)
    product = x.reshape(-1, size) @ weight.astype(x.dtype).reshape(size, -1)
    return product.reshape(*leading, *kept)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis (Zhang & Sennrich 2019, Eq. 4)."""

    def __init__(self, config: ModelConfig, size: int, axis: str):
        self.eps = config.rms_norm_eps
        self.scale = nnx.Param(jnp.ones(size, config.param_dtype), logical_axes=(axis,))

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(x.dtype)
        return normed.astype(x.dtype) * jax.lax.broadcast_in_dim(scale, x.shape, (x.ndim - 1,))


class Attention(nnx.Module):
    """Grouped-query attention with per-head RMSNorm on queries and keys before RoPE."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, A = config.hidden_size, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = _parameter(config, rngs, (D, H, A), ("embed", "heads", "head_dim"), D)
        self.k_proj = _parameter(config, rngs, (D, K, A), ("embed", "kv_heads", "head_dim"), D)
        self.v_proj = _parameter(config, rngs, (D, K, A), ("embed", "kv_heads", "head_dim"), D)
        self.o_proj = _parameter(config, rngs, (H, A, D), ("heads", "head_dim", "embed"), H * A)
        self.q_norm = RMSNorm(config, A, "head_dim")
        self.k_norm = RMSNorm(config, A, "head_dim")

    def __call__(self, x_BTD: Array, rotary: tuple[Array, Array], mask_BTC: Array, cache: Cache | None, layer: Array):
        query = rotate(self.q_norm(_project(x_BTD, self.q_proj[...])), rotary)
        keys = rotate(self.k_norm(_project(x_BTD, self.k_proj[...])), rotary)
        values = _project(x_BTD, self.v_proj[...])
        if cache is not None:
            cache = cache.append(layer, keys, values)
            keys, values = cache.keys_LBCKA[layer], cache.values_LBCKA[layer]
        attended = attend(query, keys, values, mask_BTC)
        return _project(attended, self.o_proj[...], num_contracted=2), cache


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        self.gate_proj = _parameter(config, rngs, (D, F), ("embed", "mlp"), D)
        self.up_proj = _parameter(config, rngs, (D, F), ("embed", "mlp"), D)
        self.down_proj = _parameter(config, rngs, (F, D), ("mlp", "embed"), F)

    def __call__(self, x_BTD: Array) -> Array:
        gated = jax.nn.silu(_project(x_BTD, self.gate_proj[...])) * _project(x_BTD, self.up_proj[...])
        return _project(gated, self.down_proj[...])


class Layer(nnx.Module):
    """Pre-norm residual attention and MLP."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config, config.hidden_size, "embed")
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = RMSNorm(config, config.hidden_size, "embed")
        self.mlp = MLP(config, rngs)

    def __call__(self, x_BTD: Array, rotary: tuple[Array, Array], mask_BTC: Array, cache: Cache | None, layer: Array):
        attended, cache = self.self_attn(self.input_layernorm(x_BTD), rotary, mask_BTC, cache, layer)
        x_BTD = x_BTD + attended
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD)), cache


class Outer(nnx.Module):
    """The parameters around the layers: embedding, final norm and, if untied, the output projection."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        V, D = config.vocab_size, config.hidden_size
        self.embed_tokens = _parameter(config, rngs, (V, D), ("vocab", "embed"), D)
        self.norm = RMSNorm(config, D, "embed")
        if not config.tie_word_embeddings:
            self.lm_head = _parameter(config, rngs, (D, V), ("embed", "vocab"), D)


@functools.lru_cache(maxsize=64)
def _definitions(config: ModelConfig):
    """NNX's static descriptions of the outer part and of one layer: with parameters, `nnx.merge` revives them."""
    outer = nnx.graphdef(nnx.eval_shape(lambda: Outer(config, nnx.Rngs(0))))
    layer = nnx.graphdef(nnx.eval_shape(lambda: Layer(config, nnx.Rngs(0))))
    return outer, layer


def _pure(module: nnx.Module) -> Params:
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def init(config: ModelConfig, key: Array) -> Params:
    """Random parameters: a nested dict of arrays, those of the layers stacked along a leading axis L.

    Args:
      config: the model's shape.
      key: typed PRNG key.
    """
    outer_key, layers_key = jax.random.split(key)
    params = _pure(Outer(config, nnx.Rngs(outer_key)))
    params["layers"] = jax.vmap(lambda k: _pure(Layer(config, nnx.Rngs(k))))(
        jax.random.split(layers_key, config.num_hidden_layers)
    )
    return params


def logical_axes(config: ModelConfig) -> Params:
    """The logical axis names of each parameter, a tree like the params with tuples of names at its leaves."""

    def axes(make):
        state = nnx.state(nnx.eval_shape(make), nnx.Param)
        return jax.tree.map(lambda p: p.logical_axes, state, is_leaf=lambda x: isinstance(x, nnx.Variable))

    tree = nnx.to_pure_dict(axes(lambda: Outer(config, nnx.Rngs(0))))
    layers = nnx.to_pure_dict(axes(lambda: Layer(config, nnx.Rngs(0))))
    tree["layers"] = jax.tree.map(lambda names: ("layers", *names), layers, is_leaf=lambda x: isinstance(x, tuple))
    return tree


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens_BT: Array,
    positions_BT: Array | None = None,
    cache: Cache | None = None,
    mask_BT: Array | None = None,
) -> tuple[Array, Cache | None]:
    """The final, normalised hidden states [B, T, D] in config.dtype, before the output projection.

    Arguments and errors as in `forward`.
    """
    chex.assert_rank(tokens_BT, 2)
    num_tokens = tokens_BT.shape[1]
    mask_BT = jnp.ones(tokens_BT.shape, bool) if mask_BT is None else mask_BT
    seen_B = 0 if cache is None else jnp.sum(cache.mask_BC, axis=1)[:, None]
    if positions_BT is None:
        positions_BT = jnp.maximum(seen_B + jnp.cumsum(mask_BT, axis=1) - 1, 0)
    if cache is None:
        mask_BTC = mask_BT[:, None, :] & jnp.tri(num_tokens, dtype=bool)[None]
    else:
        capacity = cache.mask_BC.shape[1]
        if num_tokens > capacity:
            raise ValueError(f"{num_tokens} tokens do not fit into a cache of {capacity} slots")
        cache = cache.append_mask(mask_BT)
        slots_T = cache.length + jnp.arange(num_tokens)
        mask_BTC = cache.mask_BC[:, None, :] & (jnp.arange(capacity)[None, :] <= slots_T[:, None])[None]

    rotary_dtype = jnp.promote_types(config.dtype, jnp.float32)
    rotary = rotary_factors(positions_BT, config.head_dim, config.rope_theta, rotary_dtype)
    outer_definition, layer_definition = _definitions(config)
    outer = nnx.merge(outer_definition, nnx.State({k: v for k, v in params.items() if k != "layers"}))

    def apply_layer(carry, layer):
        x_BTD, cache = carry
        index, layer_params = layer
        module = nnx.merge(layer_definition, nnx.State(layer_params))
        return module(x_BTD, rotary, mask_BTC, cache, index), None

    if config.remat != "none":
        apply_layer = jax.checkpoint(apply_layer, policy=_REMAT_POLICIES[config.remat], prevent_cse=False)
    x_BTD = outer.embed_tokens[...][tokens_BT].astype(config.dtype)
    indices = jnp.arange(config.num_hidden_layers)
    unroll = config.num_hidden_layers <= _MAX_UNROLLED_LAYERS
    (x_BTD, cache), _ = jax.lax.scan(apply_layer, (x_BTD, cache), (indices, params["layers"]), unroll=unroll)
    return outer.norm(x_BTD), None if cache is None else cache.advance(num_tokens)


def unembed(config: ModelConfig, params: Params, hidden: Array) -> Array:
    """Logits [..., V] of hidden states [..., D], in float32 at least."""
    float_dtype = jnp.promote_types(config.dtype, jnp.float32)
    if config.tie_word_embeddings:
        table, spec = params["embed_tokens"], "...D,VD->...V"
    else:
        table, spec = params["lm_head"], "...D,DV->...V"
    return jnp.einsum(spec, hidden, table.astype(hidden.dtype), preferred_element_type=float_dtype)


def forward(
    config: ModelConfig,
    params: Params,
    tokens_BT: Array,
    positions_BT: Array | None = None,
    cache: Cache | None = None,
    mask_BT: Array | None = None,
) -> tuple[Array, Cache | None]:
    """Next-token logits of every position.

    Args:
      config: the model's shape; static under jit.
      params: as from `init`.
      tokens_BT: int[B, T].
      positions_BT: int[B, T], RoPE positions; None counts the real tokens of each row, cached ones included.
      cache: keys and values of earlier tokens; the T tokens go into its next slots. The caller sees to it that
        `cache.length + T` does not exceed its capacity.
      mask_BT: bool[B, T], True = real token; None for all. Padding on either side changes nothing for the others.

    Returns:
      logits_BTV, float32 (float64 for a float64 config), of no meaning on padding; and the cache with the new
      tokens, or None if none was given.

    Raises:
      ValueError: more tokens than the cache has slots.
    """
    hidden_BTD, cache = hidden_states(config, params, tokens_BT, positions_BT, cache, mask_BT)
    return unembed(config, params, hidden_BTD), cache
