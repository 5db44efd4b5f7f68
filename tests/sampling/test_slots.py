"""Slots: whatever their number, their chunks, their rings and their mesh, the tokens are those of all rows at once."""

import dataclasses
import math
import re
import sys

import jax
import numpy as np
import pytest

from polyepo_jax.model import init, logical_axes
from polyepo_jax.sampling import GenerationSpec, Rollout, generate, own_prompts, slots
from polyepo_jax.sharding import MeshConfig, make_mesh, param_shardings
from tests.sampling.test_generate import MODEL
from tests.sampling.test_waves import make_prompts

module = sys.modules["polyepo_jax.sampling.generate"]  # the package has a function of this name
SPEC = GenerationSpec(MODEL, num_generations=4, max_completion_length=20, stop_ids=(2,), pad_id=0)
KEY = jax.random.key(7)
NUM_PROMPTS = 7


@pytest.fixture(scope="module")
def params():
    return jax.jit(init, static_argnums=0)(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def prompts():
    return make_prompts(NUM_PROMPTS)


@pytest.fixture(scope="module")
def expected(params, prompts):
    """All rows at once, on one device."""
    rollouts = generate(SPEC, params, prompts, KEY)
    lengths = np.asarray(rollouts.completion_mask_PNT).sum(-1)
    assert lengths.min() < 5
    assert lengths.max() == 20
    assert len(np.unique(np.asarray(rollouts.tokens_PNT).reshape(-1, 20), axis=0)) > NUM_PROMPTS
    return rollouts


def check_equal(rollouts, expected):
    np.testing.assert_array_equal(rollouts.tokens_PNT, expected.tokens_PNT)
    np.testing.assert_array_equal(rollouts.completion_mask_PNT, expected.completion_mask_PNT)
    np.testing.assert_array_equal(rollouts.truncated_PN, expected.truncated_PN)
    np.testing.assert_allclose(rollouts.sampler_logprobs_PNT, expected.sampler_logprobs_PNT, atol=1e-5)


@pytest.mark.parametrize("max_rows", [1, 3, 8, 16])
@pytest.mark.parametrize("chunk_length", [3, 64])
def test_tokens_do_not_depend_on_the_slots(params, prompts, expected, max_rows, chunk_length):
    spec = dataclasses.replace(SPEC, chunk_length=chunk_length)
    check_equal(generate(spec, params, prompts, KEY, max_rows=max_rows), expected)


def test_tokens_do_not_depend_on_rematerialisation(params, prompts, expected):
    spec = dataclasses.replace(SPEC, model=dataclasses.replace(MODEL, remat="full"))
    check_equal(generate(spec, params, prompts, KEY, max_rows=8), expected)


@pytest.mark.parametrize("max_rows", [5, 28])
def test_tokens_do_not_depend_on_the_rings(params, prompts, expected, max_rows, monkeypatch):
    """Rings of 5, 10 and 20 slots; with refilled slots they are turned when they grow."""
    capacities = []
    monkeypatch.setattr(module, "LEAST_RING", (4, 4))
    original = slots.decode

    def decode(spec, shares, params, state, *arguments):
        capacities.append(state.ring.capacity)
        return original(spec, shares, params, state, *arguments)

    monkeypatch.setattr(slots, "decode", decode)
    spec = dataclasses.replace(SPEC, chunk_length=3)
    check_equal(generate(spec, params, prompts, KEY, max_rows=max_rows), expected)
    assert sorted(set(capacities)) == [5, 10, 20]


@pytest.mark.parametrize("max_rows", [8, 28])
def test_stacked_layers_give_the_same_tokens(params, prompts, expected, max_rows, monkeypatch):
    """As accelerators sample: the layers scanned, the output table as it is."""
    monkeypatch.setattr(slots, "_unstacks", lambda spec: False)
    monkeypatch.setattr(module, "LEAST_RING", (4, 4))
    jax.clear_caches()
    check_equal(generate(SPEC, params, prompts, KEY, max_rows=max_rows), expected)
    jax.clear_caches()


@pytest.mark.parametrize(
    ("mesh_config", "max_rows"),
    [
        (MeshConfig(4, 1, 2), 8),
        (MeshConfig(2, 2, 2), 100),
        (MeshConfig(1, 4, 2), 2),  # fewer rows than shards
        (MeshConfig(4, 2, 1), 16),
    ],
)
@pytest.mark.parametrize("gather_weights", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_tokens_do_not_depend_on_the_mesh(params, prompts, expected, mesh_config, max_rows, gather_weights):
    mesh = make_mesh(mesh_config)
    placed = jax.device_put(params, param_shardings(mesh, logical_axes(MODEL)))
    spec = dataclasses.replace(SPEC, gather_weights=gather_weights, chunk_length=6)
    check_equal(generate(spec, placed, prompts, KEY, mesh, max_rows), expected)


def test_prompts_are_handed_over_as_soon_as_they_are_done(params, prompts, expected):
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    rollout = Rollout(dataclasses.replace(SPEC, chunk_length=4), params, prompts, KEY, mesh, 8)
    seen = []
    for ended in rollout.finished():
        for i, prompt in enumerate(ended.prompts):
            np.testing.assert_array_equal(ended.rollouts.tokens_PNT[i], expected.tokens_PNT[prompt])
            np.testing.assert_array_equal(ended.rollouts.truncated_PN[i], expected.truncated_PN[prompt])
        seen.append(ended.prompts)
    assert sorted(prompt for prompts in seen for prompt in prompts) == list(range(NUM_PROMPTS))
    assert len([prompts for prompts in seen if prompts]) > 2
    check_equal(rollout.rollouts(), expected)


def test_the_next_chunk_is_dispatched_before_what_has_ended_is_yielded(params, prompts, monkeypatch):
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    calls = []
    original = slots.decode
    monkeypatch.setattr(slots, "decode", lambda *arguments: calls.append(1) or original(*arguments))
    rollout = Rollout(dataclasses.replace(SPEC, chunk_length=4), params, prompts, KEY, mesh, 8)
    assert len(calls) == 1  # before anything is asked for
    counts = [len(calls) for _ in rollout.finished()]
    assert counts[:-1] == list(range(2, len(counts) + 1))
    assert counts[-1] == len(counts)


def test_nothing_is_compiled_again_while_slots_are_refilled_and_for_further_batches(params, monkeypatch):
    monkeypatch.setattr(module, "LEAST_RING", (4, 4))
    spec = dataclasses.replace(SPEC, chunk_length=5)
    programs = slots.decode, slots.prefill, slots._twice, slots.prepare, slots.empty_slots, slots.empty_pool

    def sizes_after(batch):
        mixed = make_prompts(12)
        generate(spec, params, dataclasses.replace(mixed, ids_P=mixed.ids_P + batch), KEY, max_rows=8)
        return [program._cache_size() for program in programs]

    first = sizes_after(0)
    # Shared prompts and not, rings of 5, 10 and 20.
    assert first == sizes_after(100) == sizes_after(200)


def test_slots_of_a_device_read_their_own_pool(params):
    """Nothing but which generations have ended goes between devices that hold different rows."""
    mesh = make_mesh(MeshConfig(8, 1, 1))
    placed = jax.device_put(params, param_shardings(mesh, logical_axes(MODEL)))
    texts = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("decode", "prefill", "_twice"):
            original = getattr(slots, name)

            def compiled(*arguments, original=original):
                texts.append(original.lower(*arguments).compile().as_text())
                return original(*arguments)

            patch.setattr(slots, name, compiled)
        patch.setattr(module, "LEAST_RING", (4, 4))
        generate(dataclasses.replace(SPEC, chunk_length=5), placed, make_prompts(16), KEY, mesh, 16)
    assert len(texts) > 4
    sent = [
        line for text in texts for line in text.splitlines() if re.search(r"= \S+ (all-|collective|reduce-s)", line)
    ]
    assert sent
    for line in sent:
        # Counts, flags and the random key: scalars, or one number a slot.
        assert math.prod(int(n) for n in re.search(r"\[([\d,]*)\]", line)[1].split(",") if n) <= 16, line


@pytest.mark.parametrize(("num_prompts", "num_generations"), [(7, 4), (8, 2), (1, 3), (16, 5)])
def test_one_process_needs_all_prompts(num_prompts, num_generations):
    assert np.all(own_prompts(num_prompts, num_generations, make_mesh(MeshConfig())))
