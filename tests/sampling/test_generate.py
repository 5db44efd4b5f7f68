"""Generation against full forward passes, and its independence of layout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyepo_jax.model import (
    LoRA,
    ModelConfig,
    decode_step,
    forward,
    init,
    logical_axes,
    merged,
    prompt_cache,
    split,
)
from polyepo_jax.sampling import GenerationSpec, Sampling, generate, slots
from polyepo_jax.sharding import MeshConfig, make_mesh, param_shardings
from polyepo_jax.types import Prompts

MODEL = ModelConfig(
    vocab_size=12,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
SPEC = GenerationSpec(MODEL, num_generations=3, max_completion_length=7, stop_ids=(2, 5), pad_id=0)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def params():
    return jax.jit(init, static_argnums=0)(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def prompts():
    lengths = np.array([4, 1, 3, 2])
    tokens = np.random.default_rng(0).integers(1, 12, (4, 4)).astype(np.int32)
    mask = np.arange(4)[None] >= 4 - lengths[:, None]
    return Prompts(jnp.where(mask, tokens, 0), jnp.asarray(mask), jnp.array([10, 7, 1000003, 3]))


def check_consistent(rollouts, spec):
    """The invariants of masks, padding and stops."""
    tokens, mask = np.asarray(rollouts.tokens_PNT), np.asarray(rollouts.completion_mask_PNT)
    stops = np.isin(tokens, spec.stop_ids) & mask
    lengths = mask.sum(-1)
    np.testing.assert_array_equal(mask, np.arange(mask.shape[-1]) < lengths[..., None])
    assert np.all(lengths >= 1)
    assert np.all(tokens[~mask] == spec.pad_id)
    assert np.all(np.asarray(rollouts.sampler_logprobs_PNT)[~mask] == 0)
    assert np.all(stops.sum(-1) <= 1)
    ended = np.take_along_axis(stops, lengths[..., None] - 1, -1)[..., 0]
    np.testing.assert_array_equal(rollouts.truncated_PN, ~ended)
    assert np.all(lengths[~ended] == spec.max_completion_length)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_k=6, top_p=0.8)])
def test_logprobs_are_those_of_a_full_forward(params, prompts, sampling):
    spec = dataclasses.replace(SPEC, sampling=sampling)
    rollouts = generate(spec, params, prompts, KEY)
    check_consistent(rollouts, spec)
    N, T = spec.num_generations, spec.max_completion_length
    tokens = jnp.concatenate([jnp.repeat(prompts.tokens_PT, N, axis=0), rollouts.tokens_PNT.reshape(-1, T)], axis=1)
    completion_mask = rollouts.completion_mask_PNT.reshape(-1, T)
    mask = jnp.concatenate([jnp.repeat(prompts.mask_PT, N, axis=0), completion_mask], axis=1)
    logits, _ = jax.jit(forward, static_argnums=0)(MODEL, params, tokens, mask_BT=mask)
    transformed = jax.vmap(jax.vmap(sampling.transform))(logits[:, 3:-1])
    logprobs = jax.nn.log_softmax(transformed)
    expected = jnp.take_along_axis(logprobs, rollouts.tokens_PNT.reshape(-1, T, 1), axis=2)[..., 0]
    np.testing.assert_allclose(
        rollouts.sampler_logprobs_PNT.reshape(-1, T), jnp.where(completion_mask, expected, 0), atol=1e-5
    )
    assert 0 < np.asarray(rollouts.truncated_PN).mean() < 1  # both ways of ending were seen


def test_greedy_takes_the_most_likely_token_of_a_full_forward(params, prompts):
    spec = dataclasses.replace(SPEC, num_generations=1, sampling=Sampling(temperature=0), stop_ids=())
    rollouts = generate(spec, params, prompts, KEY)
    tokens, mask = prompts.tokens_PT, prompts.mask_PT
    step = jax.jit(lambda tokens, mask: jnp.argmax(forward(MODEL, params, tokens, mask_BT=mask)[0][:, -1], axis=-1))
    for _ in range(spec.max_completion_length):
        # Right-aligned to one width, so that this loop compiles once.
        wide_tokens = jnp.pad(tokens, ((0, 0), (11 - tokens.shape[1], 0)))
        wide_mask = jnp.pad(mask, ((0, 0), (11 - mask.shape[1], 0)))
        tokens = jnp.concatenate([tokens, step(wide_tokens, wide_mask)[:, None]], axis=1)
        mask = jnp.concatenate([mask, jnp.ones((4, 1), bool)], axis=1)
    np.testing.assert_array_equal(rollouts.tokens_PNT[:, 0], tokens[:, 4:])
    assert bool(jnp.all(rollouts.truncated_PN))


def test_a_generation_does_not_depend_on_its_neighbours(params, prompts):
    whole = generate(SPEC, params, prompts, KEY)
    order = np.array([2, 0])
    part = generate(SPEC, params, jax.tree.map(lambda x: x[order], prompts), KEY)
    np.testing.assert_array_equal(part.tokens_PNT, whole.tokens_PNT[order])
    np.testing.assert_allclose(part.sampler_logprobs_PNT, whole.sampler_logprobs_PNT[order], atol=1e-5)
    fewer = generate(dataclasses.replace(SPEC, num_generations=2), params, prompts, KEY)
    np.testing.assert_array_equal(fewer.tokens_PNT, whole.tokens_PNT[:, :2])
    shorter = generate(dataclasses.replace(SPEC, max_completion_length=4), params, prompts, KEY)
    np.testing.assert_array_equal(shorter.tokens_PNT, whole.tokens_PNT[:, :, :4])


@pytest.mark.parametrize("mesh_config", [MeshConfig(4, 1, 2), MeshConfig(2, 2, 2)])
def test_tokens_do_not_depend_on_the_mesh(params, prompts, mesh_config):
    alone = generate(SPEC, params, prompts, KEY)
    mesh = make_mesh(mesh_config)
    placed = jax.device_put(params, param_shardings(mesh, logical_axes(MODEL)))
    spread = generate(SPEC, placed, prompts, KEY, mesh)
    np.testing.assert_array_equal(spread.tokens_PNT, alone.tokens_PNT)
    np.testing.assert_allclose(spread.sampler_logprobs_PNT, alone.sampler_logprobs_PNT, atol=1e-5)


@pytest.mark.parametrize(
    ("mesh_config", "gather_weights"),
    [(MeshConfig(1, 4, 2), True), pytest.param(MeshConfig(2, 2, 2), False, marks=pytest.mark.slow)],
)
def test_adapters_are_sampled_as_the_weights_they_are_merged_into(params, prompts, mesh_config, gather_weights):
    config = dataclasses.replace(MODEL, lora=LoRA(2, 8.0))
    adapted = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 99))
    adapted = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), adapted)
    alone = generate(SPEC, merged(config, adapted)[1], prompts, KEY)
    assert not np.array_equal(alone.tokens_PNT, generate(SPEC, split(adapted)[1], prompts, KEY).tokens_PNT)
    mesh = make_mesh(mesh_config)
    placed = jax.device_put(adapted, param_shardings(mesh, logical_axes(config)))
    spec = dataclasses.replace(SPEC, model=config, gather_weights=gather_weights)
    spread = generate(spec, placed, prompts, KEY, mesh)
    np.testing.assert_array_equal(spread.tokens_PNT, alone.tokens_PNT)
    np.testing.assert_allclose(spread.sampler_logprobs_PNT, alone.sampler_logprobs_PNT, atol=1e-5)


def test_generations_steps_and_prompts_differ_in_their_random_numbers(params, prompts):
    one_prompt = Prompts(
        jnp.repeat(prompts.tokens_PT[:1], 4, axis=0), jnp.repeat(prompts.mask_PT[:1], 4, axis=0), jnp.arange(4)
    )
    rollouts = generate(SPEC, params, one_prompt, KEY)
    rows = {tuple(row) for row in np.asarray(rollouts.sampler_logprobs_PNT).reshape(12, -1)}
    assert len(rows) > 8
    other_step = generate(SPEC, params, one_prompt, jax.random.key(8))
    assert not np.array_equal(other_step.tokens_PNT, rollouts.tokens_PNT)


def test_stops_when_all_rows_are_done_and_prefills_each_prompt_once(params, prompts, monkeypatch):
    prefilled, steps = [], []

    def counted_cache(config, params, tokens, mask):
        prefilled.append(tokens.shape)
        return prompt_cache(config, params, tokens, mask)

    def counted_step(config, params, tokens, *arguments):
        jax.debug.callback(lambda: steps.append(tokens.shape))
        return decode_step(config, params, tokens, *arguments)

    monkeypatch.setattr(slots, "prompt_cache", counted_cache)
    monkeypatch.setattr(slots, "decode_step", counted_step)
    spec = dataclasses.replace(SPEC, stop_ids=tuple(range(1, 12)), max_completion_length=40)
    jax.clear_caches()
    rollouts = generate(spec, params, prompts, KEY)
    jax.effects_barrier()
    assert prefilled == [(4, 4)]
    assert set(steps) == {(12,)}
    longest = int(np.asarray(rollouts.completion_mask_PNT).sum(-1).max())
    assert len(steps) == longest < 40


def test_refuses_a_pad_token_that_stops():
    with pytest.raises(ValueError, match="pad_id 2 must not be one of the stop tokens"):
        dataclasses.replace(SPEC, pad_id=2)
