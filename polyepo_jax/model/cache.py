"""The key/value cache: a value that is passed in and returned."""

import dataclasses

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


def init_cache(config: ModelConfig, batch_size: int, capacity: int) -> Cache:
    """An empty cache for `batch_size` rows of up to `capacity` tokens, padding included."""
    shape = (config.num_hidden_layers, batch_size, capacity, config.num_key_value_heads, config.head_dim)
    return Cache(
        keys_LBCKA=jnp.zeros(shape, config.dtype),
        values_LBCKA=jnp.zeros(shape, config.dtype),
        mask_BC=jnp.zeros((batch_size, capacity), bool),
        length=jnp.zeros((), jnp.int32),
    )
