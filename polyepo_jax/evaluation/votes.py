r"""The vote of k samples of a prompt, in float64 on the host.

k of a prompt's m samples are drawn uniformly without replacement, and every number is the exact mean over all
binom(m, k) draws. That needs the chance that a given cluster wins it: with s votes against fewer for every
other cluster, or as one of t + 1 that tie at s, which then share the win equally. Draws are counted by generating
functions, with x marking samples and y marking rivals that tie:

    W_c(s, k) = binom(m_c, s) [x^(k-s)] (1 + x)^f  sum_t 1/(t+1) [y^t]  prod_{j != c, m_j >= s} R_j(x, y) / binom(m, k)
    R_j(x, y) = sum_{a < s} binom(m_j, a) x^a + y binom(m_j, s) x^s

m_c is the size of cluster c, and f counts the samples that cannot outvote s: degenerate ones, and those of
clusters smaller than s. All terms are positive, so nothing cancels.
"""

import functools
import math

import numpy as np

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
    """majority@k and vote share@k of one prompt, float64[K] each.

    majority@k is the expected mean reward of the largest cluster among k samples, where ties share equally and
    degenerate samples never win but count among the k (degenerate samples alone score 0). vote share@k is the expected
    size of that cluster divided by k.

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
