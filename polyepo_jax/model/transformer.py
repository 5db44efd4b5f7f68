"""A decoder of the architectures Qwen3, Qwen2, Llama and Mistral.

Flax NNX declares and initialises the parameters; outside of this folder a model is its config, a nested dict of
arrays and the functions `init`, `forward`, `prefill`, `hidden_states` and `unembed`. The layers are stacked along a
leading axis and scanned, so compile time does not grow with depth; to sample on CPUs and GPUs they are
a tuple.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from polyepo_jax.model.attention import KEPT_LENGTH, attend, kernel_of, self_attend
from polyepo_jax.model.cache import Cache
from polyepo_jax.model.config import ModelConfig
from polyepo_jax.model.logits import Params as Params
from polyepo_jax.model.logits import unembed
from polyepo_jax.model.projections import Projections, parameter, zeros
from polyepo_jax.model.rotary import rotary_factors, rotary_frequencies, rotary_scale, rotate
from polyepo_jax.sharding import constrain, mesh_platform
from polyepo_jax.types import Array

# What a layer's attention does with the queries, keys and values of its new tokens: yields what was attended to.
Mix = Callable[[Array, Array, Array], Array]

# Layers of models this shallow are unrolled: a scan copies what the backward pass needs, and the gradients, into
# stacked arrays. On CPUs, whose compiler is quick, that is worth more of its time: an update of 8 layers then takes
# 12 % less, one of 30 (hidden size 576) 15 %, with 17 s of compilation in place of 9. But what is to be computed again
# (`remat`, scores of rows beyond KEPT_LENGTH) is scanned: XLA would find that of the forward pass, and keep it.
_MAX_UNROLLED_LAYERS, _MAX_UNROLLED_LAYERS_ON_CPU = 4, 32


def _remat_policy(config: ModelConfig) -> Callable[..., Any]:
    """What of a layer the backward pass does not compute again."""
    if config.remat == "full":
        return jax.checkpoint_policies.nothing_saveable

    def saves(primitive, *avals, **params):
        if not jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *avals, **params):
            return False
        if config.lora is None:
            return True
        # (x A) B, which is as large as x W that it is added to, costs next to nothing.
        (contracted, _), _ = params["dimension_numbers"]
        return math.prod(avals[0].shape[axis] for axis in contracted) != config.lora.rank

    return saves


def _between(x_BTD: Array) -> Array:
    """Activations between the layers' matrix products: cut along rows and sequence."""
    return constrain(x_BTD, "batch", "length", None)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis (Zhang & Sennrich 2019, Eq. 4)."""

    def __init__(self, config: ModelConfig, size: int, axis: str):
        self.eps = config.rms_norm_eps
        self.scale = nnx.Param(jnp.ones(size, config.weights_dtype), logical_axes=(axis,))

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(x.dtype)
        return normed.astype(x.dtype) * jax.lax.broadcast_in_dim(scale, x.shape, (x.ndim - 1,))


class Attention(Projections):
    """Grouped-query attention; Qwen3 normalises each query and key head before RoPE, Qwen2 adds biases to them."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, A = config.hidden_size, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = parameter(config, rngs, (D, H, A), ("embed", "heads", "head_dim"), D)
        self.k_proj = parameter(config, rngs, (D, K, A), ("embed", "kv_heads", "head_dim"), D)
        self.v_proj = parameter(config, rngs, (D, K, A), ("embed", "kv_heads", "head_dim"), D)
        self.o_proj = parameter(config, rngs, (H, A, D), ("heads", "head_dim", "embed"), H * A)
        self.has_bias, self.has_o_bias, self.has_norm = config.qkv_bias, config.o_bias, config.qk_norm
        if self.has_bias:
            self.q_bias = zeros(config, (H, A), ("heads", "head_dim"))
            self.k_bias = zeros(config, (K, A), ("kv_heads", "head_dim"))
            self.v_bias = zeros(config, (K, A), ("kv_heads", "head_dim"))
        if self.has_o_bias:
            self.o_bias = zeros(config, (D,), ("embed",))
        if self.has_norm:
            self.q_norm = RMSNorm(config, A, "head_dim")
            self.k_norm = RMSNorm(config, A, "head_dim")
        self.adapt(config, rngs)

    def __call__(self, x_BTD: Array, rotary: tuple[Array, Array], mix: Mix) -> Array:
        query, keys, values = (self.product(f"{x}_proj", x_BTD) for x in "qkv")
        if self.has_bias:
            query, keys, values = (
                x + bias[...].astype(x.dtype)[None, None]
                for x, bias in ((query, self.q_bias), (keys, self.k_bias), (values, self.v_bias))
            )
        if self.has_norm:
            query, keys = self.q_norm(query), self.k_norm(keys)
        query, keys, values = (
            constrain(x, "batch", None, "heads", None) for x in (rotate(query, rotary), rotate(keys, rotary), values)
        )
        out = self.product("o_proj", mix(query, keys, values))
        return out + self.o_bias[...].astype(out.dtype)[None, None] if self.has_o_bias else out


class MLP(Projections):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        self.gate_proj = parameter(config, rngs, (D, F), ("embed", "mlp"), D)
        self.up_proj = parameter(config, rngs, (D, F), ("embed", "mlp"), D)
        self.down_proj = parameter(config, rngs, (F, D), ("mlp", "embed"), F)
        self.adapt(config, rngs)

    def __call__(self, x_BTD: Array) -> Array:
        gated = jax.nn.silu(self.product("gate_proj", x_BTD)) * self.product("up_proj", x_BTD)
        return self.product("down_proj", constrain(gated, "batch", None, "mlp"))


class Layer(nnx.Module):
    """Pre-norm residual attention and MLP."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config, config.hidden_size, "embed")
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = RMSNorm(config, config.hidden_size, "embed")
        self.mlp = MLP(config, rngs)

    def __call__(self, x_BTD: Array, rotary: tuple[Array, Array], mix: Mix) -> Array:
        x_BTD = x_BTD + _between(self.self_attn(self.input_layernorm(x_BTD), rotary, mix))
        return x_BTD + _between(self.mlp(self.post_attention_layernorm(x_BTD)))


class Outer(nnx.Module):
    """The parameters around the layers: embedding, final norm and, if untied, the output projection."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        V, D = config.vocab_size, config.hidden_size
        self.embed_tokens = parameter(config, rngs, (V, D), ("vocab", "embed"), D)
        self.norm = RMSNorm(config, D, "embed")
        if not config.tie_word_embeddings:
            self.lm_head = parameter(config, rngs, (D, V), ("embed", "vocab"), D)


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

    With `config.lora` adapters are among them, whose product is 0; the others are what they are without.

    Args:
      config: the model's shape.
      key: typed PRNG key.
    """
    outer_key, layers_key = jax.random.split(key)
    params = _pure(Outer(config, nnx.Rngs(outer_key)))
    params["layers"] = jax.vmap(lambda k: _pure(Layer(config, nnx.Rngs(k, adapters=jax.random.fold_in(k, 1)))))(
        jax.random.split(layers_key, config.num_hidden_layers)
    )
    return params


@functools.lru_cache(maxsize=64)
def logical_axes(config: ModelConfig) -> Params:
    """The logical axis names of each parameter, a tree like the params with tuples of names at its leaves.

    One tree for all callers: not to be changed.
    """

    def axes(make):
        state = nnx.state(nnx.eval_shape(make), nnx.Param)
        return jax.tree.map(lambda p: p.logical_axes, state, is_leaf=lambda x: isinstance(x, nnx.Variable))

    tree = nnx.to_pure_dict(axes(lambda: Outer(config, nnx.Rngs(0))))
    layers = nnx.to_pure_dict(axes(lambda: Layer(config, nnx.Rngs(0))))
    tree["layers"] = jax.tree.map(lambda names: ("layers", *names), layers, is_leaf=lambda x: isinstance(x, tuple))
    return tree


def token_positions(mask_BT: Array, seen_B1: Array | int = 0) -> Array:
    """RoPE positions that count the real tokens of each row, `seen_B1` earlier ones included."""
    return jnp.maximum(seen_B1 + jnp.cumsum(mask_BT, axis=1) - 1, 0)


def run_layers(config: ModelConfig, params: Params, tokens_BT: Array, positions_BT: Array, carry, attend_layer):
    """Embeds, runs all layers and normalises.

    Args:
      params: as from `init`, or from `unstacked`.
      carry: handed from layer to layer.
      attend_layer: (carry, index of the layer, query, keys, values) -> attended, carry, what to keep of the layer.

    Returns:
      hidden_BTD; the last carry; what was kept, stacked along a leading axis L, or in a list of `unstacked` layers.
    """
    frequencies = rotary_frequencies(
        config.head_dim, config.rope_theta, config.rope_scaling, jnp.promote_types(config.dtype, jnp.float32)
    )
    rotary = rotary_factors(positions_BT, frequencies, rotary_scale(config.rope_scaling))
    outer_definition, layer_definition = _definitions(config)
    outer = nnx.merge(outer_definition, nnx.State({k: v for k, v in params.items() if k != "layers"}))

    def apply_layer(state, layer):
        x_BTD, carry = state
        index, layer_params = layer
        left: Any = None

        def mix(query, keys, values):
            nonlocal left
            attended, *left = attend_layer(carry, index, query, keys, values)
            return attended

        x_BTD = nnx.merge(layer_definition, nnx.State(layer_params))(x_BTD, rotary, mix)
        carry, kept = left
        return (x_BTD, carry), kept

    unstacks = isinstance(params["layers"], tuple)  # to sample: nothing is differentiated
    if config.remat != "none" and not unstacks:
        apply_layer = jax.checkpoint(apply_layer, policy=_remat_policy(config), prevent_cse=False)
    x_BTD = _between(outer.embed_tokens[...][tokens_BT].astype(config.dtype))
    if unstacks:
        kept = []
        for layer in enumerate(params["layers"]):
            (x_BTD, carry), kept_of_layer = apply_layer((x_BTD, carry), layer)
            kept.append(kept_of_layer)
    else:
        indices = jnp.arange(config.num_hidden_layers)
        most = _MAX_UNROLLED_LAYERS_ON_CPU if mesh_platform() == "cpu" else _MAX_UNROLLED_LAYERS
        keeps_all = config.remat == "none" and tokens_BT.shape[1] <= KEPT_LENGTH
        unroll = keeps_all and config.num_hidden_layers <= most
        (x_BTD, carry), kept = jax.lax.scan(apply_layer, (x_BTD, carry), (indices, params["layers"]), unroll=unroll)
    # Whole sequences again: what follows cuts the vocabulary.
    return constrain(outer.norm(x_BTD), "batch", None, None), carry, kept


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens_BT: Array,
    positions_BT: Array | None = None,
    cache: Cache | None = None,
    mask_BT: Array | None = None,
    segments_BT: Array | None = None,
) -> tuple[Array, Cache | None]:
    """The final, normalised hidden states [B, T, D] in config.dtype, before the output projection.

    Arguments and errors as in `forward`, and:

    Args:
      segments_BT: without a cache, in place of a mask, where rows hold several texts: as of `self_attend`. Positions
        are then to be given.
    """
    chex.assert_rank(tokens_BT, 2)
    num_tokens = tokens_BT.shape[1]
    mask_BT = jnp.ones(tokens_BT.shape, bool) if mask_BT is None else mask_BT
    if cache is None:
        kernel = kernel_of(config)
        segments_BT = mask_BT if segments_BT is None else segments_BT

        def attend_new(carry, index, query, keys, values):
            return self_attend(kernel, query, keys, values, segments_BT), carry, None

        positions_BT = token_positions(mask_BT) if positions_BT is None else positions_BT
        hidden_BTD, _, _ = run_layers(config, params, tokens_BT, positions_BT, None, attend_new)
        return hidden_BTD, None

    capacity = cache.mask_BC.shape[1]
    if num_tokens > capacity:
        raise ValueError(f"{num_tokens} tokens do not fit into a cache of {capacity} slots")
    if positions_BT is None:
        positions_BT = token_positions(mask_BT, jnp.sum(cache.mask_BC, axis=1)[:, None])
    cache = cache.append_mask(mask_BT)
    slots_T = cache.length + jnp.arange(num_tokens)
    mask_BTC = cache.mask_BC[:, None, :] & (jnp.arange(capacity)[None, :] <= slots_T[:, None])[None]

    def attend_cached(cache, index, query, keys, values):
        cache = cache.append(index, keys, values)
        return attend(query, cache.keys_LBCKA[index], cache.values_LBCKA[index], mask_BTC), cache, None

    hidden_BTD, cache, _ = run_layers(config, params, tokens_BT, positions_BT, cache, attend_cached)
    return hidden_BTD, cache.advance(num_tokens)


def prefill(config: ModelConfig, params: Params, tokens_BT: Array, mask_BT: Array) -> tuple[Array, Cache]:
    """The hidden states of prompts, and a full cache of them: `hidden_states` with an empty cache of T slots.

    Attention runs in the kernel of whole sequences, and the cache is made of what the layers computed.

    Args:
      tokens_BT, mask_BT: as in `forward`.

    Returns:
      hidden_BTD in config.dtype, and the cache, all T slots in use.
    """
    kernel = kernel_of(config)

    def attend_new(carry, index, query, keys, values):
        attended = self_attend(kernel, query, keys, values, mask_BT)
        return attended, carry, (keys.astype(config.dtype), values.astype(config.dtype))

    hidden_BTD, _, (keys, values) = run_layers(config, params, tokens_BT, token_positions(mask_BT), None, attend_new)
    return hidden_BTD, Cache(keys, values, mask_BT, jnp.full((), tokens_BT.shape[1], jnp.int32))


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
