"""Sampling N generations of each prompt, by slots that are refilled as generations end."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from polyepo_jax.model import ModelConfig
from polyepo_jax.model.decode_attention import TRITON_BLOCK
from polyepo_jax.pods import collectives
from polyepo_jax.sampling import slots as on_devices
from polyepo_jax.sampling.schedule import Schedule, slots_per_shard
from polyepo_jax.sampling.slots import Assignment, Chunk, GenerationSpec, Slots
from polyepo_jax.sharding import (
    Mesh,
    MeshConfig,
    copy_to_all,
    local_rows,
    make_mesh,
    mesh_platform,
    num_row_shards,
    row_owners,
    row_sharding,
    rows,
    shard_rows,
)
from polyepo_jax.types import Prompts, Rollouts

# Slots that may be idle before a chunk ends so that they are refilled, as a share of all: more of them waste steps,
# fewer of them cost a return to the host every few steps.
_IDLE_SHARE = 1 / 8
# Slots of the smallest ring, on accelerators and on CPUs, and of what rings are multiples there. Each doubling is a
# program of its own to compile, and what it saves is the reading of slots that are not in use.
LEAST_RING = 512, 64
RING_MULTIPLE = TRITON_BLOCK, 1


@dataclasses.dataclass(frozen=True)
class Finished:
    """Prompts all of whose generations have ended, on the host of one process.

    prompts: their indices. rollouts: NumPy arrays of these prompts.
    """

    prompts: list[int]
    rollouts: Rollouts


def own_prompts(num_prompts: int, num_generations: int, mesh: Mesh) -> np.ndarray:
    """The prompts whose tokens this process needs for its devices, to sample them and as a whole: bool[num_prompts]."""
    own_P = local_rows(row_sharding(mesh, num_prompts), num_prompts)
    num_shards = num_row_shards(mesh)
    share = -(-num_prompts * num_generations // num_shards)
    own_S = local_rows(rows(mesh), num_shards)
    for shard in np.flatnonzero(own_S).tolist():
        first, last = shard * share, min((shard + 1) * share, num_prompts * num_generations)
        own_P[first // num_generations : -(-last // num_generations)] = True
    return own_P


def _prompt_room(longest: int, most: int) -> int:
    """The next power of two from 16 on, `most` at most: few different shapes, and none twice as long as needed."""
    room = 16
    while room < longest:
        room *= 2
    return min(room, most)


def first_ring(max_completion_length: int, least: int, multiple: int = 1) -> int:
    """Slots of the first ring, from which doubling leads to one that just holds all tokens: `least` to twice as many,
    or all if these are fewer, rounded up. Rings of two limits that differ by a factor of two are the same."""
    doublings = max(max_completion_length // least, 1).bit_length() - 1
    return -(-max_completion_length // (2**doublings * multiple)) * multiple


def abstract_rollouts(model: ModelConfig, num_prompts: int, num_generations: int, length: int) -> Rollouts:
    """Shapes and dtypes of rollouts of so many tokens at most."""
    shape = num_prompts, num_generations, length
    shapes = [(shape, np.int32), (shape, bool), (shape, on_devices.logprob_dtype(model)), (shape[:2], bool)]
    return Rollouts(*(jax.ShapeDtypeStruct(*x) for x in shapes))  # type: ignore[arg-type]


class Rollout:
    """Generations of a batch of prompts, being sampled.

    The first steps are dispatched at once, all further ones before the caller deals with what has ended.

    Args:
      params: of `spec.model`, on `mesh`.
      prompts: NumPy arrays; a process needs those of `own_prompts`.
      key: of the step, `fold_in(root_key, step)`.
      max_rows: generations sampled at a time, at most (one for each device that rows are cut over, at least).

    Attributes:
      row_steps: slots times steps so far, idle ones included.
    """

    def __init__(self, spec: GenerationSpec, params: Any, prompts: Prompts, key: jax.Array, mesh: Mesh, max_rows: int):
        num_prompts, N = len(prompts.ids_P), spec.num_generations
        self._spec, self._mesh, self._prompts = spec, mesh, prompts
        num_shards = num_row_shards(mesh)
        num_slots = slots_per_shard(num_prompts * N, N, max_rows, num_shards)
        self._schedule = Schedule(num_prompts, N, num_shards, num_slots)
        # Prompts that no device holds alone: every process then gets all tokens, to have all of a prompt's.
        self._shares_tokens = jax.process_count() > 1 and num_prompts % num_shards != 0
        self._owned_P = row_owners(row_sharding(mesh, num_prompts), num_prompts) == jax.process_index()
        lengths_P = np.sum(prompts.mask_PT, axis=1)
        longest = max(collectives.gather(int(np.max(lengths_P)))) if jax.process_count() > 1 else np.max(lengths_P)
        # The last token of a prompt is the first that its generations decode.
        self._room = _prompt_room(int(longest) - 1, prompts.tokens_PT.shape[1])
        self._last_positions_P = lengths_P - 1
        with jax.set_mesh(mesh):
            on_cpu = mesh_platform() == "cpu"
        self._capacity = first_ring(spec.max_completion_length, LEAST_RING[on_cpu], RING_MULTIPLE[on_cpu])
        shape = num_prompts * N, spec.max_completion_length
        self._tokens_RT = np.full(shape, spec.pad_id, np.int32)
        self._logprobs_RT = np.zeros(shape, on_devices.logprob_dtype(spec.model))
        self._num_tokens_R = np.zeros(shape[0], np.int32)
        self._unfinished_P = np.full(num_prompts, N)
        self._num_tokens_SB = np.zeros(self._schedule.row_SB.shape, np.int32)
        self._key = copy_to_all(mesh, key)
        with jax.set_mesh(mesh):
            self._params = on_devices.prepare(spec, params)
            self._pool = on_devices.empty_pool(spec, num_shards * self._schedule.num_entries, self._room)
            self._slots: Slots = on_devices.empty_slots(spec, num_shards * num_slots, self._capacity)
        self.row_steps = 0
        self._chunk: Chunk | None = self._dispatch()

    def _dispatch(self) -> Chunk | None:
        """Starts the next chunk; None where all is done."""
        schedule, spec = self._schedule, self._spec
        begins_SB = schedule.fill()
        while (admitted := schedule.admit()) is not None:
            self._prefill(*admitted)
            begins_SB |= schedule.fill()
        if schedule.done:
            del self._params, self._pool, self._slots  # what grades or updates next needs their memory
            return None
        row_SB = np.maximum(schedule.row_SB, 0)
        prompt_SB = row_SB // spec.num_generations
        self._num_tokens_SB[begins_SB] = 0
        longest = int(np.max(np.where(schedule.row_SB >= 0, self._num_tokens_SB, 0)))
        if longest >= self._capacity:
            self._capacity *= 2
            with jax.set_mesh(self._mesh):
                self._slots = on_devices.grow(self._slots)
        max_steps = spec.chunk_length
        if self._capacity < spec.max_completion_length:
            max_steps = min(max_steps, self._capacity - longest)
        num_slots = schedule.row_SB.size
        max_ended = num_slots + 1
        if schedule.num_waiting:
            max_ended = min(max(int(num_slots * _IDLE_SHARE), 1), schedule.num_waiting)
        assignment = Assignment(
            *self._place(
                np.asarray(self._prompts.ids_P)[prompt_SB],
                row_SB % spec.num_generations,
                self._last_positions_P[prompt_SB],
                np.where(begins_SB, self._prompts.tokens_PT[prompt_SB, -1], -1),
                schedule.entries_of_groups(),
            )
        )
        with jax.set_mesh(self._mesh):
            self._slots, chunk = on_devices.decode(
                spec,
                self._shares_tokens,
                self._params,
                self._slots,
                self._pool,
                assignment,
                self._key,
                np.int32(max_steps),
                np.int32(max_ended),
            )
        return chunk

    def _place(self, *arrays_SB: np.ndarray) -> Sequence[jax.Array]:
        """int32[S, B, ...] -> [S * B, ...] on the devices."""
        flat = [np.asarray(x, np.int32).reshape(-1, *x.shape[2:]) for x in arrays_SB]
        return shard_rows(self._mesh, flat)

    def _prefill(self, prompt_SQ: np.ndarray, entry_SQ: np.ndarray) -> None:
        there = (prompt_SQ >= 0).reshape(-1, 1)
        prompt_Q = np.maximum(prompt_SQ, 0).reshape(-1)
        width = self._prompts.tokens_PT.shape[1]
        columns = np.arange(width - 1 - self._room, width - 1)
        inside = columns >= 0
        tokens_QT = np.where(inside, self._prompts.tokens_PT[prompt_Q][:, np.maximum(columns, 0)], 0)
        mask_QT = self._prompts.mask_PT[prompt_Q][:, np.maximum(columns, 0)] & inside & there
        tokens, mask, entries = shard_rows(
            self._mesh, [tokens_QT.astype(np.int32), mask_QT, entry_SQ.reshape(-1).astype(np.int32)]
        )
        with jax.set_mesh(self._mesh):
            self._pool = on_devices.prefill(self._spec, self._params, self._pool, tokens, mask, entries)

    def finished(self) -> Iterator[Finished]:
        """What has ended after each chunk of steps, perhaps nothing, as far as it is this process's to deal with.

        The next chunk is dispatched before what has ended is yielded, so that the devices have work meanwhile.
        """
        while self._chunk is not None:
            prompts = self._take(self._chunk)
            self._chunk = self._dispatch()
            own = [prompt for prompt in prompts if self._owned_P[prompt]]
            yield Finished(own, self._on_host(own))

    def _take(self, chunk: Chunk) -> list[int]:
        """Puts the tokens of a chunk where they belong; the prompts that are done with it."""
        schedule = self._schedule
        row_B, before_B = schedule.row_SB.reshape(-1), self._num_tokens_SB.reshape(-1)
        num_tokens_B, done_B = np.asarray(chunk.num_tokens_B), np.asarray(chunk.done_B)
        for first, tokens_BT, logprobs_BT in _local(chunk):
            for slot in range(len(tokens_BT)):
                row, start, stop = row_B[first + slot], before_B[first + slot], num_tokens_B[first + slot]
                if row >= 0:
                    self._tokens_RT[row, start:stop] = tokens_BT[slot, : stop - start]
                    self._logprobs_RT[row, start:stop] = logprobs_BT[slot, : stop - start]
        busy_B = row_B >= 0
        self._num_tokens_R[row_B[busy_B]] = num_tokens_B[busy_B]
        self.row_steps += int(np.max(np.where(busy_B, num_tokens_B - before_B, 0))) * len(row_B)
        self._num_tokens_SB = num_tokens_B.reshape(schedule.row_SB.shape).copy()
        ended = collections.Counter(
            (schedule.end(done_B.reshape(schedule.row_SB.shape)) // self._spec.num_generations).tolist()
        )
        for prompt, count in ended.items():
            self._unfinished_P[prompt] -= count
        return [prompt for prompt in sorted(ended) if self._unfinished_P[prompt] == 0]

    def _on_host(self, prompts: Sequence[int]) -> Rollouts:
        N, T = self._spec.num_generations, self._spec.max_completion_length
        rows_PN = np.asarray(prompts, int)[:, None] * N + np.arange(N)
        tokens_PNT, num_tokens_PN1 = self._tokens_RT[rows_PN], self._num_tokens_R[rows_PN][..., None]
        last_PN = np.take_along_axis(tokens_PNT, np.maximum(num_tokens_PN1 - 1, 0), axis=2)[..., 0]
        return Rollouts(
            tokens_PNT,  # type: ignore[arg-type]
            np.arange(T) < num_tokens_PN1,  # type: ignore[arg-type]
            self._logprobs_RT[rows_PN],  # type: ignore[arg-type]
            ~np.isin(last_PN, self._spec.stop_ids),  # type: ignore[arg-type]
        )

    def rollouts(self) -> Rollouts:
        """All generations, on the devices, once all have ended."""
        assert self._chunk is None, "generations are still being sampled"
        return shard_rows(self._mesh, self._on_host(range(len(self._unfinished_P))))


def _local(chunk: Chunk) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The tokens and logprobs that are on this process's devices: (first slot, tokens, logprobs), no slot twice."""
    seen = set()
    for tokens, logprobs in zip(chunk.tokens_BT.addressable_shards, chunk.logprobs_BT.addressable_shards, strict=True):
        first = tokens.index[0].start or 0
        if first not in seen:
            seen.add(first)
            yield first, np.asarray(tokens.data), np.asarray(logprobs.data)


def generate(
    spec: GenerationSpec,
    params: Any,
    prompts: Prompts,
    key: jax.Array,
    mesh: Mesh | None = None,
    max_rows: int | None = None,
) -> Rollouts:
    """Samples `spec.num_generations` completions of each prompt: a `Rollout`, waited for.

    Args:
      mesh: None for one device.
      max_rows: None for all rows at a time.
    """
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1]) if mesh is None else mesh
    max_rows = len(prompts.ids_P) * spec.num_generations if max_rows is None else max_rows
    rollout = Rollout(spec, params, jax.tree.map(np.asarray, prompts), key, mesh, max_rows)
    collections.deque(rollout.finished(), maxlen=0)
    return rollout.rollouts()
