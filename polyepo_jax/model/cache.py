"""Key/value caches: values that are passed in and returned."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from polyepo_jax.model.config import ModelConfig
from polyepo_jax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens seen so far. All rows fill the same slots; padding is masked.

    keys_LBCKA, values_LBCKA: slots at and after `length` hold nothing yet.
    mask_BC: bool, True where a slot holds a real token.
    length: int32 scalar, slots in use.
    """

    keys_LBCKA: Array
    values_LBCKA: Array
    mask_BC: Array
    length: Array

    def append_mask(self, mask_BT: Array) -> "Cache":
        """Marks which of the next T slots will hold real tokens."""
        mask_BC = jax.lax.dynamic_update_slice(self.mask_BC, mask_BT, (0, self.length))
        return dataclasses.replace(self, mask_BC=mask_BC)

    def append(self, layer: Array, keys_BTKA: Array, values_BTKA: Array) -> "Cache":
        """Writes one layer's keys and values into the next T slots; `length` stays."""
        start = (layer, 0, self.length, 0, 0)
        keys = jax.lax.dynamic_update_slice(self.keys_LBCKA, keys_BTKA[None].astype(self.keys_LBCKA.dtype), start)
        values = jax.lax.dynamic_update_slice(
            self.values_LBCKA, values_BTKA[None].astype(self.values_LBCKA.dtype), start
        )
        return dataclasses.replace(self, keys_LBCKA=keys, values_LBCKA=values)

    def advance(self, num_tokens: int) -> "Cache":
        """Counts the T slots that every layer has written."""
        return dataclasses.replace(self, length=self.length + num_tokens)

    def fork(self, num_copies: int, capacity: int) -> "Cache":
        """Gives each row `num_copies` adjacent copies, in a cache of `capacity` slots."""
        grow = capacity - self.mask_BC.shape[1]

        def fork_entries(entries):
            return jnp.pad(jnp.repeat(entries, num_copies, axis=1), ((0, 0), (0, 0), (0, grow), (0, 0), (0, 0)))

        return Cache(
            keys_LBCKA=fork_entries(self.keys_LBCKA),
            values_LBCKA=fork_entries(self.values_LBCKA),
            mask_BC=jnp.pad(jnp.repeat(self.mask_BC, num_copies, axis=0), ((0, 0), (0, grow))),
            length=self.length,
        )


# Arrays of all layers: a tuple of one a layer, or one array in which they are stacked along a leading axis.
Layers = tuple[Array, ...] | Array


def each_layer(function: Callable[..., Array], *layers: Layers) -> Layers:
    """`function` of every layer's arrays."""
    if isinstance(layers[0], tuple):
        return tuple(map(function, *layers))
    return jax.vmap(function)(*layers)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptCache:
    """Keys and values of prompts, for rows that refer to them.

    keys, values: [P, K, T, A] a layer.
    mask_PT: bool, True on real tokens.
    """

    keys: Layers
    values: Layers
    mask_PT: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ring:
    """Keys and values of the newest tokens of rows that decode a token at a time, each row at its own position.

    All rows write the same slot at the same time, wherever they are in their texts: nothing is scattered, and a row is
    given to another text by setting its length to 0.

    keys, values: a tuple of [B, K, C, A] a layer, or stacked [L, C, K, B, A]: so a TPU writes one block.
    lengths_B: int32, how many of the newest slots belong to a row's text; C at most.
    step: int32 scalar, tokens written so far by every row; the next goes to slot step % C.
    """

    keys: Layers
    values: Layers
    lengths_B: Array
    step: Array

    @property
    def capacity(self) -> int:
        """C."""
        return self.keys[0].shape[2] if isinstance(self.keys, tuple) else self.keys.shape[1]

    def mask_BC(self) -> Array:
        """The slots that each row's next token looks at, its own included."""
        ages_C = (self.step - jnp.arange(self.capacity)) % self.capacity
        return ages_C[None, :] <= self.lengths_B[:, None]

    def write(self, layers: Layers, layer: Array | int, new_BKA: Array) -> Layers:
        """`keys` or `values` with the next slot of a layer filled."""
        slot = self.step % self.capacity
        if isinstance(layers, tuple):
            assert isinstance(layer, int)
            new = jax.lax.dynamic_update_slice(layers[layer], new_BKA[:, :, None], (0, 0, slot, 0))
            return (*layers[:layer], new, *layers[layer + 1 :])
        return jax.lax.dynamic_update_slice(layers, new_BKA.swapaxes(0, 1)[None, None], (layer, slot, 0, 0, 0))

    def read(self, layers: Layers, layer: Array | int) -> Array:
        """`keys` or `values` of a layer, [B, K, C, A]."""
        return layers[layer] if isinstance(layers, tuple) else layers[layer].transpose(2, 1, 0, 3)

    def step_of_twice(self) -> Array:
        """The step of a ring whose keys and values are `twice` these."""
        return self.capacity + self.step % self.capacity


def twice(layers: Layers) -> Layers:
    """Keys or values in a ring of twice as many slots, at the step `Ring.step_of_twice`.

    Slot j goes to j and to C + j: whichever of the two is as old as it was is the one that is looked at, and the other
    counts as older than C, or comes next to be written.
    """
    if isinstance(layers, tuple):
        return tuple(jnp.concatenate([x_BKCA, x_BKCA], axis=2) for x_BKCA in layers)
    return jnp.concatenate([layers, layers], axis=1)


def init_cache(config: ModelConfig, batch_size: int, capacity: int) -> Cache:
    """An empty cache for `batch_size` rows of up to `capacity` tokens, padding included."""
    shape = (config.num_hidden_layers, batch_size, capacity, config.num_key_value_heads, config.head_dim)
    return Cache(
        keys_LBCKA=jnp.zeros(shape, config.dtype),
        values_LBCKA=jnp.zeros(shape, config.dtype),
        mask_BC=jnp.zeros((batch_size, capacity), bool),
        length=jnp.zeros((), jnp.int32),
    )
