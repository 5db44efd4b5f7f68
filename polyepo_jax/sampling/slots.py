"""What the devices do for a rollout: prompts are prefilled into a pool, and slots decode in chunks of steps.

Between chunks a slot whose generation has ended is given another one: shapes stay, nothing is compiled again.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from polyepo_jax.model import (
    Layers,
    ModelConfig,
    PromptCache,
    Ring,
    decode_step,
    each_layer,
    logical_axes,
    merged,
    prompt_cache,
    twice,
    unembed,
    unstacked,
    without_adapters,
)
from polyepo_jax.sampling.methods import Sampling, sample_token
from polyepo_jax.sharding import constrain, everywhere, gathered, mesh_platform, num_row_shards_in_use
from polyepo_jax.types import Array


@dataclasses.dataclass(frozen=True)
class GenerationSpec:
    """What is sampled; static under jit.

    model: the model's shape.
    num_generations: N, of each prompt.
    max_completion_length: tokens of a completion at most, its end token included.
    stop_ids: tokens that end a completion; they belong to it.
    pad_id: fills the rest of a row; not one of stop_ids.
    sampling: temperature, top-k, top-p.
    gather_weights: hold, for the time of a rollout, a copy of the weights in the model's dtype that is not cut over
      `fsdp`. Without it every device fetches the others' parts of every layer for every token.
    chunk_length: steps after which slots are given new generations, at the latest.
    """

    model: ModelConfig
    num_generations: int
    max_completion_length: int
    stop_ids: tuple[int, ...]
    pad_id: int
    sampling: Sampling = Sampling()
    gather_weights: bool = True
    chunk_length: int = 64

    def __post_init__(self):
        if self.pad_id in self.stop_ids:
            raise ValueError(f"pad_id {self.pad_id} must not be one of the stop tokens {self.stop_ids}")
        if self.num_generations < 1 or self.max_completion_length < 1 or self.chunk_length < 1:
            raise ValueError(
                "num_generations, max_completion_length and chunk_length must be at least 1, got "
                f"{self.num_generations}, {self.max_completion_length} and {self.chunk_length}"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """B generations under way.

    ring: of their own tokens, the last one of each excepted; the last token of the prompt counts as the first of these.
    tokens_B: int32, the last token of each.
    num_tokens_B: int32, tokens of each completion so far.
    done_B: bool, ended.
    """

    ring: Ring
    tokens_B: Array
    num_tokens_B: Array
    done_B: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Assignment:
    """What the slots work on, from the host.

    ids_B, generations_B: int32, the prompt's identity and the index of the generation.
    last_positions_B: int32, of the prompts' last tokens.
    first_tokens_B: int32, the prompt's last token where a slot begins a generation, -1 where it goes on.
    entries_G: int32, of the pool: those of the prompts that B / G adjacent slots share.
    """

    ids_B: Array
    generations_B: Array
    last_positions_B: Array
    first_tokens_B: Array
    entries_G: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
    """What a chunk of steps yields.

    tokens_BT, logprobs_BT: of the slots that were not done, from left to right; the rest is of no meaning.
    num_tokens_B, done_B: as of Slots, in all processes.
    """

    tokens_BT: Array
    logprobs_BT: Array
    num_tokens_B: Array
    done_B: Array


def logprob_dtype(config: ModelConfig) -> Any:
    """Of the sampler's logprobs."""
    return jnp.promote_types(config.dtype, jnp.float32)


def _unstacks(spec: GenerationSpec) -> bool:
    """Whether a decode step has all layers one after the other in the program.

    XLA's CPU and GPU backends copy a scanned layer's weights out of the stack in every step. On TPUs that is not so,
    and the compiler's time counts. Nor is it done where weights are to take no room for a copy.
    """
    return mesh_platform() == "cpu" or (mesh_platform() == "gpu" and spec.gather_weights)


def _transposes() -> bool:
    """Whether a tied output projection is a matrix of its own: CPUs multiply faster by one that is not transposed."""
    return mesh_platform() == "cpu"


def sampling_config(config: ModelConfig) -> ModelConfig:
    """The model that `prepare` makes of one."""
    config = without_adapters(config)
    return dataclasses.replace(config, tie_word_embeddings=False) if _transposes() else config


@functools.partial(jax.jit, static_argnums=0)
def prepare(spec: GenerationSpec, params: Any) -> Any:
    """The parameters as a rollout reads them, of `sampling_config`: adapters are merged, once for all tokens."""
    if spec.model.lora is not None:
        if _unstacks(spec):  # first, so that the merged layers are not held twice
            params = unstacked(params)
        params = merged(spec.model, params, spec.model.dtype)[1]
    if spec.gather_weights:
        params = _gathered(without_adapters(spec.model), params)
    if _transposes() and spec.model.tie_word_embeddings:
        params = {**params, "lm_head": params["embed_tokens"].T}
    return unstacked(params) if _unstacks(spec) and not isinstance(params["layers"], tuple) else params


def _gathered(model: ModelConfig, params: Any) -> Any:
    """`sharding.gathered`, of layers in a tuple too."""
    axes, layers = logical_axes(model), params["layers"]
    if not isinstance(layers, tuple):
        return gathered(params, axes, model.dtype)
    of_layer = jax.tree.map(lambda names: names[1:], axes["layers"], is_leaf=lambda x: isinstance(x, tuple))
    outer = {name: gathered(params[name], axes[name], model.dtype) for name in axes if name != "layers"}
    return {**outer, "layers": tuple(gathered(layer, of_layer, model.dtype) for layer in layers)}


def _by_part(function, *arrays: Array) -> Array:
    """`function` of each device's rows of the arrays alone."""
    split = (x.reshape(num_row_shards_in_use(), -1, *x.shape[1:]) for x in arrays)
    result = jax.vmap(function)(*split)
    return result.reshape(-1, *result.shape[2:])


def _rows(x: Array) -> Array:
    return constrain(x, "batch", *(None,) * (x.ndim - 1))


def _cache(x_BKCA: Array) -> Array:
    return constrain(x_BKCA, "batch", "heads", None, None)


def _empty(spec: GenerationSpec, rows: int, length: int) -> Any:
    """Keys or values of so many rows."""
    model = spec.model
    shape = (rows, model.num_key_value_heads, length, model.head_dim)
    if _unstacks(spec):
        return tuple(_cache(jnp.zeros(shape, model.dtype)) for _ in range(model.num_hidden_layers))
    return constrain(jnp.zeros((model.num_hidden_layers, *shape), model.dtype), None, "batch", "heads", None, None)


def _empty_ring(spec: GenerationSpec, rows: int, length: int) -> Any:
    if _unstacks(spec):
        return _empty(spec, rows, length)
    model = spec.model
    shape = (model.num_hidden_layers, length, model.num_key_value_heads, rows, model.head_dim)
    return constrain(jnp.zeros(shape, model.dtype), None, None, "heads", "batch", None)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def empty_slots(spec: GenerationSpec, num_slots: int, capacity: int) -> Slots:
    """Slots that are done, whose rings have room for `capacity` tokens."""
    zeros_B = _rows(jnp.zeros(num_slots, jnp.int32))
    keys, values = (_empty_ring(spec, num_slots, capacity) for _ in range(2))
    ring = Ring(keys, values, zeros_B, jnp.zeros((), jnp.int32))
    return Slots(ring, zeros_B, zeros_B, _rows(jnp.ones(num_slots, bool)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def empty_pool(spec: GenerationSpec, num_entries: int, length: int) -> PromptCache:
    """A pool of so many prompts of so many tokens."""
    mask_PT = _rows(jnp.zeros((num_entries, length), bool))
    return PromptCache(_empty(spec, num_entries, length), _empty(spec, num_entries, length), mask_PT)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill(
    spec: GenerationSpec, params: Any, pool: PromptCache, tokens_QT: Array, mask_QT: Array, entries_Q: Array
) -> PromptCache:
    """The pool with prompts put into entries; an entry beyond the pool's is put nowhere.

    Args:
      params: as `prepare` makes them.
      tokens_QT, mask_QT: prompts without their last tokens, left-padded.
    """
    new = prompt_cache(sampling_config(spec.model), params, tokens_QT, mask_QT)

    def put(there: Array, rows: Array) -> Array:
        return _by_part(lambda x, new, at: x.at[at].set(new, mode="drop"), there, _rows(rows), entries_Q)

    return PromptCache(
        each_layer(put, pool.keys, new.keys),
        each_layer(put, pool.values, new.values),
        put(pool.mask_PT, new.mask_PT),
    )


_twice = jax.jit(twice)


def grow(slots: Slots) -> Slots:
    """The slots with room for twice as many tokens; the old ones are deleted.

    Keys, then values: no more than a quarter of the new ring is held beside it.
    """
    ring, step = slots.ring, slots.ring.step_of_twice()

    def replaced(layers: Layers) -> Layers:
        new = _twice(layers)
        jax.tree.map(lambda x: x.delete(), layers)
        return new

    ring = Ring(replaced(ring.keys), replaced(ring.values), ring.lengths_B, step)
    return dataclasses.replace(slots, ring=ring)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def decode(
    spec: GenerationSpec,
    shares_tokens: bool,
    params: Any,
    slots: Slots,
    pool: PromptCache,
    assignment: Assignment,
    key: Array,
    max_steps: Array,
    max_ended: Array,
) -> tuple[Slots, Chunk]:
    """Steps of all slots, until `max_steps` or `max_ended` generations have ended, or all have.

    The random number of a token depends on (key, prompt id, generation index, token position) only, so that the same
    generation comes out in any slot and on any number of devices, up to rounding of the logits.

    Args:
      shares_tokens: every process gets all tokens, not those of its devices only.
      params: as `prepare` makes them.
      key: of the step, `fold_in(root_key, step)`.
      max_steps: at most `spec.chunk_length`.
    """
    model, length, a = sampling_config(spec.model), spec.chunk_length, assignment

    def take(x: Array) -> Array:
        return _by_part(lambda x, at: x[at], x, a.entries_G)

    prompts = PromptCache(each_layer(take, pool.keys), each_layer(take, pool.values), take(pool.mask_PT))
    keys_B = generation_keys(key, a.ids_B, a.generations_B)
    begins_B = a.first_tokens_B >= 0
    slots = Slots(
        dataclasses.replace(slots.ring, lengths_B=jnp.where(begins_B, 0, slots.ring.lengths_B)),
        jnp.where(begins_B, a.first_tokens_B, slots.tokens_B),
        jnp.where(begins_B, 0, slots.num_tokens_B),
        slots.done_B & ~begins_B,
    )
    stop_ids = jnp.asarray(spec.stop_ids, jnp.int32)
    were_done = jnp.sum(slots.done_B)

    def goes_on(carry):
        t, slots, _, _ = carry
        ended = jnp.sum(slots.done_B) - were_done
        return (t < max_steps) & (ended < max_ended) & ~jnp.all(slots.done_B)

    def step(carry):
        t, slots, tokens_BT, logprobs_BT = carry
        positions_B = a.last_positions_B + slots.num_tokens_B
        hidden_BD, ring = decode_step(model, params, slots.tokens_B, positions_B, prompts, slots.ring)
        # Each device draws for its own rows, from all of their logits.
        logits_BV = constrain(unembed(model, params, hidden_BD), "batch_everywhere", None)
        uniform_B = jax.vmap(lambda k, i: jax.random.uniform(jax.random.fold_in(k, i)))(keys_B, slots.num_tokens_B)
        token_B, logprob_B = jax.vmap(sample_token)(jax.vmap(spec.sampling.transform)(logits_BV), uniform_B)
        going_B = ~slots.done_B
        num_tokens_B = slots.num_tokens_B + going_B
        stopped_B = jnp.any(token_B[:, None] == stop_ids[None, :], axis=1)
        ring = dataclasses.replace(ring, lengths_B=ring.lengths_B + going_B)
        slots = Slots(
            ring,
            jnp.where(going_B, token_B, slots.tokens_B),
            num_tokens_B,
            slots.done_B | stopped_B | (num_tokens_B >= spec.max_completion_length),
        )
        return t + 1, slots, tokens_BT.at[:, t].set(token_B), logprobs_BT.at[:, t].set(logprob_B)

    num_rows = a.ids_B.shape[0]
    carry = (
        jnp.zeros((), jnp.int32),
        slots,
        _rows(jnp.zeros((num_rows, length), jnp.int32)),
        _rows(jnp.zeros((num_rows, length), logprob_dtype(spec.model))),
    )
    _, slots, tokens_BT, logprobs_BT = jax.lax.while_loop(goes_on, step, carry)
    place = everywhere if shares_tokens else _rows
    return slots, Chunk(
        place(tokens_BT), place(logprobs_BT), everywhere(slots.num_tokens_B + 0), everywhere(slots.done_B | False)
    )


def generation_keys(key: Array, ids_B: Array, generations_B: Array) -> Array:
    """One key for each generation, from (step, prompt id, generation index) alone."""

    def key_of(prompt: Array, generation: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(key, prompt), generation)

    return jax.vmap(key_of)(ids_B, generations_B)
