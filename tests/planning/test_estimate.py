"""The plan by arithmetic against arrays, compiled programs and the compiler for TPU."""

import dataclasses
import importlib.util
import math

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from polyepo_jax.config import AlgorithmConfig, Config, InitConfig, LoggingConfig, SamplingConfig
from polyepo_jax.config.meshes import why_not
from polyepo_jax.config.static_arguments import update_spec
from polyepo_jax.losses import PolicyLoss
from polyepo_jax.model import LoRA, ModelConfig, init, logical_axes, split
from polyepo_jax.planning.estimate import StateBytes, shape_of, state_bytes, update_memory, update_work
from polyepo_jax.planning.hardware import parse_topology, topology_mesh
from polyepo_jax.planning.programs import compile_rollout, compile_update
from polyepo_jax.planning.rollout_estimate import (
    decode_work,
    num_waves,
    pool_bytes,
    prefill_work,
    ring_bytes,
    rollout_memory,
    rollout_work,
    wave_rows,
)
from polyepo_jax.sharding import MeshConfig, make_mesh, mesh_sizes, param_shardings
from polyepo_jax.training.update import init_state, state_shardings
from tests.tiny import rl_config

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")

# Wide enough that what is not a matrix product hardly counts; few enough layers that none is in a loop.
MODEL = ModelConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    attention="xla",
)


def small_config(mesh=None, loss=None, micro_batch_size=None, **model):
    """Two prompts of four generations on one device, or a mesh; fields of the model as named."""
    config = rl_config()
    loss = config.algorithm.loss if loss is None else loss
    return dataclasses.replace(
        config,
        init=InitConfig(model_dir="models/any"),
        model=dataclasses.replace(MODEL, **model),
        prompts_per_step=2,
        max_prompt_length=24,
        max_completion_length=40,
        sampling=SamplingConfig(max_rows=8),
        mesh=MeshConfig(1, 1, 1) if mesh is None else mesh,
        algorithm=dataclasses.replace(config.algorithm, loss=loss, micro_batch_size=micro_batch_size),
    )


def cpu_mesh(config: Config):
    sizes = config.mesh.data, config.mesh.fsdp, config.mesh.tensor
    return make_mesh(config.mesh, jax.devices()[: abs(math.prod(sizes))])


def on_first_device(tree) -> int:
    return sum(
        shard.data.nbytes for x in jax.tree.leaves(tree) for shard in x.addressable_shards if shard.device.id == 0
    )


@pytest.mark.parametrize("mesh", [MeshConfig(8, 1, 1), MeshConfig(1, 8, 1), MeshConfig(2, 2, 2)])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "param_dtype": "bfloat16"}])
def test_weights_and_optimizer_are_those_of_arrays(mesh, changes):
    config = small_config(mesh=mesh, **changes)
    spec, placed = update_spec(config), cpu_mesh(config)
    shardings = state_shardings(spec, placed)
    abstract = jax.eval_shape(lambda: init_state(spec, init(spec.model, jax.random.key(0))))
    state = jax.tree.map(lambda x, where: jax.device_put(np.zeros(x.shape, x.dtype), where), abstract, shardings)
    sizes = mesh_sizes(mesh, 8)
    own, moments = on_first_device(state.params), on_first_device(state.opt_state)
    assert state_bytes(config, sizes) == StateBytes(own, 0, 0, moments)
    with_reference = dataclasses.replace(config.algorithm, loss=PolicyLoss(beta=0.1))
    measured = LoggingConfig(kl_interval_steps=10)
    for changes in ({"algorithm": with_reference}, {"logging": measured}):
        assert state_bytes(dataclasses.replace(config, **changes), sizes) == StateBytes(own, 0, own, moments)


@pytest.mark.parametrize("mesh", [MeshConfig(8, 1, 1), MeshConfig(2, 2, 2)])
def test_adapters_and_what_is_frozen_are_those_of_arrays(mesh):
    config = small_config(mesh=mesh, dtype="bfloat16", lora=LoRA(16, targets=("q_proj", "o_proj", "down_proj")))
    spec, placed = update_spec(config), cpu_mesh(config)

    def put(tree, shardings) -> int:
        return on_first_device(
            jax.tree.map(lambda x, s: jax.device_put(np.zeros(x.shape, x.dtype), s), tree, shardings)
        )

    trained, frozen = split(jax.eval_shape(lambda: init(spec.model, jax.random.key(0))))
    where, shardings = split(param_shardings(placed, logical_axes(spec.model))), state_shardings(spec, placed)
    moments = jax.eval_shape(lambda: init_state(spec, trained)).opt_state
    expected = StateBytes(put(trained, where[0]), put(frozen, where[1]), 0, put(moments, shardings.opt_state))
    sizes = mesh_sizes(mesh, 8)
    assert state_bytes(config, sizes) == expected
    assert frozen["embed_tokens"].dtype == "bfloat16"
    measured = dataclasses.replace(config, logging=LoggingConfig(kl_interval_steps=10))
    assert state_bytes(measured, sizes) == dataclasses.replace(expected, reference=expected.trained)


def test_what_training_adapters_saves():
    """Of Qwen3-4B: moments and gradients take less than 3 % of what they take where all is trained."""
    model = ModelConfig(
        vocab_size=151_936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    full = state_bytes(dataclasses.replace(small_config(), model=model), (1, 1, 1))
    small = state_bytes(dataclasses.replace(small_config(), model=dataclasses.replace(model, lora=LoRA(16))), (1, 1, 1))
    assert full.trained == 4 * 4_022_468_096
    # Of each layer, by hand: 16 times inputs and outputs of the seven matrices.
    sides = (2560 + 4096) * 2 + (2560 + 1024) * 2 + (2560 + 9728) * 3
    assert small.trained == 4 * 36 * 16 * sides
    assert small.frozen == 2 * 4_022_468_096
    assert small.trained + small.optimizer < 0.03 * (full.trained + full.optimizer)


# Of a row: tokens, sampler logprobs, two masks; and its advantage.
ROW_BYTES = (24 + 40) * (4 + 4 + 1 + 1) + 4


@pytest.mark.parametrize(
    ("remat", "tie_word_embeddings", "beta", "lora"),
    [
        ("none", True, 0, None),
        ("dots", False, 0, None),
        ("full", True, 0, None),
        ("full", False, 0.1, None),
        ("dots", True, 0.1, LoRA(8)),
        ("full", False, 0, LoRA(16, targets=("v_proj", "up_proj"))),
    ],
)
def test_update_against_its_program(remat, tie_word_embeddings, beta, lora):
    loss, model = PolicyLoss(beta=beta), {"tie_word_embeddings": tie_word_embeddings, "lora": lora}
    config = small_config(loss=loss, remat=remat, **model)
    program = compile_update(config, cpu_mesh(config))
    shape = shape_of(config, (1, 1, 1), "cpu")
    memory = update_memory(config, shape)
    scalars = 2 * 4  # step and nonfinite_in_a_row
    assert program.argument_bytes == memory.weights + memory.optimizer + 8 * ROW_BYTES + scalars
    assert update_work(config, shape).flops == pytest.approx(program.dot_flops, rel=0.05)


@pytest.mark.parametrize(("mesh", "micro_batch_size"), [(MeshConfig(2, 2, 1), None), (MeshConfig(1, 2, 2), 4)])
def test_update_on_a_mesh_against_its_program(mesh, micro_batch_size):
    config = small_config(mesh, remat="full", micro_batch_size=micro_batch_size)
    program = compile_update(config, cpu_mesh(config))
    sizes = mesh.data, mesh.fsdp, mesh.tensor
    shape = shape_of(config, sizes, "cpu")
    memory = update_memory(config, shape)
    rows = 8 // (mesh.data * mesh.fsdp)
    assert program.argument_bytes == memory.weights + memory.optimizer + rows * ROW_BYTES + 8
    flops = update_work(config, shape).flops
    assert flops == pytest.approx(program.dot_flops, rel=0.05)


@pytest.mark.parametrize(
    ("mesh", "dtype", "tie_word_embeddings", "sampled_in", "lora"),
    [
        (MeshConfig(1, 1, 1), "float32", False, None, None),
        (MeshConfig(1, 1, 1), "bfloat16", True, None, None),
        (MeshConfig(1, 2, 2), "float32", True, "bfloat16", None),
        (MeshConfig(1, 2, 2), "bfloat16", True, None, LoRA(16)),
    ],
)
def test_rollout_against_its_program(mesh, dtype, tie_word_embeddings, sampled_in, lora):
    config = small_config(mesh, dtype=dtype, tie_word_embeddings=tie_word_embeddings, lora=lora)
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, dtype=sampled_in))
    # Keys of a layer are larger than any other array.
    config = dataclasses.replace(config, max_prompt_length=100, max_completion_length=357)
    program = compile_rollout(config, cpu_mesh(config))
    shape = shape_of(config, (mesh.data, mesh.fsdp, mesh.tensor), "cpu")
    heads, rows = 2 // mesh.tensor, 8 // (mesh.data * mesh.fsdp)
    name = {"float32": "f32", "bfloat16": "bf16"}[sampled_in or dtype]
    ring = 384  # 357 in whole blocks
    keys = [size for size, text, _ in program.largest if text == f"{name}[{rows},{heads},{ring},32]"]
    assert keys
    assert ring_bytes(config, shape) == 2 * 2 * keys[0]
    entries = 2 // (mesh.data * mesh.fsdp)
    assert pool_bytes(config, shape) == ring_bytes(config, shape) / rows / ring * entries * 100
    assert rollout_work(config, shape).flops == pytest.approx(program.dot_flops, rel=0.05)


def test_a_step_s_rollout_is_passes_of_a_prefill_and_all_tokens():
    config = dataclasses.replace(small_config(), sampling=SamplingConfig(max_rows=12), prompts_per_step=7)
    shape = shape_of(config, (1, 1, 1), "cpu")
    assert (num_waves(config, shape), wave_rows(config, 1)) == (3, 12)
    wave = prefill_work(config, shape).flops + 40 * decode_work(config, shape).flops
    assert rollout_work(config, shape).flops == pytest.approx(3 * wave)


# Small, but with everything a large run has: a scan over layers, a loop over micro-batches, weights in bfloat16. Much
# smaller ones say nothing of memory: their arrays find room in the 128 MiB beside the compute units.
TPU_MODEL = ModelConfig(
    vocab_size=16384,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=128,
    tie_word_embeddings=True,
    dtype="bfloat16",
)


def tpu_config(mesh: MeshConfig, remat: str, micro_batch_size: int | None, head_dim: int = 128) -> Config:
    config = rl_config()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(TPU_MODEL, remat=remat, head_dim=head_dim),
        prompts_per_step=32,
        max_prompt_length=512,
        max_completion_length=512,
        mesh=mesh,
        sampling=SamplingConfig(max_rows=64),
        algorithm=AlgorithmConfig(advantage=config.algorithm.advantage, micro_batch_size=micro_batch_size),
    )


def activations(peak_bytes: int, memory) -> int:
    """What of a compiled peak is not weights, optimizer, gradients, cache or copies, which are known."""
    return peak_bytes - (memory.total - memory.activations)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "remat", "micro_batch_size"),
    [(MeshConfig(1, 2, 2), "full", 16), (MeshConfig(1, 4, 1), "dots", 32)],
)
def test_activations_of_an_update_on_tpu(mesh, remat, micro_batch_size):
    config = tpu_config(mesh, remat, micro_batch_size)
    program = compile_update(config, topology_mesh(parse_topology("v5e:2x2"), mesh))
    memory = update_memory(config, shape_of(config, (mesh.data, mesh.fsdp, mesh.tensor), "tpu"))
    compiled = activations(program.peak_bytes, memory)
    assert 0.75 * compiled < memory.activations < 1.3 * compiled  # more is the safe side
    assert memory.total == pytest.approx(program.peak_bytes, rel=0.15)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("head_dim", [128, 64])  # 64 take the room of 128
def test_memory_of_a_rollout_on_tpu(head_dim):
    config = tpu_config(MeshConfig(1, 2, 2), "full", 16, head_dim=head_dim)
    config = dataclasses.replace(config, sampling=SamplingConfig(max_rows=128))
    program = compile_rollout(config, topology_mesh(parse_topology("v5e:2x2"), config.mesh))
    memory = rollout_memory(config, shape_of(config, (1, 2, 2), "tpu"))
    peak = program.peak_bytes + memory.optimizer  # which lies beside it
    assert memory.activations == pytest.approx(activations(peak, memory), rel=0.25)
    assert memory.total == pytest.approx(peak, rel=0.05)


# Properties.

meshes = st.sampled_from([(d, f, t) for d in (1, 2, 4) for f in (1, 2, 4, 8) for t in (1, 2)])
remats = st.sampled_from(["none", "dots", "full"])
platforms = st.sampled_from(["cpu", "gpu", "tpu"])


@st.composite
def runs(draw):
    """A run that its mesh divides, and the mesh."""
    sizes = draw(meshes)
    config = tpu_config(MeshConfig(*sizes), draw(remats), draw(st.sampled_from([None, 16, 32])))
    config = dataclasses.replace(config, max_completion_length=draw(st.integers(2, 3000)))
    hypothesis.assume(why_not(config, sizes) is None)
    return config, sizes


def replaced(config, **changes):
    return dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, **changes))


def with_rows(config, micro_batch_size=None, max_rows=64):
    algorithm = dataclasses.replace(config.algorithm, micro_batch_size=micro_batch_size)
    return dataclasses.replace(config, algorithm=algorithm, sampling=SamplingConfig(max_rows=max_rows))


@hypothesis.given(runs(), platforms)
def test_memory_falls_with_the_micro_batch(run, platform):
    config, sizes = run
    hypothesis.assume(16 % (sizes[0] * sizes[1]) == 0)
    # Where rows and vocabulary are cut, logits that need no loop over chunks take more than those in one.
    hypothesis.assume(sizes[2] == 1 or sizes[0] * sizes[1] == 1)
    shape = shape_of(config, sizes, platform)
    small, large, whole = (update_memory(with_rows(config, rows), shape).total for rows in (16, 32, None))
    assert small < large
    # Without micro-batches nothing is accumulated: that can weigh less than the rows.
    gradients = state_bytes(config, sizes).trained
    assert large < whole + gradients


@hypothesis.given(runs(), platforms)
def test_memory_of_a_rollout_falls_with_the_wave(run, platform):
    config, sizes = run
    # Where shards do not divide a wave's prompts, each reads all of them.
    hypothesis.assume(8 % (sizes[0] * sizes[1]) == 0)
    shape = shape_of(config, sizes, platform)
    small, large = (rollout_memory(with_rows(config, max_rows=rows), shape) for rows in (32, 64))
    assert small.total < large.total
    assert small.cache < large.cache


@hypothesis.given(runs(), platforms)
def test_memory_falls_with_fsdp(run, platform):
    config, (data, fsdp, tensor) = run
    wider = data, 2 * fsdp, tensor
    hypothesis.assume(tensor == 1 and why_not(config, wider) is None and 16 % (data * 2 * fsdp) == 0)  # as above
    for memory in (update_memory, rollout_memory):
        narrow, wide = (memory(config, shape_of(config, sizes, platform)) for sizes in ((data, fsdp, tensor), wider))
        assert wide.weights < narrow.weights
        assert wide.optimizer < narrow.optimizer
        assert wide.total < narrow.total


@hypothesis.given(runs(), platforms)
def test_work_is_the_same_on_every_mesh(run, platform):
    config, sizes = run
    hypothesis.assume(16 % (sizes[0] * sizes[1]) == 0)
    for work in (update_work, rollout_work):
        alone = work(config, shape_of(config, (1, 1, 1), platform))
        spread = work(config, shape_of(config, sizes, platform))
        if work is update_work and spread.flops * math.prod(sizes) < alone.flops:
            # Devices that hold the logits of all their rows' positions compute none of them again.
            rows = config.prompts_per_step * config.num_generations * update_spec(config).num_iterations
            again = 2 * rows * config.max_completion_length * shape_of(config, sizes, platform).output_weights
            assert spread.flops * math.prod(sizes) == pytest.approx(alone.flops - again)
        else:
            assert spread.flops * math.prod(sizes) == pytest.approx(alone.flops)
        assert alone.sent_bytes == 0
        # Samplers on copies of the weights have nothing to tell each other.
        assert (spread.sent_bytes > 0) == (math.prod(sizes[work is rollout_work :]) > 1)
