"""What m samples of one problem say of a policy: exact means over all ways to draw some of them, in float64."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from polyepo_jax.evaluation.votes import MAX_SAMPLES, votes_at_k
from polyepo_jax.types import DEGENERATE


def powers_of_two(num_samples: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to m, and m itself: the k of every curve over k."""
    return tuple(sorted({2**i for i in range(num_samples.bit_length())} | {num_samples}))


@functools.lru_cache(maxsize=65536)
def any_of(num_samples: int, num_marked: int, num_drawn: int) -> float:
    """The chance that some of k samples, drawn of m without replacement, are among the c marked ones.

    1 - binom(m - c, k) / binom(m, k), of integers and rounded once: pass@k (Chen et al. 2021, Eq. 1).
    """
    ways = math.comb(num_samples, num_drawn)
    return (ways - math.comb(num_samples - num_marked, num_drawn)) / ways


def _sizes(clusters: np.ndarray) -> list[int]:
    """Of the clusters that are not degenerate."""
    return np.unique(clusters[clusters != DEGENERATE], return_counts=True)[1].tolist()


def _checked(rewards_M, clusters_M, truncated_M) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As arrays of one shape; raises what `describe` does."""
    rewards_M, clusters_M = np.asarray(rewards_M, np.float64), np.asarray(clusters_M)
    truncated_M = np.zeros(rewards_M.shape, bool) if truncated_M is None else np.asarray(truncated_M, bool)
    if rewards_M.ndim != 1 or not rewards_M.shape == clusters_M.shape == truncated_M.shape:
        raise ValueError(
            "expected rewards, cluster ids and truncations of equal shape [M], got "
            f"{rewards_M.shape}, {clusters_M.shape} and {truncated_M.shape}"
        )
    if not 1 <= rewards_M.size <= MAX_SAMPLES:
        raise ValueError(f"expected 1 to {MAX_SAMPLES} samples of a problem, got {rewards_M.size}")
    if not np.issubdtype(clusters_M.dtype, np.integer):
        raise ValueError(f"clusters_M must hold integer ids, got {clusters_M.dtype}")
    if not np.all(np.isfinite(rewards_M)):
        raise ValueError("every reward must be a finite number")
    return rewards_M, clusters_M, truncated_M


def describe(rewards_M, clusters_M, truncated_M=None, hidden_M=None) -> dict[str, Any]:
    """One problem's numbers, by the names of eval.json.

    A sample is correct when its reward is positive.

    Args:
      rewards_M: [M], finite real numbers.
      clusters_M: int[M], ids arbitrary, DEGENERATE = -1.
      truncated_M: bool[M], samples that the length limit ended; None for none.
      hidden_M: bool[M], correct samples that meet a requirement unknown in training; None where there is none.

    Returns:
      num_samples, num_correct; pass_at_k, majority_at_k, vote_share_at_k and with `hidden_M` hidden_at_k (the chance
      that any of k samples is marked), {str(k): value} for the powers of two up to m and m itself; coverage, 1 or 0;
      distinct, distinct_correct and distinct_incorrect, how many different non-degenerate clusters there are among all,
      the correct and the incorrect samples; distinct_correct_if_solved, None without a correct one; rarefied_correct,
      {str(s): expected number of different clusters among s of the correct samples} (Hurlbert 1971), as far as there
      are so many; degenerate_frac and truncated_frac. Plain Python numbers.

    Raises:
      ValueError: shapes that differ or are not [M], no sample, more than MAX_SAMPLES of them, cluster ids that are not
        integers, or a reward that is not finite.
    """
    rewards_M, clusters_M, truncated_M = _checked(rewards_M, clusters_M, truncated_M)
    num_samples = rewards_M.size
    ks, correct_M = powers_of_two(num_samples), rewards_M > 0
    num_correct, sizes = int(correct_M.sum()), _sizes(clusters_M[correct_M])
    majority_K, share_K = votes_at_k(rewards_M, clusters_M, ks)

    def at_k(values) -> dict[str, float]:
        return {str(k): float(value) for k, value in zip(ks, values, strict=True)}

    hidden = {}
    if hidden_M is not None:
        num_hidden = int(np.sum(correct_M & np.asarray(hidden_M, bool)))
        hidden = {"hidden_at_k": at_k(any_of(num_samples, num_hidden, k) for k in ks)}
    return {
        "num_samples": num_samples,
        "num_correct": num_correct,
        "pass_at_k": at_k(any_of(num_samples, num_correct, k) for k in ks),
        "majority_at_k": at_k(majority_K),
        "vote_share_at_k": at_k(share_K),
        **hidden,
        "coverage": float(num_correct > 0),
        "distinct": float(len(_sizes(clusters_M))),
        "distinct_correct": float(len(sizes)),
        "distinct_incorrect": float(len(_sizes(clusters_M[~correct_M]))),
        "distinct_correct_if_solved": float(len(sizes)) if num_correct else None,
        "rarefied_correct": {
            str(s): math.fsum(any_of(num_correct, size, s) for size in sizes) for s in ks if s <= num_correct
        },
        "degenerate_frac": float(np.mean(clusters_M == DEGENERATE)),
        "truncated_frac": float(np.mean(truncated_M)),
    }


def defined(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None for NaN, which JSON does not have."""
    return {
        name: defined(value) if isinstance(value, Mapping) else None if value != value else value
        for name, value in numbers.items()
    }
