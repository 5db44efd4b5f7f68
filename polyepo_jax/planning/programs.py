"""The programs that training runs, compiled ahead for a topology that is not there."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from polyepo_jax.config import Config
from polyepo_jax.config.meshes import abstract_params
from polyepo_jax.config.static_arguments import generation_spec, update_spec
from polyepo_jax.model import logical_axes, split
from polyepo_jax.model.tokenizer import CharacterTokenizer
from polyepo_jax.planning import hlo
from polyepo_jax.planning.estimate import chunk_length, shape_of, update_folding
from polyepo_jax.planning.rollout_estimate import ring_capacity, rollout_schedule, wave_rows
from polyepo_jax.sampling import slots
from polyepo_jax.sharding import BATCH_AXES, Mesh, num_row_shards, param_shardings, replicated, row_sharding
from polyepo_jax.training.update import init_state, state_shardings, train_step
from polyepo_jax.types import Batch

# Which tokens end a completion changes nothing in the program but their number.
_STAND_IN = CharacterTokenizer(alphabet="ab", stop="a")


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program; all figures are per device.

    peak_bytes: of its memory, arguments included. argument_bytes: of these. temporary_bytes: of what it allocates,
      not reused. dot_flops: of matrix products outside of kernels, a step. collectives: a step.
    largest: the largest arrays, as (bytes, shape, name).
    """

    peak_bytes: int
    argument_bytes: int
    temporary_bytes: int
    dot_flops: float
    collectives: tuple[hlo.Collective, ...]
    largest: list[tuple[int, str, str]]


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """A program that the compiler refuses: it needs at least peak_bytes of the limit_bytes there are, if it says so."""

    peak_bytes: int | None
    limit_bytes: int | None


# How libtpu words it: all of a program's memory, or its temporaries alone.
_USED_OF = re.compile(r"[Uu]sed ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])")
_EXCEEDS = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)")


def _abstract(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _row_array(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=row_sharding(mesh, shape[0]))


def _int_array(mesh: Mesh, rows: int) -> Any:
    return _row_array(mesh, (rows,), jnp.int32)


def _compile(lower: Callable[[], Any], *unknown_trip_counts: int) -> Program | TooLarge:
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = _USED_OF.search(str(error)) or _EXCEEDS.search(str(error))
        if sizes is None:
            return TooLarge(None, None)
        unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
        return TooLarge(int(float(sizes[1]) * unit[sizes[2]]), int(float(sizes[3]) * unit[sizes[4]]))
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return Program(
        peak_bytes=memory.peak_memory_in_bytes,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        dot_flops=hlo.dot_flops(text, *unknown_trip_counts),
        collectives=hlo.collectives(text, *unknown_trip_counts),
        largest=hlo.largest_buffers(text, 8),
    )


def compile_update(config: Config, mesh: Mesh) -> Program | TooLarge:
    """`train_step` of a step's batch."""
    spec = update_spec(config)
    trained, frozen = split(abstract_params(config.model))
    # Before the mesh is in use: on devices that are not there nothing can be computed, not even a scalar.
    shardings = state_shardings(spec, mesh)
    state = _abstract(jax.eval_shape(lambda p: init_state(spec, p), trained), shardings)
    frozen = _abstract(frozen, split(param_shardings(mesh, logical_axes(config.model)))[1])
    rows = config.prompts_per_step * config.num_generations
    length = config.max_prompt_length + config.max_completion_length
    batch = Batch(
        tokens_BT=_row_array(mesh, (rows, length), jnp.int32),  # type: ignore[arg-type]
        mask_BT=_row_array(mesh, (rows, length), bool),  # type: ignore[arg-type]
        loss_mask_BT=_row_array(mesh, (rows, length), bool),  # type: ignore[arg-type]
        sampler_logprobs_BT=_row_array(mesh, (rows, length), jnp.float32),  # type: ignore[arg-type]
        proximal_logprobs_BT=_row_array(mesh, (rows, length), jnp.float32),  # type: ignore[arg-type]
        advantages_B=_row_array(mesh, (rows,), jnp.float32),  # type: ignore[arg-type]
    )
    reference = _abstract(trained, shardings.params) if spec.loss.needs_reference else ()
    # How many micro-batches are filled is known when it runs: all, if every row is of full length.
    num_micro_batches = (spec.mini_batch_rows or rows) // (spec.micro_batch_rows or spec.mini_batch_rows or rows)
    # And so it is with chunks of what is trained; without packing their number is in the text.
    shape = shape_of(
        config, (mesh.shape["data"], mesh.shape["fsdp"], mesh.shape["tensor"]), mesh.devices.flat[0].platform
    )
    scored, size = update_folding(config, shape) * config.max_completion_length, chunk_length(config, shape)
    num_chunks = -(-scored // size) if size < scored else 0  # one that holds all is no loop
    with jax.set_mesh(mesh):
        return _compile(lambda: train_step.lower(spec, state, batch, reference, frozen), num_micro_batches, num_chunks)


def compile_rollout(config: Config, mesh: Mesh) -> Program | TooLarge:
    """The sampling of as many generations as there are slots, at full length; a loop that ends early is counted at its
    longest. What `sampling.Rollout` calls one after the other is one program here."""
    model, length = config.model, config.max_completion_length
    spec = dataclasses.replace(generation_spec(config, _STAND_IN), chunk_length=length)
    params = _abstract(abstract_params(model), param_shardings(mesh, logical_axes(model)))
    num_shards, rows = num_row_shards(mesh), wave_rows(config, num_row_shards(mesh))
    schedule = rollout_schedule(config, num_shards)
    schedule.admit()
    schedule.fill()
    prompts, entries = num_shards * schedule.batch, num_shards * schedule.num_entries
    groups = rows if schedule.num_waiting else schedule.entries_of_groups().size
    tokens = _row_array(mesh, (prompts, config.max_prompt_length), jnp.int32)
    mask = _row_array(mesh, (prompts, config.max_prompt_length), bool)
    each_Q, each_B, each_G = (_int_array(mesh, count) for count in (prompts, rows, groups))
    assignment = slots.Assignment(each_B, each_B, each_B, each_B, each_G)
    key = _abstract(jax.eval_shape(lambda: jax.random.key(0)), replicated(mesh))

    def on_mesh(stacked, x):
        """Rows with heads beside them, in stacked layers as they come."""
        spec = {0: (), 4: (BATCH_AXES, "tensor"), 5: stacked}.get(x.ndim, (BATCH_AXES,))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    with jax.set_mesh(mesh):
        pool = jax.eval_shape(lambda: slots.empty_pool(spec, entries, config.max_prompt_length))
        empty = jax.eval_shape(lambda: slots.empty_slots(spec, rows, ring_capacity(config)))
    pool = jax.tree.map(functools.partial(on_mesh, (None, BATCH_AXES, "tensor")), pool)
    empty = jax.tree.map(functools.partial(on_mesh, (None, None, "tensor", BATCH_AXES)), empty)

    def rollout(params, pool, empty, tokens_QT, mask_QT, entries_Q, assignment, key):
        prepared = slots.prepare(spec, params)
        pool = slots.prefill(spec, prepared, pool, tokens_QT, mask_QT, entries_Q)
        steps, ended = jnp.int32(length), jnp.int32(rows + 1)
        return pool, *slots.decode(spec, False, prepared, empty, pool, assignment, key, steps, ended)

    with jax.set_mesh(mesh):
        arrays = params, pool, empty, tokens, mask, each_Q, assignment, key
        return _compile(lambda: jax.jit(rollout, donate_argnums=(1, 2)).lower(*arrays), length)
