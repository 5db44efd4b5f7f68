"""Advantages that weigh each generation by itself: GRPO and its relatives.

Functions take one prompt; callers `vmap`. Generations that are not valid get 0 and change nothing.
"""

import dataclasses
import math

import jax.numpy as jnp

from polyepo_jax.sets.group import center, checked_group, float_rewards, mean_of_valid
from polyepo_jax.types import DEGENERATE, Array

# Added to what a baseline divides by.
EPSILON = 1e-6


def _checked_rewards(rewards_N, valid_N) -> tuple[Array, Array]:
    rewards_N = float_rewards(rewards_N)
    rewards_N, _, valid_N = checked_group(rewards_N, jnp.zeros(rewards_N.shape, int), valid_N)
    return rewards_N, valid_N


def grpo_advantages(rewards_N, *, valid_N=None) -> Array:
    """GRPO without the division by the standard deviation: A_i = r_i - mean r.

    Args:
      rewards_N: [N].
      valid_N: bool[N], generations that take part; None for all. The others get 0.

    Returns:
      float[N].

    Raises:
      ValueError: shapes other than [N].
    """
    return center(*_checked_rewards(rewards_N, valid_N))


def grpo_div_advantages(rewards_N, clusters_N, weight: float, *, valid_N=None) -> Array:
    """GRPO+DIV, the paper's additive baseline: A_i = u_i - mean u with u_i = r_i + weight * d_i.

    d_i = (N / |cluster of i| - 1) / (N - 1): 1 when i is alone in its cluster, 0 when all share it, and 0 for
    degenerate generations, which have no strategy to be rare.

    Args:
      rewards_N: [N].
      clusters_N: int[N], DEGENERATE = -1.
      weight: lambda, of the bonus against the reward.
      valid_N: bool[N], generations that take part (N counts them alone); None for all. The others get 0.

    Returns:
      float[N].

    Raises:
      ValueError: shapes other than [N], or ids that are not integers.
    """
    rewards_N, clusters_N, valid_N = checked_group(rewards_N, clusters_N, valid_N)
    clustered_N = valid_N & (clusters_N != DEGENERATE)
    same_NN = (clusters_N[:, None] == clusters_N[None, :]) & clustered_N[None, :]
    size_N = jnp.maximum(jnp.sum(same_NN, axis=1), 1).astype(rewards_N.dtype)
    num_valid = jnp.sum(valid_N).astype(rewards_N.dtype)
    diversity_N = (num_valid / size_N - 1) / jnp.maximum(num_valid - 1, 1)
    return center(rewards_N + weight * jnp.where(clustered_N, diversity_N, 0), valid_N)


@dataclasses.dataclass(frozen=True)
class GRPO:
    """A_i = r_i - mean r, divided by the group's standard deviation where that is asked for.

    divide_by_std: A_i = (r_i - mean r) / (std r + 1e-6), as GRPO was published (Shao et al. 2024, arXiv:2402.03300),
      std with N - 1 in its denominator as in the common implementations. Dr. GRPO (Liu et al. 2025,
      arXiv:2503.20783) and Poly-EPO leave it out: it weighs a prompt by how sure the policy is of it.
    """

    divide_by_std: bool = False

    def __call__(self, key: Array, rewards_N: Array, clusters_N: Array, valid_N: Array) -> Array:
        rewards_N, valid_N = _checked_rewards(rewards_N, valid_N)
        centered_N = center(rewards_N, valid_N)
        if not self.divide_by_std:
            return centered_N
        degrees = jnp.maximum(jnp.sum(valid_N) - 1, 1).astype(rewards_N.dtype)
        return centered_N / (jnp.sqrt(jnp.sum(centered_N**2) / degrees) + EPSILON)


@dataclasses.dataclass(frozen=True)
class GRPODiv:
    """GRPO with an additive diversity bonus. weight: lambda; the paper publishes none, 0.5 is its example."""

    weight: float = 0.5

    def __post_init__(self):
        if not math.isfinite(self.weight):
            raise ValueError(f"weight must be finite, got {self.weight}")

    def __call__(self, key: Array, rewards_N: Array, clusters_N: Array, valid_N: Array) -> Array:
        return grpo_div_advantages(rewards_N, clusters_N, self.weight, valid_N=valid_N)


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """RLOO (Ahmadian et al. 2024, arXiv:2402.14740): A_i = r_i - mean of the other rewards.

    That is N / (N - 1) times GRPO's without the standard deviation.
    """

    def __call__(self, key: Array, rewards_N: Array, clusters_N: Array, valid_N: Array) -> Array:
        rewards_N, valid_N = _checked_rewards(rewards_N, valid_N)
        num_valid = jnp.sum(valid_N).astype(rewards_N.dtype)
        return center(rewards_N, valid_N) * (num_valid / jnp.maximum(num_valid - 1, 1))


@dataclasses.dataclass(frozen=True)
class MaxRL:
    """Maximum-likelihood RL (arXiv:2602.02710): A_i = (r_i - mean r) / (mean r + 1e-6), for rewards of at least 0.

    With 0/1 rewards, p being the chance of success, the expected gradient is N times that of the first N - 1 terms of
    log p = -sum_k (1 - p)^k / k, where GRPO follows p: hard prompts weigh more. A group with a negative reward has no
    such meaning: its advantages are NaN, so that the update is skipped and counted.
    """

    def __call__(self, key: Array, rewards_N: Array, clusters_N: Array, valid_N: Array) -> Array:
        rewards_N, valid_N = _checked_rewards(rewards_N, valid_N)
        advantages_N = center(rewards_N, valid_N) / (mean_of_valid(rewards_N, valid_N) + EPSILON)
        return jnp.where(jnp.any(rewards_N < 0) & valid_N, jnp.nan, advantages_N)
