"""Parameters of a model, and matrices that are applied to activations, with low-rank adapters where they have some."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from polyepo_jax.model.config import ModelConfig
from polyepo_jax.types import Array


def parameter(config: ModelConfig, rngs: nnx.Rngs, shape, axes, fan_in: int) -> nnx.Param:
    """A normal-initialised parameter of variance 1 / fan_in, annotated with its logical axes."""
    value = jax.random.normal(rngs.params(), shape, config.weights_dtype) * fan_in**-0.5
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


def zeros(config: ModelConfig, shape, axes) -> nnx.Param:
    """A zero-initialised parameter, annotated with its logical axes."""
    return nnx.Param(jnp.zeros(shape, config.weights_dtype), logical_axes=axes)


class Projections(nnx.Module):
    """Matrices that are applied to activations, and low-rank adapters to those that `config.lora` targets."""

    def adapt(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        """Adds `<name>_lora_a` [in axes..., R], as PEFT initialises it, and `<name>_lora_b` [R, out axes...], zeros."""
        self.lora = config.lora
        if config.lora is None:
            return
        rank = config.lora.rank
        for name in [target for target in config.lora.targets if hasattr(self, target)]:
            weight, num_inputs = getattr(self, name), num_inputs_of(name)
            shape, axes, dtype = weight.shape, weight.logical_axes, config.param_dtype
            bound = math.prod(shape[:num_inputs]) ** -0.5
            inputs = jax.random.uniform(rngs.adapters(), (*shape[:num_inputs], rank), dtype, -bound, bound)
            outputs = jnp.zeros((rank, *shape[num_inputs:]), dtype)
            setattr(self, f"{name}_lora_a", nnx.Param(inputs, logical_axes=(*axes[:num_inputs], "lora_rank")))
            setattr(self, f"{name}_lora_b", nnx.Param(outputs, logical_axes=("lora_rank", *axes[num_inputs:])))

    def product(self, name: str, x: Array) -> Array:
        """x W, and where W has adapters + scale (x A) B."""
        num_inputs = num_inputs_of(name)
        product = _project(x, getattr(self, name)[...], num_inputs)
        if self.lora is None or name not in self.lora.targets:
            return product
        low = _project(x, getattr(self, f"{name}_lora_a")[...], num_inputs) * self.lora.scale
        return product + _project(low, getattr(self, f"{name}_lora_b")[...])


def num_inputs_of(name: str) -> int:
    """Leading axes of a matrix that its product contracts."""
    return 2 if name == "o_proj" else 1
