"""Which of the N generations form the sets."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np


def check_set_size(num_generations: int, set_size: int) -> None:
    """Raises ValueError unless 1 <= set_size <= num_generations."""
    if not 1 <= set_size <= num_generations:
        raise ValueError(
            f"set_size must be between 1 and the {num_generations} generations of a prompt, got {set_size}"
        )


@functools.lru_cache(maxsize=32)
def _all_sets(num_generations: int, set_size: int) -> np.ndarray:
    flat = itertools.chain.from_iterable(itertools.combinations(range(num_generations), set_size))
    sets_SM = np.fromiter(flat, np.int32, count=math.comb(num_generations, set_size) * set_size)
    return sets_SM.reshape(-1, set_size)


def all_sets(num_generations: int, set_size: int) -> jax.Array:
    """All C(N, n) sets of `set_size` generations, in lexicographic order.

    Returns:
      int32[S, M], each row increasing.

    Raises:
      ValueError: unless 1 <= set_size <= num_generations.
    """
    check_set_size(num_generations, set_size)
    return jnp.asarray(_all_sets(num_generations, set_size))


def sample_sets(key: jax.Array, num_generations: int, set_size: int, num_sets: int, valid_N=None) -> jax.Array:
    """`num_sets` different sets, uniform without replacement, at any N and n.

    Sets are drawn independently until enough different ones are seen; the first occurrences of an i.i.d.
    uniform sequence are a uniform sample without replacement. Nothing of size C(N, n) is ever built, so
    (N, n) = (64, 16) with its 4.9e14 sets costs no more than (8, 4).

    Args:
      key: typed PRNG key.
      num_generations, set_size, num_sets: N, n and K, Python integers.
      valid_N: bool[N], the generations to draw from; None for all.

    Returns:
      int32[K, M], each row increasing, rows in random order. Where fewer than K sets of valid generations exist,
      these come first, all of them, and each row after them holds an invalid generation.

    Raises:
      ValueError: unless 1 <= set_size <= num_generations and 1 <= num_sets <= C(N, n).
    """
    check_set_size(num_generations, set_size)
    num_all = math.comb(num_generations, set_size)
    if not 1 <= num_sets <= num_all:
        raise ValueError(
            f"num_sets must be between 1 and the C({num_generations}, {set_size}) = {num_all} sets there are, "
            f"got {num_sets}"
        )
    valid_N = jnp.ones(num_generations, bool) if valid_N is None else jnp.asarray(valid_N, bool)
    # For V = 0..N valid generations, the number of sets there are to find.
    findable = np.array([min(math.comb(v, set_size), num_sets) for v in range(num_generations + 1)], np.int32)
    num_wanted = jnp.asarray(findable)[jnp.sum(valid_N)]

    def draw(key):
        # The order of independent random words is a uniform permutation; two equal words among N are a matter of
        # N^2 / 2^32, and then still differ from a uniform order by one swap only. Invalid generations come last.
        words = jax.random.bits(key, (2 * num_sets, num_generations)) >> 1
        order = jnp.argsort(jnp.where(valid_N, words, jnp.uint32(2**31)), axis=1)
        return jnp.sort(order[:, :set_size].astype(jnp.int32), axis=1)

    def cond(carry):
        _, num_kept, _ = carry
        return num_kept < num_wanted

    def body(carry):
        kept_KM, num_kept, key = carry
        key, draw_key = jax.random.split(key)
        # Unfilled rows hold distinct out-of-range values, so that they equal nothing that can be drawn.
        candidates = jnp.concatenate([kept_KM, draw(draw_key)])
        is_candidate = jnp.concatenate([jnp.arange(num_sets) < num_kept, jnp.ones(2 * num_sets, bool)])
        # A stable sort brings equal rows together, the earliest drawn first.
        order = jnp.lexsort(candidates.T[::-1])
        ordered = candidates[order]
        repeats_previous = jnp.all(ordered[1:] == ordered[:-1], axis=1)
        first = jnp.ones(3 * num_sets, bool).at[order[1:]].set(~repeats_previous) & is_candidate
        rank = jnp.cumsum(first) - 1
        slot = jnp.where(first & (rank < num_sets), rank, num_sets)
        kept_KM = kept_KM.at[slot].set(candidates, mode="drop")
        return kept_KM, jnp.minimum(jnp.sum(first), num_sets), key

    unfilled = num_generations + jnp.arange(num_sets, dtype=jnp.int32)
    start_KM = jnp.broadcast_to(unfilled[:, None], (num_sets, set_size))
    sets_KM, _, _ = jax.lax.while_loop(cond, body, (start_KM, jnp.zeros((), int), key))
    # A row can only be left over where generations are invalid; the first of them marks it.
    return jnp.where(sets_KM < num_generations, sets_KM, jnp.argmin(valid_N).astype(jnp.int32))
