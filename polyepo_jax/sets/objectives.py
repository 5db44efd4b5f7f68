"""Objectives of a set: functions f(rewards_M, clusters_M) -> scalar.

An objective is a frozen dataclass: config value, callable and static jit argument at once. Any callable of this
shape is one too. If it also has `conditional_means`, all-subset means need no enumeration. docs/objectives.md lists
them all, with sources and derivations.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax.numpy as jnp

from polyepo_jax.sets import closed_form
from polyepo_jax.sets.group import float_rewards, mean_of_valid
from polyepo_jax.types import DEGENERATE, Array


class Objective(Protocol):
    """A symmetric function of the members of a set: rewards_M float[M], clusters_M int32[M] -> scalar."""

    def __call__(self, rewards_M: Array, clusters_M: Array) -> Array: ...


# (rewards_N, clusters_N, valid_N) -> E[f(G) | i in G] over all subsets of the valid generations, [N].
ConditionalMeans = Callable[[Array, Array, Array], Array]


def conditional_means_of(objective: Any) -> ConditionalMeans | None:
    """The objective's closed form, None where it has none."""
    return getattr(objective, "conditional_means", None)


def num_distinct(clusters_M: Array) -> Array:
    """Number of different non-degenerate cluster ids, an int scalar; ids are arbitrary int32."""
    size = clusters_M.shape[0]
    same_MM = clusters_M[:, None] == clusters_M[None, :]
    earlier_MM = jnp.arange(size)[:, None] > jnp.arange(size)[None, :]
    seen_before_M = jnp.any(same_MM & earlier_MM, axis=1)
    return jnp.sum((clusters_M != DEGENERATE) & ~seen_before_M)


def cluster_sizes(clusters_M: Array) -> Array:
    """Number of members in each member's cluster, int[M]; 0 for degenerate members."""
    same_MM = clusters_M[:, None] == clusters_M[None, :]
    return jnp.where(clusters_M != DEGENERATE, jnp.sum(same_MM, axis=1), 0)


class _Scored(abc.ABC):
    """Objectives are called with arrays of any kind, NumPy's too, and with rewards of any number type."""

    def __call__(self, rewards_M, clusters_M) -> Array:
        return self._score(float_rewards(rewards_M), jnp.asarray(clusters_M))

    @abc.abstractmethod
    def _score(self, rewards_M: Array, clusters_M: Array) -> Array:
        """f(G)."""


@dataclasses.dataclass(frozen=True)
class _SetObjective(_Scored):
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

    def _score(self, rewards_M: Array, clusters_M: Array) -> Array:
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
            return mean_of_valid(values_N, valid_N)

        both_N = self.conditional_means(rewards_N, clusters_N, valid_N)
        # With every reward 1 the objective is the diversity alone, indicator included.
        diversity_N = self.conditional_means(jnp.ones_like(rewards_N), clusters_N, valid_N)
        reward_N = closed_form.mean_reward_means(rewards_N, valid_N, self.set_size)
        # Up to n valid generations there is at most one set, with nothing to compare it with.
        compared_N = valid_N & (jnp.sum(valid_N) > self.set_size)
        term1_N = jnp.where(compared_N, reward_N * diversity_N - mean(reward_N) * mean(diversity_N), 0)
        return term1_N, jnp.where(compared_N, both_N - mean(both_N), 0) - term1_N


@dataclasses.dataclass(frozen=True)
class MeanReward(_SetObjective):
    """f(G) = mean_{i in G} r_i. Its advantages are (N - n) / (n (N - 1)) times GRPO's without the std."""

    def _score(self, rewards_M: Array, clusters_M: Array) -> Array:
        return jnp.mean(rewards_M)

    def conditional_means(self, rewards_N: Array, clusters_N: Array, valid_N: Array) -> Array:
        return closed_form.mean_reward_means(rewards_N, valid_N, self.set_size)


@dataclasses.dataclass(frozen=True)
class PassAtN(_SetObjective):
    """f(G) = max_{i in G} r_i: with 0/1 rewards, whether any member is correct, so that E[f] is pass@n."""

    def _score(self, rewards_M: Array, clusters_M: Array) -> Array:
        return jnp.max(rewards_M)

    def conditional_means(self, rewards_N: Array, clusters_N: Array, valid_N: Array) -> Array:
        return closed_form.pass_means(rewards_N, valid_N, self.set_size)


@dataclasses.dataclass(frozen=True)
class Worst(_SetObjective):
    """f(G) = min_{i in G} r_i: with 0/1 rewards, whether all members are correct (pass^n). It averts risk."""

    def _score(self, rewards_M: Array, clusters_M: Array) -> Array:
        return jnp.min(rewards_M)

    def conditional_means(self, rewards_N: Array, clusters_N: Array, valid_N: Array) -> Array:
        return -closed_form.pass_means(-rewards_N, valid_N, self.set_size)


@dataclasses.dataclass(frozen=True)
class Diversity(_SetObjective):
    """f(G) = (distinct clusters in G) / n (Eq. 11), whatever the rewards."""

    def _score(self, rewards_M: Array, clusters_M: Array) -> Array:
        return (num_distinct(clusters_M) / clusters_M.shape[0]).astype(rewards_M.dtype)

    def conditional_means(self, rewards_N: Array, clusters_N: Array, valid_N: Array) -> Array:
        return closed_form.distinct_means(clusters_N, valid_N, self.set_size, rewards_N.dtype) / self.set_size


@dataclasses.dataclass(frozen=True)
class DistinctCorrect(Diversity):
    """f(G) = (distinct clusters among the members of G with reward > 0) / n: strategies count when they succeed."""

    def _score(self, rewards_M: Array, clusters_M: Array) -> Array:
        return super()._score(rewards_M, self._correct(rewards_M, clusters_M))

    def conditional_means(self, rewards_N: Array, clusters_N: Array, valid_N: Array) -> Array:
        return super().conditional_means(rewards_N, self._correct(rewards_N, clusters_N), valid_N)

    @staticmethod
    def _correct(rewards: Array, clusters: Array) -> Array:
        return jnp.where(rewards > 0, clusters, DEGENERATE)


def _mean_reward_where(chosen_M: Array, rewards_M: Array) -> Array:
    """The mean reward of the chosen members, 0 where there is none."""
    total = jnp.sum(jnp.where(chosen_M, rewards_M, 0))
    return total / jnp.maximum(jnp.sum(chosen_M), 1).astype(rewards_M.dtype)


@dataclasses.dataclass(frozen=True)
class MajorityAtN(_SetObjective):
    """f(G) = mean reward of the largest cluster in G; tied clusters are averaged, degenerates alone score 0.

    With answers as clusters and 0/1 rewards, E[f] is majority@n. No closed form in O(N^2) is known to us.
    """

    def _score(self, rewards_M: Array, clusters_M: Array) -> Array:
        size_M = cluster_sizes(clusters_M)
        # Tied clusters are of equal size: the mean of their means is that of their members.
        return _mean_reward_where((size_M > 0) & (size_M == jnp.max(size_M)), rewards_M)


@dataclasses.dataclass(frozen=True)
class Minority(_SetObjective):
    """f(G) = mean reward of the smallest cluster in G; tied clusters are averaged, degenerates alone score 0.

    It pays for the success of rare strategies. No closed form in O(N^2) is known to us.
    """

    def _score(self, rewards_M: Array, clusters_M: Array) -> Array:
        size_M = cluster_sizes(clusters_M)
        smallest = jnp.min(jnp.where(size_M > 0, size_M, clusters_M.shape[0] + 1))
        return _mean_reward_where(size_M == smallest, rewards_M)


@dataclasses.dataclass(frozen=True)
class _Combination(_Scored):
    """parts: objectives of one set_size, as a tuple."""

    parts: tuple[Any, ...]

    def __post_init__(self):
        sizes = [getattr(part, "set_size", None) for part in self.parts] if isinstance(self.parts, tuple) else []
        if len(set(sizes)) != 1 or None in sizes:
            raise ValueError(
                f"{type(self).__name__} takes a tuple of objectives that all have the same set_size, got {self.parts!r}"
            )

    @property
    def set_size(self) -> int:
        """n, that of every part."""
        return self.parts[0].set_size

    def _values(self, rewards_M: Array, clusters_M: Array) -> list[Array]:
        return [jnp.asarray(part(rewards_M, clusters_M)).astype(rewards_M.dtype) for part in self.parts]


@dataclasses.dataclass(frozen=True)
class Sum(_Combination):
    """f(G) = sum_k w_k f_k(G).

    parts: f_k, a tuple of objectives of one set_size.
    weights: w_k; None for 1 each.
    """

    weights: tuple[float, ...] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.weights is not None and not (isinstance(self.weights, tuple) and len(self.weights) == len(self.parts)):
            raise ValueError(
                f"Sum takes a weight for each of its {len(self.parts)} parts, as a tuple, got {self.weights!r}"
            )

    def _score(self, rewards_M: Array, clusters_M: Array) -> Array:
        return self._weighted(self._values(rewards_M, clusters_M))

    def _weighted(self, values):
        return sum(w * value for w, value in zip(self.weights or [1] * len(self.parts), values, strict=True))

    @property
    def conditional_means(self) -> ConditionalMeans | None:
        """Means are linear: there is a closed form where every part has one."""
        forms = [conditional_means_of(part) for part in self.parts]
        if any(form is None for form in forms):
            return None
        return lambda *group: self._weighted([form(*group) for form in forms if form is not None])


@dataclasses.dataclass(frozen=True)
class Product(_Combination):
    """f(G) = prod_k f_k(G); Product((MeanReward(n), Diversity(n))) is Polychromic(n).

    Closed forms of the parts give none of the product, whose factors are not independent: all sets are enumerated, or
    some are sampled. A subclass may bring its own `conditional_means`.

    parts: f_k, a tuple of objectives of one set_size.
    """

    def _score(self, rewards_M: Array, clusters_M: Array) -> Array:
        first, *others = self._values(rewards_M, clusters_M)
        for value in others:
            first = first * value
        return first
