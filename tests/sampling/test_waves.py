"""Waves: how prompts are cut into them, and that cutting changes no token and keeps the devices busy."""

import contextlib
import dataclasses
import math

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from polyepo_jax.errors import Interrupted
from polyepo_jax.model import ModelConfig, init, logical_axes
from polyepo_jax.sampling import GenerationSpec, generate_in_waves, prompts_per_wave, until_stopped, waves
from polyepo_jax.sharding import MeshConfig, make_mesh, param_shardings
from polyepo_jax.types import Prompts

MODEL = ModelConfig(
    vocab_size=12,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
SPEC = GenerationSpec(MODEL, num_generations=2, max_completion_length=5, stop_ids=(2, 5), pad_id=0)
KEY = jax.random.key(7)
NUM_PROMPTS = 7


def make_prompts(count: int) -> Prompts:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 5, count)
    mask = np.arange(4)[None] >= 4 - lengths[:, None]
    tokens = np.where(mask, generator.integers(1, 12, (count, 4)), 0).astype(np.int32)
    return Prompts(tokens, mask, np.arange(100, 100 + count, dtype=np.int32))


@pytest.fixture(scope="module")
def params():
    return jax.jit(init, static_argnums=0)(MODEL, jax.random.key(0))


numbers = {
    "num_prompts": st.integers(1, 300),
    "num_generations": st.integers(1, 40),
    "max_rows": st.integers(1, 600),
    "num_shards": st.integers(1, 64),
}


@hypothesis.given(**numbers)
@hypothesis.settings(max_examples=500)
def test_waves_cover_all_prompts_within_the_limit(num_prompts, num_generations, max_rows, num_shards):
    size = prompts_per_wave(num_prompts, num_generations, max_rows, num_shards)
    assert size >= 1
    assert size == 1 or size * num_generations <= max_rows
    # A multiple of the shards wherever one is within the limit.
    multiple = math.lcm(num_generations, num_shards)
    assert (size * num_generations) % num_shards == 0 or multiple > max_rows
    # As few waves as the limit allows: no larger size that is as good has fewer.
    step = multiple // num_generations if multiple <= max_rows else 1
    most = max(max_rows // num_generations // step * step, 1)
    assert -(-num_prompts // size) == -(-num_prompts // most)
    # And none larger than the prompts need.
    assert size - step < num_prompts or multiple > max_rows


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ((128, 8, 128), 16),
        ((128, 8, 128, 4), 16),
        ((128, 8, 1), 1),  # the generations of a prompt stay together
        ((10, 8, 64), 5),  # two waves of 5, not 8 and 2
        ((10, 8, 64, 16), 6),  # 6 * 8 is a multiple of 16, 5 * 8 is not
        ((10, 3, 7, 16), 2),  # no multiple of 16 below 7
        ((3, 4, 1000, 8), 4),  # more than there are, for the shards' sake
    ],
)
def test_sizes_by_hand(arguments, size):
    assert prompts_per_wave(*arguments) == size


def collected(params, mesh_config, max_rows, num_prompts=NUM_PROMPTS, spec=SPEC):
    devices = jax.devices()[: abs(mesh_config.data * mesh_config.fsdp * mesh_config.tensor)]
    mesh = make_mesh(mesh_config, devices)
    placed = jax.device_put(params, param_shardings(mesh, logical_axes(MODEL)))
    found = list(generate_in_waves(spec, placed, make_prompts(num_prompts), KEY, mesh, max_rows))
    sizes = [len(wave.truncated_PN) for wave in found]
    return sizes, jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *found)


@pytest.fixture(scope="module")
def one_wave(params):
    sizes, rollouts = collected(params, MeshConfig(1, 1, 1), NUM_PROMPTS * SPEC.num_generations)
    assert sizes == [NUM_PROMPTS]
    assert len(np.unique(rollouts.tokens_PNT.reshape(-1, 5), axis=0)) > NUM_PROMPTS  # prompts can be told apart
    return rollouts


@pytest.mark.parametrize(
    ("mesh_config", "max_rows", "sizes"),
    [
        (MeshConfig(1, 1, 1), 1, [1] * 7),
        (MeshConfig(1, 1, 1), 6, [3, 3, 1]),
        (MeshConfig(1, 1, 1), 8, [4, 3]),
        (MeshConfig(2, 2, 2), 8, [4, 3]),
        (MeshConfig(2, 2, 2), 5, [2, 2, 2, 1]),
        (MeshConfig(1, 4, 2), 2, [1] * 7),  # fewer rows than shards
        (MeshConfig(4, 2, 1), 100, [7]),  # filled up to 8
    ],
)
def test_waves_change_no_token(params, one_wave, mesh_config, max_rows, sizes):
    found, rollouts = collected(params, mesh_config, max_rows)
    assert found == sizes
    np.testing.assert_array_equal(rollouts.tokens_PNT, one_wave.tokens_PNT)
    np.testing.assert_array_equal(rollouts.completion_mask_PNT, one_wave.completion_mask_PNT)
    np.testing.assert_array_equal(rollouts.truncated_PN, one_wave.truncated_PN)
    np.testing.assert_allclose(rollouts.sampler_logprobs_PNT, one_wave.sampler_logprobs_PNT, atol=1e-5)


def test_all_waves_share_a_compilation(params):
    spec = dataclasses.replace(SPEC, max_completion_length=3)
    before = waves.generate._cache_size()
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    assert len(list(generate_in_waves(spec, params, make_prompts(5), KEY, mesh, 4))) == 3
    assert waves.generate._cache_size() == before + 1


def test_each_wave_is_dispatched_before_its_predecessor_is_yielded(monkeypatch):
    events = []

    def record(spec, params, prompts, key):
        events.append(("dispatched", int(prompts.ids_P[0])))
        return prompts

    monkeypatch.setattr(waves, "generate", record)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    stream = generate_in_waves(SPEC, None, make_prompts(5), KEY, mesh, 4)
    assert events == [("dispatched", 100)]  # before anything is asked for
    for wave in stream:
        events.append(("yielded", int(wave.ids_P[0])))
    assert events == [
        ("dispatched", 100),
        ("dispatched", 102),
        ("yielded", 100),
        ("dispatched", 104),
        ("yielded", 102),
        ("yielded", 104),
    ]


def test_weights_gathered_or_not_give_the_same_tokens(params, one_wave):
    spec = dataclasses.replace(SPEC, gather_weights=False)
    _, rollouts = collected(params, MeshConfig(1, 4, 2), 1000, spec=spec)
    np.testing.assert_array_equal(rollouts.tokens_PNT, one_wave.tokens_PNT)


@pytest.mark.parametrize(
    ("num_processes", "asked_at", "last"),
    [(1, -1, 0), (1, 0, 0), (1, 2, 2), (1, 3, 3), (1, 9, None), (2, -1, 0), (2, 0, 1), (2, 2, 3), (2, 3, None)],
)
def test_a_run_that_is_asked_to_end_is_given_no_further_waves(monkeypatch, num_processes, asked_at, last):
    """Asked while it has a wave, it ends with that one, or, where processes have to agree, with the next."""
    monkeypatch.setattr(jax, "process_count", lambda: num_processes)
    seen = []
    ended = contextlib.nullcontext() if last is None else pytest.raises(Interrupted)
    with ended:
        for wave in until_stopped(range(4), make_mesh(MeshConfig()), lambda: [-1, *seen][-1] >= asked_at):
            seen.append(wave)
    assert seen == list(range(4 if last is None else last + 1))
