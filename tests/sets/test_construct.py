"""The sets: all of them, or a uniform sample without replacement."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyepo_jax.sets import all_sets, sample_sets

SHAPES = [(1, 1), (5, 1), (5, 5), (6, 3), (8, 4)]


@pytest.mark.parametrize(("num_generations", "set_size"), SHAPES)
def test_all_sets_are_the_combinations(num_generations, set_size):
    sets_SM = all_sets(num_generations, set_size)
    assert sets_SM.dtype == jnp.int32
    expected = list(itertools.combinations(range(num_generations), set_size))
    np.testing.assert_array_equal(sets_SM, np.array(expected))


@pytest.mark.parametrize("set_size", [-1, 0, 5])
def test_set_size_out_of_range_is_refused(set_size):
    with pytest.raises(ValueError, match=rf"set_size must be between 1 and the 4 generations.*got {set_size}"):
        all_sets(4, set_size)
    with pytest.raises(ValueError, match=rf"set_size must be between 1 and the 4 generations.*got {set_size}"):
        sample_sets(jax.random.key(0), 4, set_size, 1)


@pytest.mark.parametrize("num_sets", [0, 7])
def test_number_of_sets_out_of_range_is_refused(num_sets):
    with pytest.raises(ValueError, match=rf"num_sets must be between 1 and the C\(4, 2\) = 6.*got {num_sets}"):
        sample_sets(jax.random.key(0), 4, 2, num_sets)


@functools.lru_cache
def _draws(num_draws, num_generations, set_size, num_sets):
    """int32[num_draws, K, M]. A loop, not a vmap: compiling the sampler is what costs time here."""
    keys = jax.random.split(jax.random.key(1), num_draws)
    loop = jax.jit(lambda keys: jax.lax.map(lambda k: sample_sets(k, num_generations, set_size, num_sets), keys))
    return np.asarray(loop(keys))


def _assert_sets(sets_SM, num_generations, set_size, num_sets):
    assert sets_SM.shape == (num_sets, set_size)
    assert sets_SM.dtype == np.int32
    assert sets_SM.min() >= 0
    assert sets_SM.max() < num_generations
    assert np.all(np.diff(sets_SM, axis=1) > 0), "members of a set are increasing, hence distinct"
    assert len({tuple(row) for row in sets_SM.tolist()}) == num_sets, "no set is drawn twice"


@pytest.mark.parametrize("shape", [(8, 4, 16), (64, 16, 70)])
def test_sampled_sets_are_distinct_and_in_range(shape):
    for sets_SM in _draws(100, *shape):
        _assert_sets(sets_SM, *shape)


@pytest.mark.parametrize(("num_generations", "set_size"), [(6, 3)])
def test_drawing_as_many_sets_as_there_are_gives_each_once(num_generations, set_size):
    (sets_SM,) = _draws(1, num_generations, set_size, math.comb(num_generations, set_size))
    everything = list(itertools.combinations(range(num_generations), set_size))
    assert sorted(map(tuple, sets_SM.tolist())) == everything


class SampleSetsVariants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_same_key_same_sets(self):
        sample = self.variant(sample_sets, static_argnums=(1, 2, 3))
        sets_SM = np.asarray(sample(jax.random.split(jax.random.key(1), 6000)[2], 4, 2, 2))
        np.testing.assert_array_equal(sets_SM, _draws(6000, 4, 2, 2)[2])


def test_vmap_over_keys_draws_for_each_key():
    keys = jax.random.split(jax.random.key(1), 6000)[:50]
    samples = jax.jit(jax.vmap(lambda key: sample_sets(key, 4, 2, 2)))(keys)
    np.testing.assert_array_equal(samples, _draws(6000, 4, 2, 2)[:50])
    assert len({sample.tobytes() for sample in np.asarray(samples)}) > 10


def test_sampled_sets_are_int32_under_x64():
    with jax.enable_x64(True):
        assert sample_sets(jax.random.key(5), 4, 2, 2).dtype == jnp.int32
        assert all_sets(6, 3).dtype == jnp.int32


@pytest.mark.parametrize("shape", [(8, 4, 16), (64, 16, 70)])
def test_every_generation_is_equally_likely_to_be_in_a_set(shape):
    num_generations, set_size, num_sets = shape
    num_draws = 100
    samples = _draws(num_draws, *shape)
    counts_N = np.bincount(samples.ravel(), minlength=num_generations)
    share = set_size / num_generations
    num_all = math.comb(num_generations, set_size)
    # The number of a draw's sets that hold a given generation is hypergeometric.
    variance = num_draws * num_sets * share * (1 - share) * (num_all - num_sets) / (num_all - 1)
    z_N = (counts_N - num_draws * num_sets * share) / math.sqrt(variance)
    assert np.max(np.abs(z_N)) < 5


def _chi_square(counts, num_draws, num_outcomes):
    expected = num_draws / num_outcomes
    assert sum(counts.values()) == num_draws
    return sum((counts.get(o, 0) - expected) ** 2 for o in counts) / expected + expected * (num_outcomes - len(counts))


def test_every_sequence_of_sets_is_equally_likely():
    # Two of the 6 sets of (4, 2), in the order drawn: 30 sequences. A sampler that is uniform for each row alone,
    # or that returns the rows sorted, fails here.
    num_draws, num_outcomes = 6000, 30
    samples = _draws(num_draws, 4, 2, 2)
    counts = {}
    for sample in samples.reshape(num_draws, -1).tolist():
        counts[tuple(sample)] = counts.get(tuple(sample), 0) + 1
    assert len(counts) <= num_outcomes
    assert _chi_square(counts, num_draws, num_outcomes) < 81  # one seed in a million, at 29 degrees of freedom


def test_every_set_is_equally_likely_to_be_the_missing_one():
    # K = C(N, n) - 1 needs many rejected repeats, where a biased rejection would show.
    num_draws, num_outcomes = 2000, 10
    samples = _draws(num_draws, 5, 2, 9)
    everything = set(itertools.combinations(range(5), 2))
    counts = {}
    for sample in samples.tolist():
        (missing,) = everything - {tuple(row) for row in sample}
        counts[missing] = counts.get(missing, 0) + 1
    assert _chi_square(counts, num_draws, num_outcomes) < 46  # one seed in a million, at 9 degrees of freedom


# Sets of the valid generations. Two shapes of few generations, one where a large share of all sets is asked for and
# one where it is not, and one of more generations than a word has bits.
VALID_SHAPES = [(6, 3, 8), (8, 3, 5), (40, 5, 10)]


@functools.lru_cache
def _sampler(num_generations, set_size, num_sets):
    """(keys, valid_N) -> int32[draws, K, M]."""

    def loop(keys, valid_N):
        return jax.lax.map(lambda key: sample_sets(key, num_generations, set_size, num_sets, valid_N), keys)

    return jax.jit(loop)


def _valid_draws(num_draws, shape, valid):
    """Samples among the generations `valid`, a list of indices."""
    valid_N = np.isin(np.arange(shape[0]), valid)
    return np.asarray(_sampler(*shape)(jax.random.split(jax.random.key(2), num_draws), valid_N))


@pytest.mark.parametrize("shape", VALID_SHAPES)
def test_the_sets_of_valid_generations_come_first(shape):
    num_generations, set_size, num_sets = shape
    rng = np.random.default_rng(0)
    sizes = {0, 1, *range(set_size - 1, set_size + 4), num_generations - 1, num_generations}
    for num_valid in sorted(sizes):
        valid = sorted(rng.permutation(num_generations)[:num_valid].tolist())
        num_usable = min(num_sets, math.comb(num_valid, set_size))
        for sets_KM in _valid_draws(20, shape, valid):
            assert sets_KM.shape == (num_sets, set_size)
            assert sets_KM.dtype == np.int32
            assert sets_KM.min() >= 0
            assert sets_KM.max() < num_generations
            usable_K = np.all(np.isin(sets_KM, valid), axis=1)
            np.testing.assert_array_equal(usable_K, np.arange(num_sets) < num_usable)
            if num_usable:
                _assert_sets(sets_KM[:num_usable], num_generations, set_size, num_usable)
            if num_usable < num_sets:
                everything = list(itertools.combinations(valid, set_size))
                assert sorted(map(tuple, sets_KM[:num_usable].tolist())) == everything


class ValidSetsVariants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_each_prompt_of_a_batch_has_its_own_valid_generations(self):
        shape = (8, 3, 5)
        keys_P = jax.random.split(jax.random.key(2), 20)
        # From none to all, so that the drawing ends for one prompt and goes on for another.
        valid_PN = np.array([np.roll(np.arange(8) < num_valid, p) for p, num_valid in enumerate([8, 2, 4, 0, 3, 6])])
        sample = self.variant(jax.vmap(lambda key, valid_N: sample_sets(key, *shape, valid_N)))
        sets_PKM = sample(keys_P[:6], valid_PN)
        for p, valid_N in enumerate(valid_PN):
            np.testing.assert_array_equal(sets_PKM[p], _valid_draws(20, shape, np.flatnonzero(valid_N))[p])


@pytest.mark.parametrize("shape", VALID_SHAPES)
def test_validity_of_all_is_as_none_given(shape):
    keys = jax.random.split(jax.random.key(2), 3)
    unmasked = jax.jit(lambda keys: jax.lax.map(lambda key: sample_sets(key, *shape), keys))(keys)
    np.testing.assert_array_equal(_valid_draws(3, shape, range(shape[0])), unmasked)


@pytest.mark.parametrize(
    ("shape", "valid"),
    [
        ((8, 3, 5), [0, 1, 3, 4, 6, 7]),
        ((6, 3, 8), [1, 2, 3, 4, 5]),
        ((40, 5, 10), range(1, 40, 2)),
        # Sets that differ in a second word of bits only.
        ((41, 1, 9), range(1, 41)),
    ],
)
def test_every_valid_generation_is_equally_likely_to_be_in_a_set(shape, valid):
    _, set_size, num_sets = shape
    num_draws = 500
    samples = _valid_draws(num_draws, shape, valid)
    counts_N = np.bincount(samples.ravel(), minlength=shape[0])
    assert counts_N.sum() == counts_N[list(valid)].sum()
    share = set_size / len(valid)
    num_all = math.comb(len(valid), set_size)
    variance = num_draws * num_sets * share * (1 - share) * (num_all - num_sets) / (num_all - 1)
    z_V = (counts_N[list(valid)] - num_draws * num_sets * share) / math.sqrt(variance)
    assert np.max(np.abs(z_V)) < 5


@pytest.mark.parametrize(
    ("shape", "valid", "num_outcomes", "one_in_a_million"),
    [
        # Two of six sets, in order: 30 sequences. Three of them: 120.
        ((5, 2, 2), [0, 1, 3, 4], 30, 81),
        ((5, 2, 3), [0, 1, 3, 4], 120, 208),
        # Two of all ten sets.
        ((5, 2, 2), [0, 1, 2, 3, 4], 90, 168),
        # Fewer sets than are asked for: all orders of three of them, and of four.
        ((12, 2, 9), [2, 5, 11], 6, 38),
        ((6, 3, 8), [0, 2, 3, 5], 24, 72),
    ],
)
def test_every_sequence_of_sets_of_valid_generations_is_equally_likely(shape, valid, num_outcomes, one_in_a_million):
    num_draws = 6000
    num_usable = min(shape[2], math.comb(len(valid), shape[1]))
    samples = _valid_draws(num_draws, shape, valid)[:, :num_usable]
    counts = {}
    for sample in samples.reshape(num_draws, -1).tolist():
        counts[tuple(sample)] = counts.get(tuple(sample), 0) + 1
    assert len(counts) <= num_outcomes
    assert _chi_square(counts, num_draws, num_outcomes) < one_in_a_million


def test_every_set_of_valid_generations_is_equally_likely_to_be_the_missing_one():
    # Nine of the ten sets of five valid generations among twelve: drawn one by one, with many repeats.
    valid = [0, 3, 4, 8, 11]
    num_draws, num_outcomes = 2000, 10
    everything = set(itertools.combinations(valid, 2))
    counts = {}
    for sample in _valid_draws(num_draws, (12, 2, 9), valid).tolist():
        (missing,) = everything - {tuple(row) for row in sample}
        counts[missing] = counts.get(missing, 0) + 1
    assert _chi_square(counts, num_draws, num_outcomes) < 46
