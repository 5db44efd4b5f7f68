"""Packing: texts stay whole, little room stays empty, and neither loss nor gradient is another."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from polyepo_jax.losses import PolicyLoss
from polyepo_jax.model import ModelConfig, init
from polyepo_jax.training import packing
from polyepo_jax.training.packing import first_fit, folding, pack
from polyepo_jax.training.update import OptimizerConfig, UpdateSpec, loss_and_gradient
from polyepo_jax.types import Batch

MODEL = ModelConfig(
    vocab_size=16,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)
PROMPT, LENGTH = 6, 18


def make_batch(num_rows: int, seed: int = 0, mean: float = LENGTH / 4) -> Batch:
    """Prompts of 1 to 6 tokens, completions of geometric length, cut at 18; some rows without a trained token."""
    random = np.random.default_rng(seed)
    completions = np.minimum(random.geometric(1 / mean, num_rows), LENGTH)
    prompts = random.integers(1, PROMPT + 1, num_rows)
    columns = np.arange(PROMPT + LENGTH)[None]
    mask = (columns >= PROMPT - prompts[:, None]) & (columns < PROMPT + completions[:, None])
    trained = mask & (columns >= PROMPT) & (random.random((num_rows, 1)) < 0.9)
    logprobs = np.where(trained, random.normal(size=mask.shape) * 0.2 - 2.7, 0).astype(np.float32)
    tokens = np.where(mask, random.integers(0, 16, mask.shape), 0).astype(np.int32)
    advantages = random.normal(size=num_rows).astype(np.float32)
    return Batch(*map(jnp.asarray, (tokens, mask, trained, logprobs, logprobs - 0.1, advantages)))


@hypothesis.given(
    st.lists(st.integers(0, 7), min_size=1, max_size=40).filter(lambda lengths: len(lengths) % 2 == 0),
    st.sampled_from([1, 2]),
)
def test_every_text_has_room_of_its_own(lengths, fold):
    num_bins, size = len(lengths) // fold, 7 * fold
    bins, offsets = map(np.asarray, first_fit(jnp.array(lengths), num_bins, size))
    used = np.zeros((num_bins, size), int)
    for length, chosen, offset in zip(lengths, bins, offsets, strict=True):
        assert offset + length <= size or length == 0
        used[chosen, offset : offset + length] += 1
    assert used.max() <= 1
    assert used.sum() == sum(lengths)
    # No two bins that are used could be one, and empty ones are the last.
    filled = np.sort(used.sum(axis=1)[used.sum(axis=1) > 0])
    assert len(filled) < 2 or filled[0] + filled[1] > size
    empty = used.sum(axis=1) == 0
    assert np.all(np.sort(empty) == empty)


@pytest.mark.parametrize("fold", [0, 1, 2, 4])
def test_texts_are_whole_and_carry_what_is_theirs(fold):
    batch = make_batch(8)
    kept = np.array([True] * 6 + [False] * 2)[[0, 1, 6, 2, 3, 7, 4, 5]]
    packed = pack(batch, jnp.arange(8.0), jnp.asarray(kept), fold)
    bins = 8 if fold == 0 else 8 // fold
    assert packed.tokens_RT.shape == (bins, (PROMPT + LENGTH) * max(fold, 1))
    segments = np.asarray(packed.segments_RT)
    assert set(np.unique(segments)) - {0} == set(1 + np.flatnonzero(kept))
    for row in np.flatnonzero(kept).tolist():
        there, mask = segments == row + 1, np.asarray(batch.mask_BT[row])
        columns = np.flatnonzero(there.any(axis=0))
        assert there.sum() == mask.sum() == columns[-1] - columns[0] + 1
        np.testing.assert_array_equal(np.asarray(packed.positions_RT)[there], np.arange(mask.sum()))
        for values, source in (
            (packed.tokens_RT, batch.tokens_BT),
            (packed.trained_RT, batch.loss_mask_BT),
            (packed.sampler_logprobs_RT, batch.sampler_logprobs_BT),
            (packed.proximal_logprobs_RT, batch.proximal_logprobs_BT),
        ):
            np.testing.assert_array_equal(np.asarray(values)[there], np.asarray(source[row])[mask])
        assert np.all(np.asarray(packed.weights_RT)[there] == row)
        assert np.all(np.asarray(packed.advantages_RT)[there] == batch.advantages_B[row])
    assert not np.any(np.diff(segments.any(axis=1).astype(int)) > 0)  # empty bins are the last
    nothing = segments == 0
    for leaf in jax.tree.leaves(packed):
        assert not np.any(np.asarray(leaf)[nothing])


def test_at_most_a_tenth_of_what_is_computed_is_padding():
    """Geometric lengths with a quarter of the limit as their mean, prompts of any length, micro-batches of 8 of 256."""
    for seed in range(3):
        batch = make_batch(256, seed)
        packed = pack(batch, jnp.ones(256), jnp.ones(256, bool), 1)
        segments = np.asarray(packed.segments_RT).reshape(-1, 8, PROMPT + LENGTH)
        computed = segments[segments.any(axis=(1, 2))]
        assert (computed != 0).mean() > 0.9
        assert (np.asarray(batch.mask_BT)).mean() < 0.5


@pytest.mark.parametrize(
    ("denominator", "beta"),
    [
        ("max_length", 0.1),
        *(
            pytest.param(*other, marks=pytest.mark.slow)
            for other in (("max_length", 0), ("completion_length", 0), ("completion_length", 0.1))
        ),
    ],
)
def test_loss_and_gradient_are_those_of_rows_alone(denominator, beta, monkeypatch):
    """In float64, against one bin a row; bins of one and of several rows, with and without rows that add nothing."""
    with jax.enable_x64(True):
        model = dataclasses.replace(MODEL, dtype="float64", param_dtype="float64")
        params, reference = (jax.jit(init, static_argnums=0)(model, jax.random.key(i)) for i in range(2))
        batch = make_batch(16, 3)
        batch = dataclasses.replace(batch, advantages_B=batch.advantages_B.at[jnp.array([1, 5, 6])].set(0))
        loss = PolicyLoss(denominator=denominator, beta=beta)
        spec = UpdateSpec(model, loss, OptimizerConfig(), 1e-2, PROMPT, max_logits=16 * 16 * 8)
        reference = reference if beta else ()
        alone = jax.jit(loss_and_gradient, static_argnums=0)(spec, params, batch, reference)
        for most, fold in ((0, 1), (2 * 24, 2), (4 * 24, 4)):
            monkeypatch.setattr(packing, "_MAX_FOLDED", most)
            assert folding("xla", 16, 4, 24, 1) == fold
            jax.clear_caches()
            for skip in (False, True) if not beta else (False,):
                cut = dataclasses.replace(spec, micro_batch_rows=4, skip_zero_advantage=skip)
                packed = jax.jit(loss_and_gradient, static_argnums=0)(cut, params, batch, reference)
                np.testing.assert_allclose(packed[0], alone[0], rtol=1e-12)
                jax.tree.map(
                    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max()),
                    packed[1],
                    alone[1],
                )
                if not skip:
                    np.testing.assert_allclose(packed[2]["ratio_max"], alone[2]["ratio_max"], rtol=1e-12)
                assert packed[2]["gap"] <= alone[2]["gap"] * (1 + 1e-12) if skip else True


def test_what_is_packed_where():
    assert folding("cudnn", 64, 4, 100, 1) == 0  # tells no texts apart
    assert folding("xla", 64, 64, 100, 1) == 0  # a micro-batch of all rows holds all bins
    assert folding("splash", 64, 4, 16, 1) == folding("xla", 64, 4, 16, 8) == folding("xla", 64, 4, 1000, 1) == 1
    assert folding("xla", 64, 4, 16, 1) == 4
    assert folding("xla", 64, 6, 16, 1) == 2
