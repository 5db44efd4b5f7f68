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

    Nothing larger than a few times K sets is ever built, so (N, n) = (64, 16) with its 4.9e14 sets is no harder than
    (8, 4).

    Args:
      key: typed PRNG key.
      num_generations, set_size, num_sets: N, n and K, Python integers.
      valid_N: bool[N], the generations to draw from; None for all.

    Returns:
      int32[K, M], the members of each set increasing, sets in random order. Where fewer than K sets of valid
      generations exist, these come first, all of them, and each row after them holds an invalid generation.

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
    if num_all <= 4 * num_sets:
        # So large a share of all sets is quicker to choose than to draw, which would meet the same ones again.
        sets_SM = all_sets(num_generations, set_size)
        # An order by independent random words is uniform: two words among S are equal with chance S^2 / 2^32.
        words_S = jax.random.bits(key, (num_all,), jnp.uint32) >> 1
        usable_S = jnp.all(valid_N[sets_SM], axis=1)
        return sets_SM[jnp.argsort(words_S | (~usable_S).astype(jnp.uint32) << 31)[:num_sets]]
    return _draw_distinct(key, set_size, num_sets, valid_N)


def _draw(bits_SM: jax.Array, valid_N: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """A uniform subset of the valid generations from each row of random words (Floyd's algorithm).

    Args:
      bits_SM: uint32[S, M]; a word w gives w mod k, uniform to within k / 2^32.
      valid_N: bool[N], at least M of them True.

    Returns:
      int32[S, M], members in no order; and the same as bit masks, 32 generations a word: a list of uint32[S].
    """
    num_draws, set_size = bits_SM.shape
    valid_first_N = jnp.argsort(~valid_N)  # positions among the valid generations -> generations
    num_others = jnp.sum(valid_N) - set_size
    masks = [jnp.zeros(num_draws, jnp.uint32) for _ in range(-(-valid_N.shape[0] // 32))]
    positions = []
    for m in range(set_size):
        # A position up to `last`, or `last` itself where that one is taken.
        last = num_others + m
        position = (bits_SM[:, m] % jnp.maximum(last + 1, 1).astype(jnp.uint32)).astype(jnp.int32)
        taken = functools.reduce(jnp.logical_or, (_bit(position, w) & mask != 0 for w, mask in enumerate(masks)))
        position = jnp.where(taken, last, position).astype(jnp.int32)
        masks = [mask | _bit(position, w) for w, mask in enumerate(masks)]
        positions.append(position)
    return valid_first_N[jnp.stack(positions, axis=1)].astype(jnp.int32), masks


def _bit(position: jax.Array, word: int) -> jax.Array:
    """The bit of a position in the given word of a mask, 0 where it lies in another; uint32."""
    return jnp.where(position // 32 == word, jnp.uint32(1) << (position % 32).astype(jnp.uint32), jnp.uint32(0))


def _draw_distinct(key: jax.Array, set_size: int, num_sets: int, valid_N: jax.Array) -> jax.Array:
    """As `sample_sets`: draws sets independently until enough different ones are seen.

    The first occurrences of an i.i.d. uniform sequence are a uniform sample without replacement.
    """
    num_generations = valid_N.shape[0]
    num_draws = 2 * num_sets
    # For V = 0..N valid generations, the number of sets there are to find.
    findable = np.array([min(math.comb(v, set_size), num_sets) for v in range(num_generations + 1)], np.int32)
    num_wanted = jnp.asarray(findable)[jnp.sum(valid_N)]

    def cond(carry):
        _, num_kept, _ = carry
        return num_kept < num_wanted

    def body(carry):
        kept, num_kept, key = carry
        key, draw_key = jax.random.split(key)
        drawn = _draw(jax.random.bits(draw_key, (num_draws, set_size), jnp.uint32), valid_N)
        candidates = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), kept, drawn)
        is_candidate = jnp.concatenate([jnp.arange(num_sets) < num_kept, jnp.ones(num_draws, bool)])
        # A stable sort brings equal sets together, the earliest drawn first, and rows that are not filled to the end.
        sort_keys = [*candidates[1], ~is_candidate]
        order = jnp.lexsort(sort_keys)
        repeats_previous = functools.reduce(jnp.logical_and, (k[order][1:] == k[order][:-1] for k in sort_keys))
        first = jnp.ones(num_sets + num_draws, bool).at[order[1:]].set(~repeats_previous) & is_candidate
        rank = jnp.cumsum(first) - 1
        slot = jnp.where(first & (rank < num_sets), rank, num_sets)
        kept = jax.tree.map(lambda old, new: old.at[slot].set(new, mode="drop"), kept, candidates)
        return kept, jnp.minimum(jnp.sum(first), num_sets), key

    # A row can only be left over where generations are invalid; the first of them marks it.
    empty_KM = jnp.full((num_sets, set_size), jnp.argmin(valid_N), jnp.int32)
    empty_masks = [jnp.zeros(num_sets, jnp.uint32) for _ in range(-(-num_generations // 32))]
    start = (empty_KM, empty_masks), jnp.zeros((), int), key
    (kept_KM, _), _, _ = jax.lax.while_loop(cond, body, start)
    return jnp.sort(kept_KM, axis=1)
