"""A model's parameters with low-rank adapters: taken apart, put together, and merged into plain ones.

Adapters of a matrix `<name>` are `<name>_lora_a` and `<name>_lora_b` beside it. They are what is trained; the rest is
frozen. Trees may hold anything at their leaves, shardings for one.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from polyepo_jax.model.config import Dtype, ModelConfig
from polyepo_jax.model.logits import Params
from polyepo_jax.types import Array

_A, _B = "_lora_a", "_lora_b"


def split(params: Params) -> tuple[Params, Any]:
    """What is trained, and what is frozen: the adapters and the rest; without adapters everything and ()."""
    adapters, rest = _parted(params)
    return (adapters, rest) if adapters else (params, ())


def _parted(tree: Params) -> tuple[Params, Params]:
    adapters: Params = {}
    rest: Params = {}
    for name, value in tree.items():
        if not isinstance(value, dict):
            (adapters if name.endswith((_A, _B)) else rest)[name] = value
            continue
        for part, target in zip(_parted(value), (adapters, rest), strict=True):
            if part:
                target[name] = part
    return adapters, rest


def joined(trained: Params, frozen: Any) -> Params:
    """The tree that `split` took apart."""
    if not isinstance(frozen, dict):
        return trained
    both = {name: joined(trained[name], frozen[name]) for name in trained.keys() & frozen.keys()}
    return {**frozen, **trained, **both}


def without_adapters(config: ModelConfig) -> ModelConfig:
    """The model that is left when a model's adapters are taken away; itself where it has none."""
    return dataclasses.replace(config, lora=None, param_dtype=config.weights_dtype)


def merged(config: ModelConfig, params: Params, dtype: Dtype | None = None) -> tuple[ModelConfig, Params]:
    """The model whose weights have the adapters in them: W + scale A B, computed in float32 and rounded once.

    Args:
      params: layers stacked, or in a tuple.
      dtype: of the weights with adapters; None keeps theirs.
    """
    if config.lora is None:
        return config, params
    of_layer = functools.partial(_merged_layer, config.lora.scale, dtype)
    layers = params["layers"]
    # One layer after the other: what is held in float32 is one layer's.
    layers = tuple(map(of_layer, layers)) if isinstance(layers, tuple) else jax.lax.map(of_layer, layers)
    return without_adapters(config), {**params, "layers": layers}


def _merged_layer(scale: float, dtype: Dtype | None, layer: Params) -> Params:
    plain: Params = {}
    for name, value in layer.items():
        if isinstance(value, dict):
            plain[name] = _merged_layer(scale, dtype, value)
        elif name + _A in layer:
            plain[name] = _sum(value, layer[name + _A], layer[name + _B], scale).astype(dtype or value.dtype)
        elif not name.endswith((_A, _B)):
            plain[name] = value
    return plain


def _sum(weight: Array, a: Array, b: Array, scale: float) -> Array:
    wide = jnp.promote_types(weight.dtype, jnp.float32)
    product = jnp.tensordot(a.astype(wide), b.astype(wide), axes=1, precision="highest")
    return weight.astype(wide) + scale * product
