"""Losses of token logprobs: the clipped policy gradient and supervised learning.

A loss is a frozen dataclass with three methods: `normalizer` of a whole mini-batch, `token_weights` of its rows, and
`tokens`, the losses of single tokens. A mini-batch's loss is the sum over tokens of weight times loss / normalizer, so
that neither its value nor its gradient depends on how the rows are packed, cut into micro-batches or laid over devices.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from polyepo_jax.types import Array

# |log ratio| is clamped here before it is exponentiated, as the official code does: e^20 is far outside any
# clipping range, and finite.
MAX_LOG_RATIO = 20.0

# Maps the parameters, constants and hidden states [B, C, D] of C positions to logits [B, C, V].
Logits = Callable[[Any, Any, Array], Array]


def token_logprobs(
    logits: Logits,
    params: Any,
    hidden_BTD: Array,
    targets_BT: Array,
    chunk_length: int,
    num_wanted: Array | int | None = None,
    constants: Any = (),
) -> Array:
    """Logprob of each target, without ever holding logits of more than `chunk_length` positions a row.

    A loop over chunks of positions; the backward pass is one too, and computes a chunk's logits again. One chunk that
    holds all, where all are wanted, is no loop, and its logits are kept.

    Args:
      logits: of the distribution to be scored (temperature and truncation applied); a function of its arguments alone.
      params: what it has a gradient by, beside the hidden states.
      hidden_BTD: the hidden state that predicts each target.
      targets_BT: int[B, T].
      chunk_length: C.
      num_wanted: positions that count, of every row the first; chunks behind them are left out. It is the same on all
        devices. None for all.
      constants: what it has no gradient by.

    Returns:
      [B, T], nats, in the logits' dtype; 0 in chunks that are left out.
    """
    chex.assert_rank([hidden_BTD, targets_BT], [3, 2])
    length = targets_BT.shape[1]
    if num_wanted is None and chunk_length >= length:
        return _target_logprobs(logits, params, constants, hidden_BTD, targets_BT)
    # Two chunks, of more than one position: a single one does not depend on the loop, and XLA would always compute it.
    chunk_length = min(chunk_length, -(-length // 2))
    padding = ((0, 0), (0, -length % chunk_length))
    inputs = jnp.pad(hidden_BTD, (*padding, (0, 0))), jnp.pad(targets_BT, padding)
    num_wanted = jnp.asarray(length if num_wanted is None else num_wanted, jnp.int32)
    return _chunk_by_chunk(logits, chunk_length, params, constants, *inputs, num_wanted)[:, :length]


def _target_logprobs(logits: Logits, params: Any, constants: Any, hidden_BCD: Array, targets_BC: Array) -> Array:
    logits_BCV = logits(params, constants, hidden_BCD)
    chosen_BC = jnp.take_along_axis(logits_BCV, targets_BC[:, :, None], axis=2)[:, :, 0]
    return chosen_BC - jax.nn.logsumexp(logits_BCV, axis=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunk_by_chunk(
    logits: Logits, size: int, params: Any, constants: Any, hidden_BTD: Array, targets_BT: Array, num_wanted: Array
) -> Array:
    dtype = jax.eval_shape(functools.partial(_target_logprobs, logits), params, constants, hidden_BTD, targets_BT).dtype

    def score(index: Array, logprobs_BT: Array) -> Array:
        chunk = (_chunk(x, index, size) for x in (hidden_BTD, targets_BT))
        scored = _target_logprobs(logits, params, constants, *chunk)
        return jax.lax.dynamic_update_slice_in_dim(logprobs_BT, scored, index * size, axis=1)

    zeros_BT = _zeros_like(targets_BT, dtype)
    return jax.lax.fori_loop(0, (num_wanted + size - 1) // size, score, zeros_BT)


def _chunk(x_BT: Array, index: Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x_BT, index * size, size, axis=1)


def _zeros_like(x: Array, dtype: Any) -> Array:
    """Zeros that to the compiler, as the array, are each device's own."""
    zero = jnp.zeros((), dtype)
    return jnp.where(x == x, zero, zero)


def _chunks_forward(logits: Logits, size: int, *arguments):
    return _chunk_by_chunk(logits, size, *arguments), arguments


def _chunks_backward(logits: Logits, size: int, arguments, gradient_BT: Array):
    params, constants, hidden_BTD, targets_BT, num_wanted = arguments

    def add(index: Array, carry):
        by_params, by_hidden_BTD = carry
        hidden_BCD, targets_BC, gradient_BC = (_chunk(x, index, size) for x in (hidden_BTD, targets_BT, gradient_BT))
        _, pull_back = jax.vjp(lambda p, h: _target_logprobs(logits, p, constants, h, targets_BC), params, hidden_BCD)
        by_params_here, by_hidden_BCD = pull_back(gradient_BC)
        by_hidden_BTD = jax.lax.dynamic_update_slice_in_dim(by_hidden_BTD, by_hidden_BCD, index * size, axis=1)
        return jax.tree.map(jnp.add, by_params, by_params_here), by_hidden_BTD

    zeros = jax.tree.map(lambda x: _zeros_like(x, x.dtype), (params, hidden_BTD))
    by_params, by_hidden_BTD = jax.lax.fori_loop(0, (num_wanted + size - 1) // size, add, zeros)
    return by_params, jax.tree.map(jnp.zeros_like, constants), by_hidden_BTD, None, None


_chunk_by_chunk.defvjp(_chunks_forward, _chunks_backward)


def clipped_token_losses(
    logprobs_T: Array,
    old_logprobs_T: Array,
    advantages_T: Array,
    *,
    epsilon: float,
    epsilon_high: float,
    dual_clip: float | None = None,
) -> tuple[Array, Array]:
    """PPO's clipped surrogate (Schulman et al. 2017, Eq. 7) with bounds 1 - epsilon and 1 + epsilon_high, negated.

    Args:
      logprobs_T: of the policy that is trained. old_logprobs_T: of the policy that sampled, constants.
      advantages_T: of each token; arrays may have any shape.
      epsilon, epsilon_high: the lower and the upper clipping distance from ratio 1.
      dual_clip: c > 1 bounds the loss of a negative advantage by -c * advantage (Ye et al. 2020, Eq. 5).

    Returns:
      losses_T, and clipped_T: where a bound is active, so that the token has no gradient.
    """
    chex.assert_equal_shape([logprobs_T, old_logprobs_T, advantages_T])
    log_ratio_T = jnp.clip(logprobs_T - old_logprobs_T, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_T = jnp.exp(log_ratio_T)
    plain_T = -advantages_T * ratio_T
    bounded_T = -advantages_T * jnp.clip(ratio_T, 1 - epsilon, 1 + epsilon_high)
    losses_T = jnp.maximum(plain_T, bounded_T)
    clipped_T = bounded_T > plain_T
    if dual_clip is not None:
        ceiling = -advantages_T * dual_clip
        exceeds_T = (advantages_T < 0) & (losses_T > ceiling)
        losses_T, clipped_T = jnp.where(exceeds_T, ceiling, losses_T), clipped_T | exceeds_T
    return losses_T, clipped_T


def importance_weights(proximal_logprobs_T: Array, sampler_logprobs_T: Array, cap: float) -> tuple[Array, Array]:
    """Truncated importance weights of tokens, min(proximal / sampler, cap) (Espeholt et al. 2018, below Eq. 1).

    They correct for a sampler whose distribution is not quite the trainer's, as where it computes in bfloat16. The
    proximal policy is the trainer's before the step's first update.

    Returns:
      weights_T, and capped_T: where the cap is active. Neither has a gradient.
    """
    log_ratio_T = jnp.clip(proximal_logprobs_T - sampler_logprobs_T, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_T = jnp.exp(jax.lax.stop_gradient(log_ratio_T))
    return jnp.minimum(ratio_T, cap), ratio_T > cap


def kl_estimates(logprobs_T: Array, reference_logprobs_T: Array) -> Array:
    """Unbiased, non-negative estimate of KL(policy || reference) at each sampled token (Schulman's k3), nats."""
    log_ratio_T = jnp.clip(reference_logprobs_T - logprobs_T, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return jnp.exp(log_ratio_T) - 1 - log_ratio_T


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """Clipped policy gradient: mean over rows of (sum over trained tokens / denominator).

    epsilon, epsilon_high: clipping bounds 1 - epsilon and 1 + epsilon_high of the ratio.
    denominator: "max_length" divides a row's sum by T_max, the length limit (Dr. GRPO; Poly-EPO's choice);
      "completion_length" by its own |y| (GRPO).
    beta: weight of the KL penalty towards the initial policy; 0 leaves it out.
    dual_clip: c > 1, or None.
    importance_cap: weighs every token by `importance_weights` with this cap, and clips its ratio to the proximal
      policy; None leaves that out: the ratio is to what the sampler said.
    """

    epsilon: float = 0.2
    epsilon_high: float = 0.28
    denominator: Literal["max_length", "completion_length"] = "max_length"
    beta: float = 0.0
    dual_clip: float | None = None
    importance_cap: float | None = None

    def __post_init__(self):
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon must be between 0 and 1, got {self.epsilon}")
        if not (self.epsilon_high >= 0 and math.isfinite(self.epsilon_high)):
            raise ValueError(f"epsilon_high must be at least 0, got {self.epsilon_high}")
        if self.denominator not in ("max_length", "completion_length"):
            raise ValueError(f"denominator must be 'max_length' or 'completion_length', got {self.denominator!r}")
        if not (self.beta >= 0 and math.isfinite(self.beta)):
            raise ValueError(f"beta must be at least 0, got {self.beta}")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(f"dual_clip must be greater than 1, or None, got {self.dual_clip}")

        if self.importance_cap is not None and not (self.importance_cap > 0 and math.isfinite(self.importance_cap)):
            raise ValueError(f"importance_cap must be greater than 0, or None, got {self.importance_cap}")

    @property
    def needs_reference(self) -> bool:
        """Whether `tokens` reads the initial policy's logprobs."""
        return self.beta > 0

    def normalizer(self, loss_mask_BT: Array) -> Array:
        """The number of rows, masked ones included."""
        return jnp.asarray(loss_mask_BT.shape[0], float)

    def token_weights(self, lengths_B: Array, max_length: int) -> Array:
        """The weight of each token of rows of so many trained tokens, [B]: one over the denominator."""
        if self.denominator == "max_length":
            return jnp.full(lengths_B.shape, 1 / max_length)
        return 1 / jnp.maximum(lengths_B, 1)

    def tokens(
        self,
        logprobs: Array,
        sampler_logprobs: Array,
        proximal_logprobs: Array,
        reference_logprobs: Array,
        advantages: Array,
        trained: Array,
    ) -> tuple[Array, dict[str, Array]]:
        """The losses of tokens, arrays of one shape, 0 where not trained; and sums over the trained for the metrics, of
        what ends in `_max` the maximum."""
        old_logprobs = sampler_logprobs if self.importance_cap is None else proximal_logprobs
        losses, clipped = clipped_token_losses(
            logprobs,
            old_logprobs,
            advantages,
            epsilon=self.epsilon,
            epsilon_high=self.epsilon_high,
            dual_clip=self.dual_clip,
        )
        log_ratio = jnp.clip(logprobs - old_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        ratio = jnp.where(trained, jnp.exp(log_ratio), 0)
        sums = {"clipped": jnp.sum(clipped & trained), "ratio": jnp.sum(ratio), "ratio_max": jnp.max(ratio)}
        if self.importance_cap is not None:
            weights, capped = importance_weights(proximal_logprobs, sampler_logprobs, self.importance_cap)
            losses = losses * weights
            sums["importance_capped"] = jnp.sum(capped & trained)
        if self.needs_reference:
            kl = kl_estimates(logprobs, reference_logprobs)
            losses = losses + self.beta * kl
            sums["kl"] = jnp.sum(jnp.where(trained, kl, 0))
        # `where`, not a product: a position that is not trained may hold anything.
        return jnp.where(trained, losses, 0), sums


@dataclasses.dataclass(frozen=True)
class SupervisedLoss:
    """Mean negative logprob of the trained tokens, nats."""

    needs_reference = False
    importance_cap = None

    def normalizer(self, loss_mask_BT: Array) -> Array:
        """The number of trained tokens."""
        return jnp.maximum(jnp.sum(loss_mask_BT), 1).astype(float)

    def token_weights(self, lengths_B: Array, max_length: int) -> Array:
        """1 for all."""
        return jnp.ones(lengths_B.shape)

    def tokens(
        self,
        logprobs: Array,
        sampler_logprobs: Array,
        proximal_logprobs: Array,
        reference_logprobs: Array,
        advantages: Array,
        trained: Array,
    ) -> tuple[Array, dict[str, Array]]:
        """The negative logprobs of trained tokens; advantages and the other policies play no part."""
        return -jnp.where(trained, logprobs, 0), {}
