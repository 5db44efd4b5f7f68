"""From set scores to one advantage for each generation, and the baselines of the paper.

Functions take one prompt; callers `vmap`.
"""

import dataclasses
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from polyepo_jax.sets.closed_form import mean_of_valid
from polyepo_jax.sets.construct import all_sets, check_set_size, sample_sets
from polyepo_jax.types import DEGENERATE, Array

# |A| below this is rounding, not signal.
SIGNAL_THRESHOLD = 1e-6

# Sets of one prompt that are enumerated for an objective without a closed form, at most.
MAX_ENUMERATED_SETS = 100_000


def _float_rewards(rewards_N) -> Array:
    rewards_N = jnp.asarray(rewards_N)
    if not jnp.issubdtype(rewards_N.dtype, jnp.floating):
        rewards_N = rewards_N.astype(float)  # the default float type: float32, or float64 under x64
    return rewards_N


def _checked_group(rewards_N, clusters_N, valid_N) -> tuple[Array, Array, Array]:
    """Rewards as floats, cluster ids and validity (None: all valid) of one prompt.

    Raises:
      ValueError: they are not three arrays [N], or ids are not integers.
    """
    rewards_N = _float_rewards(rewards_N)
    clusters_N = jnp.asarray(clusters_N)
    valid_N = jnp.ones(rewards_N.shape, bool) if valid_N is None else jnp.asarray(valid_N, bool)
    if rewards_N.ndim != 1 or not rewards_N.shape == clusters_N.shape == valid_N.shape:
        raise ValueError(
            "expected rewards, cluster ids and validity of one prompt, each of shape [N], got shapes "
            f"{rewards_N.shape}, {clusters_N.shape} and {valid_N.shape}; use jax.vmap for several prompts"
        )
    if not jnp.issubdtype(clusters_N.dtype, jnp.integer):
        raise ValueError(f"clusters_N must hold integer ids, got {clusters_N.dtype}")
    return rewards_N, clusters_N, valid_N


def _center(values_N: Array, valid_N: Array) -> Array:
    """values - their mean over the valid generations; 0 where not valid."""
    return jnp.where(valid_N, values_N - mean_of_valid(values_N, valid_N), 0)


def _sets_per_generation(num_generations: int, set_size: int, num_valid: Array, dtype) -> Array:
    """binom(V - 1, n - 1), the number of sets that hold a given generation."""
    counts = [math.comb(v - 1, set_size - 1) if v else 0 for v in range(num_generations + 1)]
    if counts[-1] > float(jnp.finfo(dtype).max):
        raise ValueError(
            f"reduce='sum' over all sets of {set_size} out of {num_generations} overflows {jnp.dtype(dtype).name}: "
            "use reduce='mean', which differs by a constant factor only"
        )
    return jnp.asarray(np.array([float(c) for c in counts]), dtype)[num_valid]


def _check_enumerable(objective: Any, num_generations: int) -> None:
    num_sets = math.comb(num_generations, objective.set_size)
    if num_sets > MAX_ENUMERATED_SETS:
        raise ValueError(
            f"objective {objective!r} has no closed form and C({num_generations}, {objective.set_size}) = {num_sets} "
            f"sets are too many to enumerate (at most {MAX_ENUMERATED_SETS}): draw some, by sets_SM=sample_sets(...) "
            "or SetAdvantage(..., num_sets=K)"
        )


def _all_subsets_advantages(objective, rewards_N, clusters_N, valid_N, reduce):
    num_generations = rewards_N.shape[0]
    num_valid = jnp.sum(valid_N)
    means_N = objective.conditional_means(rewards_N, clusters_N, valid_N)
    advantages_N = _center(means_N, valid_N)
    if reduce == "sum":
        advantages_N = advantages_N * _sets_per_generation(
            num_generations, objective.set_size, num_valid, rewards_N.dtype
        )
    # With V <= n valid generations there is at most one set, so nothing to compare it with.
    return jnp.where(num_valid > objective.set_size, advantages_N, 0)


def _given_sets_advantages(objective, rewards_N, clusters_N, valid_N, sets_SM, reduce):
    num_generations = rewards_N.shape[0]
    usable_S = jnp.all(valid_N[sets_SM], axis=1)
    scores_S = jax.vmap(objective)(rewards_N[sets_SM], clusters_N[sets_SM])
    chex.assert_shape(scores_S, (sets_SM.shape[0],))
    set_advantages_S = _center(scores_S.astype(rewards_N.dtype), usable_S)
    rows_S1 = jnp.arange(sets_SM.shape[0])[:, None]
    member_SN = jnp.zeros((sets_SM.shape[0], num_generations), bool).at[rows_S1, sets_SM].set(True)
    # A sum over an axis, which XLA adds pairwise: a scatter-add of 1e4 sets loses 5e-6 in float32.
    totals_N = jnp.sum(jnp.where(member_SN, set_advantages_S[:, None], 0), axis=0)
    if reduce == "sum":
        return totals_N
    counts_N = jnp.sum(member_SN & usable_S[:, None], axis=0)
    return totals_N / jnp.maximum(counts_N, 1).astype(rewards_N.dtype)


def marginal_advantages(
    objective: Any, rewards_N, clusters_N, *, sets_SM=None, valid_N=None, reduce: str = "mean"
) -> Array:
    """Marginal set advantage of each generation of a prompt (Eq. 8).

    A_i is the mean (or sum), over the sets G that hold generation i, of A#(G) = f(G) - mean over sets of f.

    Args:
      objective: f(rewards_M, clusters_M) -> scalar, symmetric in the members. Its attribute `set_size` is n
        (needed unless `sets_SM` is given); with a method `conditional_means` nothing is enumerated.
      rewards_N: [N], any real numbers; their float type is that of the result.
      clusters_N: int[N], ids arbitrary, DEGENERATE = -1.
      sets_SM: int[S, M], the sets to use; None for all subsets of the valid generations. A set with an invalid
        member is left out, a generation in no set gets 0.
      valid_N: bool[N], generations that take part; None for all. The others get 0 and change nothing.
      reduce: "mean" or "sum" over the sets that hold a generation.

    Returns:
      float[N]. Sums to 0 over all sets, and for reduce="sum" over any.

    Raises:
      ValueError: shapes that do not fit, a set_size outside 1..N, no set_size, or an objective without closed
        form that would need more than MAX_ENUMERATED_SETS sets.
    """
    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce must be 'mean' or 'sum', got {reduce!r}")
    rewards_N, clusters_N, valid = _checked_group(rewards_N, clusters_N, valid_N)
    num_generations = rewards_N.shape[0]
    # An invalid generation's grade may be anything, NaN too: it must not reach any sum.
    rewards_N = jnp.where(valid, rewards_N, 0)

    if sets_SM is None:
        set_size = getattr(objective, "set_size", None)
        if set_size is None:
            raise ValueError(
                f"objective {objective!r} has no set_size: give it that attribute, or pass sets_SM "
                "(all_sets(num_generations, set_size) or sample_sets(...))"
            )
        check_set_size(num_generations, set_size)
        if hasattr(objective, "conditional_means"):
            advantages_N = _all_subsets_advantages(objective, rewards_N, clusters_N, valid, reduce)
            return jnp.where(valid, advantages_N, 0)
        _check_enumerable(objective, num_generations)
        sets_SM = all_sets(num_generations, set_size)
    else:
        if not isinstance(sets_SM, jax.core.Tracer):
            indices = np.asarray(sets_SM)
            if np.any((indices < 0) | (indices >= num_generations)):
                raise ValueError(f"sets_SM must hold generation indices 0 .. {num_generations - 1}, got others")
        sets_SM = jnp.asarray(sets_SM)
        if sets_SM.ndim != 2 or not jnp.issubdtype(sets_SM.dtype, jnp.integer):
            raise ValueError(f"sets_SM must be an integer array [S, M], got {sets_SM.dtype}{list(sets_SM.shape)}")
    advantages_N = _given_sets_advantages(objective, rewards_N, clusters_N, valid, sets_SM, reduce)
    return jnp.where(valid, advantages_N, 0)


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
    rewards_N = _float_rewards(rewards_N)
    rewards_N, _, valid_N = _checked_group(rewards_N, jnp.zeros(rewards_N.shape, int), valid_N)
    return _center(rewards_N, valid_N)


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
    rewards_N, clusters_N, valid_N = _checked_group(rewards_N, clusters_N, valid_N)
    clustered_N = valid_N & (clusters_N != DEGENERATE)
    same_NN = (clusters_N[:, None] == clusters_N[None, :]) & clustered_N[None, :]
    size_N = jnp.maximum(jnp.sum(same_NN, axis=1), 1).astype(rewards_N.dtype)
    num_valid = jnp.sum(valid_N).astype(rewards_N.dtype)
    diversity_N = (num_valid / size_N - 1) / jnp.maximum(num_valid - 1, 1)
    return _center(rewards_N + weight * jnp.where(clustered_N, diversity_N, 0), valid_N)


@dataclasses.dataclass(frozen=True)
class SetAdvantage:
    """Marginal advantages of a set objective, over all sets or over a sample of them.

    objective: a callable f(rewards_M, clusters_M) with attribute `set_size`.
    num_sets: K sets drawn a prompt, uniformly without replacement; None uses all C(N, n).
    reduce: "mean" or "sum" over the sets that hold a generation.
    """

    objective: Any
    num_sets: int | None = None
    reduce: str = "mean"

    def __post_init__(self):
        if self.reduce not in ("mean", "sum"):
            raise ValueError(f"reduce must be 'mean' or 'sum', got {self.reduce!r}")

    def check(self, num_generations: int) -> None:
        """Raises ValueError if groups of `num_generations` can carry no signal (Prop. 3.1: M = 0)."""
        set_size = getattr(self.objective, "set_size", None)
        if set_size is None:
            raise ValueError(f"objective {self.objective!r} needs an attribute set_size")
        if not 1 <= set_size < num_generations:
            raise ValueError(
                f"set_size must be at least 1 and less than num_generations = {num_generations} (a set of all "
                f"generations has nothing to be compared with: every advantage is 0), got {set_size}"
            )
        num_all = math.comb(num_generations, set_size)
        if self.num_sets is None:
            if not hasattr(self.objective, "conditional_means"):
                _check_enumerable(self.objective, num_generations)
            if self.reduce == "sum":
                _sets_per_generation(num_generations, set_size, jnp.asarray(num_generations), jnp.float32)
        if self.num_sets is not None and not 2 <= self.num_sets <= num_all:
            raise ValueError(
                f"num_sets must be between 2 (one set has nothing to be compared with) and the "
                f"C({num_generations}, {set_size}) = {num_all} sets there are, got {self.num_sets}"
            )

    def __call__(self, key: Array, rewards_N: Array, clusters_N: Array, valid_N: Array) -> Array:
        sets_SM = None
        if self.num_sets is not None:
            sets_SM = sample_sets(key, rewards_N.shape[0], self.objective.set_size, self.num_sets)
        return marginal_advantages(
            self.objective, rewards_N, clusters_N, sets_SM=sets_SM, valid_N=valid_N, reduce=self.reduce
        )

    def diagnostics(self, rewards_N: Array, clusters_N: Array, valid_N: Array) -> dict[str, Array]:
        """Scalars of one group for the log, over all sets; empty for an objective without closed form.

        `objective`: E[f]. `term1`, `term2`: mean |.| over the valid generations of the two terms of Eq. 15, where
        the objective has them (method `terms`).
        """
        if not hasattr(self.objective, "conditional_means"):
            return {}
        rewards_N = jnp.where(valid_N, rewards_N, 0)
        means_N = self.objective.conditional_means(rewards_N, clusters_N, valid_N)
        scalars = {"objective": mean_of_valid(means_N, valid_N)}
        if hasattr(self.objective, "terms"):
            term1_N, term2_N = self.objective.terms(rewards_N, clusters_N, valid_N)
            scalars |= {
                "term1": mean_of_valid(jnp.abs(term1_N), valid_N),
                "term2": mean_of_valid(jnp.abs(term2_N), valid_N),
            }
        return scalars


@dataclasses.dataclass(frozen=True)
class GRPO:
    """A_i = r_i - mean r."""

    def check(self, num_generations: int) -> None:
        """Every group of two or more can carry signal."""

    def __call__(self, key: Array, rewards_N: Array, clusters_N: Array, valid_N: Array) -> Array:
        return grpo_advantages(rewards_N, valid_N=valid_N)


@dataclasses.dataclass(frozen=True)
class GRPODiv:
    """GRPO with an additive diversity bonus. weight: lambda; the paper publishes none, 0.5 is its example."""

    weight: float = 0.5

    def check(self, num_generations: int) -> None:
        """Every group of two or more can carry signal."""

    def __call__(self, key: Array, rewards_N: Array, clusters_N: Array, valid_N: Array) -> Array:
        return grpo_div_advantages(rewards_N, clusters_N, self.weight, valid_N=valid_N)
