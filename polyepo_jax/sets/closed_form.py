r"""Exact means of set objectives over *all* subsets, without enumerating any.

Notation: V valid generations, sets G of n of them, c a (non-degenerate) cluster with m_c members, z the number
of degenerate generations. Every formula below needs only one family of numbers, the chance that the n - |F|
other members of a set all avoid m given generations, times the chance that the set holds F in the first place:

    g_f(m) = binom(V - m - f, n - f) / binom(V - 1, n - 1)
           = P(F in G, and G avoids m given generations outside F | i in G),    i in F, |F| = f in {1, 2}.

The functions return conditional means E[f(G) | i in G], shape [N]; all else follows from them, since every
set has n members: E[f(G)] is their plain mean over the valid generations.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from polyepo_jax.types import DEGENERATE, Array


@functools.lru_cache(maxsize=32)
def _avoidance_table(num_generations: int, set_size: int) -> np.ndarray:
    """g_f(m) for every number of valid generations: float64[V = 0..N, f - 1 in {0, 1}, m = 0..N]."""
    n = set_size
    V = np.arange(num_generations + 1)[:, None, None]
    f = np.arange(1, 3)[None, :, None]
    m = np.arange(num_generations)[None, None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        # g_f(m + 1) / g_f(m): float64 products of at most N such ratios are exact to about N * 1e-16.
        ratio = np.where(V - m - f > 0, (V - m - n) / (V - m - f), 0.0).clip(min=0.0)
        start = np.where(f == 1, 1.0, np.where(V > 1, (n - 1) / (V - 1), 0.0))
    start = np.broadcast_to(start, (num_generations + 1, 2, 1))
    table = np.concatenate([start, start * np.cumprod(ratio, axis=2)], axis=2)
    return np.where(V >= n, table, 0.0)


def _avoidance(num_generations: int, set_size: int, num_valid: Array, dtype) -> tuple[Array, Array]:
    """g_1 and g_2 for m = 0..N, each [N + 1], given the (traced) number of valid generations."""
    table = jnp.asarray(_avoidance_table(num_generations, set_size), dtype)[num_valid]
    return table[0], table[1]


def mean_reward_means(rewards_N: Array, valid_N: Array, set_size: int) -> Array:
    """E[mean reward of G | i in G] = (r_i + (n - 1) * mean of the other valid rewards) / n, shape [N]."""
    num_valid = jnp.sum(valid_N)
    total = jnp.sum(jnp.where(valid_N, rewards_N, 0))
    others = (total - rewards_N) / jnp.maximum(num_valid - 1, 1).astype(rewards_N.dtype)
    return (rewards_N + (set_size - 1) * others) / set_size


def pass_means(rewards_N: Array, valid_N: Array, set_size: int) -> Array:
    """E[max reward of G | i in G], shape [N], for any real rewards.

    With the valid generations in order of decreasing reward, positions k = 0, 1, ..., the best of G stands at k
    when G holds k and avoids the k before it. Given i in G, that has chance g_2(k) for k before i, and g_1(k)
    at i itself; k behind i cannot be the best.
    """
    num_generations = rewards_N.shape[0]
    g1, g2 = _avoidance(num_generations, set_size, jnp.sum(valid_N), rewards_N.dtype)
    order = jnp.lexsort((-rewards_N, ~valid_N))
    best = rewards_N[order[0]]
    # Counted from the best reward, so that equal rewards have equal means to the last bit.
    ordered = jnp.where(valid_N, rewards_N - best, 0)[order]
    better = jnp.cumsum(ordered * g2[:-1]) - ordered * g2[:-1]
    means = best + better + ordered * g1[:-1]
    return jnp.zeros_like(rewards_N).at[order].set(means)


def _cluster_sizes(clusters_N: Array, valid_N: Array) -> tuple[Array, Array, Array]:
    """Who shares a cluster, bool[N, N]; the size of each generation's cluster, int[N], 0 where it has none; and its
    inverse, which sums to 1 over a cluster: a sum over generations becomes one over clusters.
    """
    clustered = valid_N & (clusters_N != DEGENERATE)
    same_NN = (clusters_N[:, None] == clusters_N[None, :]) & clustered[:, None] & clustered[None, :]
    size = jnp.sum(same_NN, axis=1)
    return same_NN, size, jnp.where(size > 0, 1 / jnp.maximum(size, 1), 0)


def distinct_means(clusters_N: Array, valid_N: Array, set_size: int, dtype) -> Array:
    """E[number of clusters in G | i in G] = sum_c (1 - g_1(m_c)) + 1[i in a cluster] g_1(m of i's), shape [N].

    A cluster is missed with chance g_1(m_c), except i's own, which never is.
    """
    _, size, per_member = _cluster_sizes(clusters_N, valid_N)
    g1, _ = _avoidance(clusters_N.shape[0], set_size, jnp.sum(valid_N), dtype)
    return jnp.sum(per_member.astype(dtype) * (1 - g1)[size]) + jnp.where(size > 0, g1[size], 0)


def polychromic_means(
    rewards_N: Array, clusters_N: Array, valid_N: Array, set_size: int, require_distinct: bool
) -> Array:
    r"""E[f(G) | i in G] of the polychromic objective (Eq. 10, 11), shape [N], in O(N^2).

    f(G) = n^-2 sum_{j in G} r_j * sum_c 1[c meets G], hence with F = {i, j}, f = |F|

        n^2 E[f | i in G] = sum_j r_j sum_c P(j in G, c meets G | i in G).

    The inner chance is P(j in G | i in G) if i or j is in c, else that minus g_f(m_c). Writing a_f(m) for the
    latter, p = g_2(0), A_f = sum_c a_f(m_c), the sums over j and c separate into per-cluster totals, and only
    the reward total of i's own cluster couples i with j.

    `require_distinct` multiplies f by 1[at least two clusters]. What it removes are the sets of one cluster c
    and degenerate generations: subsets of the m_c + z generations of both that are not degenerate throughout.
    """
    num_generations = rewards_N.shape[0]
    dtype = rewards_N.dtype
    num_valid = jnp.sum(valid_N)
    g1, g2 = _avoidance(num_generations, set_size, num_valid, dtype)
    a1, a2 = 1 - g1, g2[0] - g2  # g_1(0) = 1
    r = jnp.where(valid_N, rewards_N, 0)
    same_NN, size, per_member = _cluster_sizes(clusters_N, valid_N)
    clustered, per_member = size > 0, per_member.astype(dtype)
    # Plain sums, not a matrix product: on TPU and GPU a float32 product would be rounded to bfloat16 or TF32.
    own_cluster = jnp.sum(jnp.where(same_NN, r[None, :], 0), axis=1)
    others = jnp.sum(r) - r
    own_others = jnp.where(clustered, own_cluster - r, 0)

    avoid2 = jnp.where(clustered, g2[size], 0)
    j_is_i = jnp.sum(per_member * a1[size]) + jnp.where(clustered, g1[size], 0)  # E[number of clusters | i in G]
    neither = jnp.sum(per_member * a2[size]) + avoid2  # A_2, plus what i's own cluster adds
    weighted = r * avoid2
    means = r * j_is_i + others * neither + (jnp.sum(weighted) - weighted) - own_others * avoid2

    if require_distinct:
        num_degenerate = jnp.sum(valid_N & ~clustered)
        outside = num_valid - size - num_degenerate  # generations that a one-cluster set must avoid
        outside = jnp.where(clustered, outside, 0)
        one1, one2 = jnp.where(clustered, g1[outside], 0), jnp.where(clustered, g2[outside], 0)
        all_but_degenerate = num_valid - num_degenerate
        r_degenerate = jnp.where(clustered, 0, r)
        # i in a cluster: j is i, or in the same cluster, or degenerate.
        if_clustered = r * one1 + (own_others + jnp.sum(r_degenerate)) * one2
        # i degenerate: j in any cluster, or degenerate and then the set of any cluster but not of none.
        any1 = jnp.sum(per_member * (one1 - g1[all_but_degenerate]))
        any2 = jnp.sum(per_member * (one2 - g2[all_but_degenerate]))
        others_degenerate = jnp.sum(r_degenerate) - r
        if_degenerate = r * any1 + jnp.sum(r * one2) + others_degenerate * any2
        means = means - jnp.where(clustered, if_clustered, if_degenerate)

    return means / set_size**2


@jax.jit
def _pass_at_k(m: Array, c: Array, k: Array) -> Array:
    # Signed and wide enough: small integer types would wrap around.
    m, c, k = jnp.broadcast_arrays(*(jnp.asarray(x).astype(int) for x in (m, c, k)))
    dtype = jnp.result_type(float)

    def add_log_ratio(i, total):
        """Adds the i-th factor of prod_{i < k} (m - c - i) / (m - i), as its logarithm."""
        ratio = (c / jnp.maximum(m - i, 1)).astype(dtype)
        return total + jnp.where((i < k) & (m - c - i > 0), jnp.log1p(-ratio), 0)

    log_none = jax.lax.fori_loop(0, jnp.max(k, initial=0), add_log_ratio, jnp.zeros(m.shape, dtype))
    value = jnp.where(k > m - c, 1, jnp.abs(jnp.expm1(log_none)))
    in_range = (0 <= c) & (c <= m) & (1 <= k) & (k <= m)
    return jnp.where(in_range, value, jnp.nan)


def pass_at_k(num_samples, num_correct, k) -> Array:
    """Unbiased pass@k = 1 - binom(m - c, k) / binom(m, k) (Chen et al. 2021, Eq. 1), elementwise.

    The chance that a set of k of the m samples holds one of the c correct ones; the set objective "any correct"
    over all subsets. Its variance grows for k > m / 2.

    Args:
      num_samples, num_correct, k: m, c and k, integers or integer arrays that broadcast together.

    Returns:
      Float array of the default float type; within 1e-6 in float32 for m up to 1,024. NaN where the arguments
      are traced and out of range.

    Raises:
      ValueError: if 0 <= c <= m or 1 <= k <= m does not hold (where the values are known, outside of jit).
    """
    arguments = (num_samples, num_correct, k)
    if not any(isinstance(x, jax.core.Tracer) for x in arguments):
        if np.any((np.asarray(num_correct) < 0) | (np.asarray(num_correct) > np.asarray(num_samples))):
            raise ValueError(f"num_correct must be between 0 and num_samples = {num_samples}, got {num_correct}")
        if np.any((np.asarray(k) < 1) | (np.asarray(k) > np.asarray(num_samples))):
            raise ValueError(f"k must be between 1 and num_samples = {num_samples}, got {k}")
    return _pass_at_k(*arguments)
