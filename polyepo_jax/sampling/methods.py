"""How the next token is drawn from the model's logits."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp

from polyepo_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Temperature, then top-k, then top-p: the order of Hugging Face `generate`.

    temperature: divides the logits; 0 takes the most likely token.
    top_k: keeps this many most likely tokens; 0 keeps all.
    top_p: keeps the fewest most likely tokens whose probability reaches this; 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 (0 = off), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] (1 = off), got {self.top_p}")

    def transform(self, logits_V: Array) -> Array:
        """Logits of the distribution that is sampled; removed tokens get the most negative finite number.

        The trainer applies it too, so that both sides' logprobs are of the same distribution.

        Args:
          logits_V: [V].

        Returns:
          [V], not normalised.
        """
        chex.assert_rank(logits_V, 1)
        if self.temperature == 0:
            return jnp.where(jnp.arange(logits_V.size) == jnp.argmax(logits_V), 0, jnp.finfo(logits_V.dtype).min)
        if self.temperature != 1:
            logits_V = logits_V / self.temperature
        if not self.top_k and self.top_p == 1:
            return logits_V
        descending = jnp.argsort(-logits_V)
        kept = jnp.ones(logits_V.shape, bool)  # in descending order
        if self.top_k:
            kept &= jnp.arange(logits_V.size) < self.top_k
        if self.top_p < 1:
            probabilities = jax.nn.softmax(jnp.where(kept, logits_V[descending], -jnp.inf))
            before = jnp.cumsum(probabilities) - probabilities
            kept &= (before < self.top_p) | (jnp.arange(logits_V.size) == 0)
        kept_V = jnp.zeros(logits_V.shape, bool).at[descending].set(kept)
        return jnp.where(kept_V, logits_V, jnp.finfo(logits_V.dtype).min)


def sample_token(logits_V: Array, uniform: Array) -> tuple[Array, Array]:
    """Draws from softmax(logits) by inverting its CDF at one uniform number.

    Two levels, blocks of about sqrt(V) tokens and then the tokens of one block, so that a draw costs one pass
    over the logits and no V random numbers (Gumbel noise for a vocabulary of 32k is half a decode step on CPU).

    Args:
      logits_V: [V], not normalised.
      uniform: scalar in [0, 1).

    Returns:
      The token (int32 scalar), never one of probability 0; and its logprob in nats.
    """
    chex.assert_rank([logits_V, uniform], [1, 0])
    size = logits_V.size
    width = _block_width(size)
    # Padding adds no weight. Without it nothing is copied, and no weight but those of one block is ever stored.
    padded = jnp.pad(logits_V, (0, -size % width), constant_values=-jnp.inf) if size % width else logits_V
    blocks, top = padded.reshape(-1, width), jnp.max(logits_V)

    def invert(weights, target):
        # The first index whose running sum exceeds the target. It has weight, unless rounding put the target
        # below 0, or at or past the total: then the first or last index that has.
        running = jnp.cumsum(weights)
        index = jnp.sum(running <= target)
        first, last = jnp.argmax(weights > 0), weights.size - 1 - jnp.argmax(weights[::-1] > 0)
        index = jnp.clip(index, first, last)
        return index, target - (running[index] - weights[index])

    block_weights = jnp.sum(jnp.exp(blocks - top), axis=1)
    total = jnp.sum(block_weights)
    block, remainder = invert(block_weights, uniform.astype(total.dtype) * total)
    within, _ = invert(jnp.exp(blocks[block] - top), remainder)
    token = (block * width + within).astype(jnp.int32)
    return token, blocks[block, within] - top - jnp.log(total)


def _block_width(size: int) -> int:
    """About sqrt(size): a power of two, where one near it divides the size, so that nothing is padded."""
    root = math.isqrt(size - 1) + 1
    powers = [2**k for k in range(1, size.bit_length()) if root / 4 <= 2**k <= 2 * root and size % 2**k == 0]
    return max(powers, default=root)
