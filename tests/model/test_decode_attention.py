"""Attention of a decode step against `attend`, its Triton kernel in interpret mode."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyepo_jax.model import ModelConfig, Ring
from polyepo_jax.model import decode_attention as module
from polyepo_jax.model.attention import attend
from polyepo_jax.model.decode_attention import (
    TRITON_BLOCK,
    Partial,
    attend_shared,
    attend_to_ring,
    attends_in_triton,
    triton_attend,
)
from polyepo_jax.sharding import AXES, MeshConfig, make_mesh

ROWS, PROMPTS, HEADS, KV_HEADS, HEAD_DIM, CAPACITY, PROMPT_LENGTH = 8, 2, 6, 2, 32, 6 * TRITON_BLOCK, 5
# Tokens of a row before its newest: none, up to a block's end, over it, all but one, all, all as a full ring says it.
LENGTHS = (0, 1, TRITON_BLOCK - 1, TRITON_BLOCK, 2 * TRITON_BLOCK + 5, CAPACITY - 2, CAPACITY - 1, CAPACITY)


def random_step(step: int, dtype="bfloat16"):
    """Query, the keys and values of prompts, and a ring at that step."""
    rng = np.random.default_rng(step)
    shapes = [
        (ROWS, HEADS, HEAD_DIM),
        *[(PROMPTS, KV_HEADS, PROMPT_LENGTH, HEAD_DIM)] * 2,
        *[(ROWS, KV_HEADS, CAPACITY, HEAD_DIM)] * 2,
    ]
    query, *cached = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    lengths = jnp.minimum(jnp.array(LENGTHS), step)
    return 2 * query, cached[:2], Ring((cached[2],), (cached[3],), lengths, jnp.int32(step))


def own_of(attended: Partial):
    return (attended.attended / attended.total[..., None]).reshape(ROWS, HEADS, HEAD_DIM)


def reference(query, ring: Ring, prompt=()):
    """`attend` in float64 of each row alone, its tokens picked from the ring one by one, the prompt's before them."""
    with jax.enable_x64(True):
        rows = []
        for row in range(ROWS):
            slots = [(int(ring.step) - age) % CAPACITY for age in range(min(LENGTHS[row], int(ring.step)) + 1)]
            slots = sorted(set(slots))  # a full ring counts the slot being written only once
            kept = [np.asarray(x[0][row][:, slots], np.float64) for x in (ring.keys, ring.values)]
            if prompt:
                of_row = [np.asarray(x[row // (ROWS // PROMPTS)], np.float64) for x in prompt]
                kept = [np.concatenate(pair, axis=1) for pair in zip(of_row, kept, strict=True)]
            keys, values = (jnp.asarray(x.swapaxes(0, 1)[None]) for x in kept)
            mask = jnp.ones((1, 1, keys.shape[1]), bool)
            rows.append(attend(jnp.asarray(np.asarray(query[row], np.float64))[None, None], keys, values, mask)[0, 0])
        return np.stack(rows)


STEPS = [0, 3, TRITON_BLOCK, CAPACITY - 1, CAPACITY, 3 * CAPACITY + 7]


@pytest.mark.parametrize("step", STEPS)
def test_the_triton_kernel_reads_what_is_the_row_s_own(step):
    query, _, ring = random_step(step)
    grouped = query.reshape(ROWS, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM)
    kernel = functools.partial(triton_attend, interpret=True)
    attended = jax.jit(kernel)(grouped, ring.keys[0], ring.values[0], ring.lengths_B, ring.step)
    np.testing.assert_allclose(own_of(attended), reference(query, ring), atol=0.02)
    # What is not the row's own is never looked at, however large.
    foreign = ~np.asarray(ring.mask_BC())[:, None, :, None]
    keys, values = (jnp.where(foreign, 1e4, x[0]).astype(x[0].dtype) for x in (ring.keys, ring.values))
    jax.tree.map(
        np.testing.assert_array_equal, attended, jax.jit(kernel)(grouped, keys, values, ring.lengths_B, ring.step)
    )


@pytest.mark.parametrize("step", STEPS)
def test_rows_attend_to_their_prompt_and_to_themselves(step):
    query, prompt, ring = random_step(step, "float32")
    own = attend_to_ring(False, query, ring, ring.keys[0], ring.values[0])
    attended = attend_shared(query, *prompt, jnp.ones((PROMPTS, PROMPT_LENGTH), bool), own)
    np.testing.assert_allclose(attended, reference(query, ring, prompt), atol=1e-5)
    # A prompt of one token has none in the cache: the row is alone.
    alone = attend_shared(query, *prompt, jnp.zeros((PROMPTS, PROMPT_LENGTH), bool), own)
    np.testing.assert_allclose(alone, reference(query, ring), atol=1e-5)


@pytest.mark.parametrize("mesh", [MeshConfig(2, 2, 2), MeshConfig(1, 1, 1)])
def test_every_device_attends_for_its_rows_and_heads(mesh, monkeypatch):
    monkeypatch.setattr(module, "triton_attend", functools.partial(triton_attend, interpret=True))
    query, _, ring = random_step(2 * CAPACITY + 3)
    with jax.set_mesh(make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])):
        attended = jax.jit(lambda *x: attend_to_ring(True, *x))(query, ring, ring.keys[0], ring.values[0])
    np.testing.assert_allclose(own_of(attended), reference(query, ring), atol=0.02)


def on(platform: str):
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform=platform)
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1, 1, 1), AXES, abstract_device=device))


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_the_kernel_is_lowered_for_gpus():
    """Without one: what Triton refuses is refused here."""
    query, _, ring = random_step(9)
    arguments = query.reshape(ROWS, KV_HEADS, -1, HEAD_DIM), ring.keys[0], ring.values[0], ring.lengths_B, ring.step
    with on("gpu"):
        text = jax.jit(triton_attend).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.custom_call @__gpu$xla.gpu.triton") == 1


MODEL = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=64,
    tie_word_embeddings=True,
    dtype="bfloat16",
)


@pytest.mark.parametrize(
    ("platform", "changes", "triton"),
    [
        ("gpu", {}, True),
        ("gpu", {"dtype": "float32"}, False),  # its products would round to 10 bits
        ("gpu", {"attention": "xla"}, False),
        ("gpu", {"head_dim": 80}, False),  # Triton's blocks are powers of two
        ("cpu", {}, False),
        ("tpu", {}, False),
    ],
)
def test_where_the_triton_kernel_is_used(platform, changes, triton):
    with on(platform):
        assert attends_in_triton(dataclasses.replace(MODEL, **changes)) is triton


def test_a_ring_that_is_no_whole_number_of_blocks_is_refused():
    shape = 1, 1, TRITON_BLOCK + 1, 16
    with pytest.raises(ValueError, match=f"{TRITON_BLOCK + 1} slots"):
        triton_attend(jnp.zeros((1, 1, 1, 16)), jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(1, int), jnp.int32(0))
