r"""Exact summaries of m samples of each of P prompts, in float64 on the host.

k of a prompt's m samples are drawn uniformly without replacement, and every number is the exact mean over all
binom(m, k) draws. The vote needs the chance that a given cluster wins it: with s votes against fewer for every
other cluster, or as one of t + 1 that tie at s, which then share the win equally. Draws are counted by generating
functions, with x marking samples and y marking rivals that tie:

    W_c(s, k) = binom(m_c, s) [x^(k-s)] (1 + x)^f  sum_t 1/(t+1) [y^t]  prod_{j != c, m_j >= s} R_j(x, y) / binom(m, k)
    R_j(x, y) = sum_{a < s} binom(m_j, a) x^a + y binom(m_j, s) x^s

m_c is the size of cluster c, and f counts the samples that cannot outvote s: degenerate ones, and those of
clusters smaller than s. All terms are positive, so nothing cancels.
"""

import functools
import math
from typing import Any

import numpy as np

from polyepo_jax.sets import pass_at_k
from polyepo_jax.types import DEGENERATE

# binom(m, m / 2) is still a float64 here; it is not for m above 1,029.
MAX_SAMPLES = 1_000


@functools.lru_cache(maxsize=4096)
def _binomials(n: int, length: int) -> np.ndarray:
    """Coefficients of (1 + x)^n up to x^(length - 1), float64[length]."""
    return np.array([float(math.comb(n, a)) for a in range(length)])


def _tie_weights(rivals: list[int], votes: int, num_free: int, num_samples: int) -> np.ndarray:
    """[x^j] (1 + x)^f sum_t 1/(t+1) [y^t] prod_j R_j for j = 0..m, float64[m + 1].

    A polynomial in x and y is held flat, as one in x with y = x^(m + 1): degrees in x never exceed m, so the
    product of two of them is one plain convolution.
    """
    width = num_samples + 1
    flat = _binomials(num_free, width)
    for size in rivals:
        coefficients = _binomials(size, votes + 1)
        fewer = np.convolve(flat, coefficients[:votes])
        product = np.zeros(flat.size + width)
        product[: fewer.size] = fewer
        product[width + votes :] += coefficients[votes] * flat[: flat.size - votes]
        flat = product
    by_ties = flat.reshape(-1, width)
    return (by_ties / np.arange(1, len(by_ties) + 1)[:, None]).sum(0)


@functools.lru_cache(maxsize=1024)
def _win_chances(sizes: tuple[int, ...], num_samples: int, ks: tuple[int, ...]) -> dict[int, np.ndarray]:
    """W_c(s, k) of a cluster of each size that occurs: {size: float64[s = 0..size, K]}.

    Clusters of equal size have equal chances, and the chances depend on nothing but the sizes, so that prompts
    which split alike share the work.
    """
    chances = {size: np.zeros((size + 1, len(ks))) for size in set(sizes)}
    for own, table in chances.items():
        rivals = list(sizes)
        rivals.remove(own)
        for votes in range(1, own + 1):
            strong = [size for size in rivals if size >= votes]
            num_free = num_samples - own - sum(strong)
            weights = _tie_weights(strong, votes, num_free, num_samples)
            for i, k in enumerate(ks):
                if k >= votes:
                    table[votes, i] = math.comb(own, votes) * (weights[k - votes] / math.comb(num_samples, k))
    return chances


def votes_at_k(rewards_M: np.ndarray, clusters_M: np.ndarray, ks: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """majority@k and vote share@k of one prompt, float64[K] each; both as `summarize` defines them.

    Args:
      rewards_M: float64[M], finite.
      clusters_M: int[M], ids arbitrary, DEGENERATE = -1.
      ks: each from 1 to M, which is at most MAX_SAMPLES.
    """
    ids, inverse, counts = np.unique(clusters_M, return_inverse=True, return_counts=True)
    mean_rewards = np.bincount(inverse, rewards_M) / counts
    clusters = [(int(n), r) for i, n, r in zip(ids, counts, mean_rewards, strict=True) if i != DEGENERATE]
    majority_K, largest_K = np.zeros(len(ks)), np.zeros(len(ks))
    chances = _win_chances(tuple(sorted(size for size, _ in clusters)), rewards_M.size, ks)
    for size, mean_reward in clusters:
        majority_K += mean_reward * chances[size].sum(0)
        largest_K += np.arange(size + 1) @ chances[size]
    return majority_K, largest_K / np.array(ks)


def _num_distinct(clusters_PM: np.ndarray, counted_PM: np.ndarray) -> np.ndarray:
    """Number of different non-degenerate clusters among the counted samples of each prompt, int[P]."""
    counted_PM = counted_PM & (clusters_PM != DEGENERATE)
    return np.array([np.unique(c[counted]).size for c, counted in zip(clusters_PM, counted_PM, strict=True)])


def powers_of_two(num_samples: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to m, and m itself: the k of every curve over k."""
    return tuple(sorted({2**i for i in range(num_samples.bit_length())} | {num_samples}))


def summarize(rewards_PM, clusters_PM, truncated_PM) -> dict[str, Any]:
    """One benchmark's entry in eval.json.

    A sample is correct when its reward is positive. pass@k is the chance that any of k samples is correct.
    majority@k is the expected mean reward of the largest cluster among k samples, where ties share equally and
    degenerate samples never win but count among the k (degenerate samples alone score 0). vote share@k is the
    expected size of that cluster divided by k.

    Args:
      rewards_PM: [P, M], finite real numbers, m samples of each prompt.
      clusters_PM: int[P, M], ids arbitrary within a prompt, DEGENERATE = -1.
      truncated_PM: bool[P, M], samples that the length limit ended.

    Returns:
      num_prompts; pass_at_k, majority_at_k and vote_share_at_k, each {str(k): mean over prompts} for the powers
      of two up to m and m itself; coverage, the share of prompts with a correct sample; distinct and
      distinct_correct, the mean over prompts of the number of different non-degenerate clusters among the
      samples and among the correct ones; degenerate_frac and truncated_frac, shares of the samples. Plain
      Python numbers.

    Raises:
      ValueError: shapes that differ or are not [P, M], no prompt, no sample, more than MAX_SAMPLES of them,
        cluster ids that are not integers, or a reward that is not finite.
    """
    rewards_PM = np.asarray(rewards_PM, np.float64)
    clusters_PM, truncated_PM = np.asarray(clusters_PM), np.asarray(truncated_PM, bool)
    if rewards_PM.ndim != 2 or not rewards_PM.shape == clusters_PM.shape == truncated_PM.shape:
        raise ValueError(
            "expected rewards, cluster ids and truncations of equal shape [P, M], got "
            f"{rewards_PM.shape}, {clusters_PM.shape} and {truncated_PM.shape}"
        )
    num_prompts, num_samples = rewards_PM.shape
    if num_prompts < 1 or not 1 <= num_samples <= MAX_SAMPLES:
        raise ValueError(f"expected at least 1 prompt and 1 to {MAX_SAMPLES} samples of each, got {rewards_PM.shape}")
    if not np.issubdtype(clusters_PM.dtype, np.integer):
        raise ValueError(f"clusters_PM must hold integer ids, got {clusters_PM.dtype}")
    if not np.all(np.isfinite(rewards_PM)):
        raise ValueError("every reward must be a finite number")

    ks = powers_of_two(num_samples)
    correct_PM = rewards_PM > 0
    passes_PK = np.asarray(pass_at_k(num_samples, correct_PM.sum(1)[:, None], np.array(ks)[None, :]), np.float64)
    votes = [votes_at_k(r, c, ks) for r, c in zip(rewards_PM, clusters_PM, strict=True)]

    def at_k(values_PK) -> dict[str, float]:
        return {str(k): float(value) for k, value in zip(ks, np.mean(values_PK, axis=0), strict=True)}

    return {
        "num_prompts": num_prompts,
        "pass_at_k": at_k(passes_PK),
        "majority_at_k": at_k([majority_K for majority_K, _ in votes]),
        "vote_share_at_k": at_k([share_K for _, share_K in votes]),
        "coverage": float(correct_PM.any(1).mean()),
        "distinct": float(_num_distinct(clusters_PM, np.ones_like(correct_PM)).mean()),
        "distinct_correct": float(_num_distinct(clusters_PM, correct_PM).mean()),
        "degenerate_frac": float((clusters_PM == DEGENERATE).mean()),
        "truncated_frac": float(truncated_PM.mean()),
    }


def branching(tokens_NT, mask_NT) -> np.ndarray:
    """B(t), the number of different prefixes of t tokens among N rollouts of a prompt, for t = 1..T.

    A rollout that has ended keeps its end: it stays different from those that go on, so B never falls.

    Args:
      tokens_NT: int[N, T], token ids (at least 0), right-padded.
      mask_NT: bool[N, T], True on real tokens.

    Returns:
      int[T].
    """
    tokens_NT = np.where(np.asarray(mask_NT, bool), np.asarray(tokens_NT), -1)
    ordered_NT = tokens_NT[np.lexsort(tokens_NT.T[::-1])]
    # In lexicographic order equal prefixes are neighbours, at every length.
    split_NT = np.logical_or.accumulate(ordered_NT[1:] != ordered_NT[:-1], axis=1)
    return 1 + split_NT.sum(0)
