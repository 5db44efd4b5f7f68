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
