"""Objectives of a set: functions f(rewards_M, clusters_M) -> scalar.

An objective is a frozen dataclass: config value, callable and static jit argument at once. Any callable of this
shape is one too. If it also has `conditional_means`, all-subset means need no enumeration.
"""

import dataclasses
from typing import Protocol

import jax.numpy as jnp

from polyepo_jax.sets import closed_form
from polyepo_jax.types import DEGENERATE, Array


class Objective(Protocol):
    """A symmetric function of the members of a set: rewards_M float[M], clusters_M int32[M] -> scalar."""

    def __call__(self, rewards_M: Array, clusters_M: Array) -> Array: ...


def num_distinct(clusters_M: Array) -> Array:
    """Number of different non-degenerate cluster ids, an int scalar; ids are arbitrary int32."""
    size = clusters_M.shape[0]
    same_MM = clusters_M[:, None] == clusters_M[None, :]
    earlier_MM = jnp.arange(size)[:, None] > jnp.arange(size)[None, :]
    seen_before_M = jnp.any(same_MM & earlier_MM, axis=1)
    return jnp.sum((clusters_M != DEGENERATE) & ~seen_before_M)


@dataclasses.dataclass(frozen=True)
class _SetObjective:
    """set_size: n, the number of members of a set, at least 1."""

    set_size: int = 4

    def __post_init__(self):
        if not isinstance(self.set_size, int) or self.set_size < 1:
            raise ValueError(f"set_size must be an integer of at least 1, got {self.set_size}")


@dataclasses.dataclass(frozen=True)
class Polychromic(_SetObjective):
    """Mean reward times diversity (Eq. 10): f(G) = mean_{i in G} r_i * (distinct clusters in G) / n.

    set_size: n.
    require_distinct: also multiply by 1[at least two distinct clusters], as the paper's algorithm does and the
      official code does not. At n = 1 it makes f identically 0.
    """

    require_distinct: bool = False

    def __call__(self, rewards_M: Array, clusters_M: Array) -> Array:
        distinct = num_distinct(clusters_M)
        value = jnp.mean(rewards_M) * (distinct / clusters_M.shape[0]).astype(rewards_M.dtype)
        return jnp.where(distinct >= 2, value, 0) if self.require_distinct else value

    def conditional_means(self, rewards_N: Array, clusters_N: Array, valid_N: Array) -> Array:
        return closed_form.polychromic_means(rewards_N, clusters_N, valid_N, self.set_size, self.require_distinct)

    def terms(self, rewards_N: Array, clusters_N: Array, valid_N: Array) -> tuple[Array, Array]:
        """The advantage over all sets in two parts (Eq. 15), each [N]; they add up to it.

        Term 1: mean reward times mean diversity of the sets that hold i, minus the same over all sets. Term 2:
        covariance of reward and diversity in the sets that hold i, minus the covariance over all sets.
        """

        def mean(values_N):
            return closed_form.mean_of_valid(values_N, valid_N)

        both_N = self.conditional_means(rewards_N, clusters_N, valid_N)
        # With every reward 1 the objective is the diversity alone, indicator included.
        diversity_N = self.conditional_means(jnp.ones_like(rewards_N), clusters_N, valid_N)
        reward_N = closed_form.mean_reward_means(rewards_N, valid_N, self.set_size)
        term1_N = jnp.where(valid_N, reward_N * diversity_N - mean(reward_N) * mean(diversity_N), 0)
        return term1_N, jnp.where(valid_N, both_N - mean(both_N), 0) - term1_N


@dataclasses.dataclass(frozen=True)
class MeanReward(_SetObjective):
    """f(G) = mean_{i in G} r_i. Its advantages are (N - n) / (n (N - 1)) times GRPO's without the std."""

    def __call__(self, rewards_M: Array, clusters_M: Array) -> Array:
        return jnp.mean(rewards_M)

    def conditional_means(self, rewards_N: Array, clusters_N: Array, valid_N: Array) -> Array:
        return closed_form.mean_reward_means(rewards_N, valid_N, self.set_size)


@dataclasses.dataclass(frozen=True)
class PassAtN(_SetObjective):
    """f(G) = max_{i in G} r_i: with 0/1 rewards, whether any member is correct, so that E[f] is pass@n."""

    def __call__(self, rewards_M: Array, clusters_M: Array) -> Array:
        return jnp.max(rewards_M)

    def conditional_means(self, rewards_N: Array, clusters_N: Array, valid_N: Array) -> Array:
        return closed_form.pass_means(rewards_N, valid_N, self.set_size)
