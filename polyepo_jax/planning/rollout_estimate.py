"""Memory and work of a rollout by arithmetic alone, as `planning.estimate` has them of an update."""

import dataclasses

from polyepo_jax.config import Config
from polyepo_jax.planning.estimate import Memory, Shape, Work, state_bytes
from polyepo_jax.planning.hardware import Chip
from polyepo_jax.sampling.generate import LEAST_RING, RING_MULTIPLE, first_ring
from polyepo_jax.sampling.schedule import Schedule, slots_per_shard


def rollout_shape(config: Config, shape: Shape) -> Shape:
    """The shape that is sampled: of the dtype of rollouts."""
    dtype = config.sampling.dtype or config.model.dtype
    return dataclasses.replace(shape, model=dataclasses.replace(shape.model, dtype=dtype))


def rollout_schedule(config: Config, num_shards: int) -> Schedule:
    """The books of a step's rollout, before it begins."""
    prompts, generations = config.prompts_per_step, config.num_generations
    slots = slots_per_shard(prompts * generations, generations, config.sampling.max_rows, num_shards)
    return Schedule(prompts, generations, num_shards, slots)


def wave_rows(config: Config, num_shards: int) -> int:
    """Slots of all devices: generations that are sampled at a time."""
    return rollout_schedule(config, num_shards).row_SB.size


def ring_capacity(config: Config) -> int:
    """Tokens for which the slots have room in the end."""
    capacity = first_ring(config.max_completion_length, LEAST_RING[0], RING_MULTIPLE[0])
    while capacity < config.max_completion_length:
        capacity *= 2
    return capacity


def _cached_bytes(config: Config, shape: Shape, tokens: float) -> int:
    """Keys and values of so many tokens, bytes of a device, as they lie in its memory."""
    shape = rollout_shape(config, shape)
    heads = config.model.num_key_value_heads // shape.tensor
    return int(2 * config.model.num_hidden_layers * tokens * heads * shape.padded_head_dim * shape.itemsize)


def ring_bytes(config: Config, shape: Shape) -> int:
    """Keys and values of completions, bytes of a device."""
    return _cached_bytes(config, shape, wave_rows(config, shape.num_shards) / shape.num_shards * ring_capacity(config))


def ring_bytes_read(config: Config, shape: Shape) -> float:
    """Of the ring, for a token in every slot: all of it; by the kernel of GPUs a row's own tokens, half of it on the
    average."""
    in_kernel = shape.kernel == "cudnn" and config.sampling.gather_weights
    return ring_bytes(config, shape) / (2 if in_kernel else 1)


def pool_bytes(config: Config, shape: Shape) -> int:
    """Keys and values of prompts, bytes of a device."""
    entries = rollout_schedule(config, shape.num_shards).num_entries
    return _cached_bytes(config, shape, entries * config.max_prompt_length)


def cache_bytes(config: Config, shape: Shape) -> int:
    """Keys and values of all that is under way, bytes of a device."""
    return ring_bytes(config, shape) + pool_bytes(config, shape)


def _num_groups(config: Config, shape: Shape) -> int:
    """Groups of slots of a device that share a prompt; a slot alone where slots are refilled one by one."""
    schedule = rollout_schedule(config, shape.num_shards)
    num_slots = schedule.row_SB.shape[1]
    waits = config.prompts_per_step * config.num_generations > schedule.row_SB.size
    return num_slots if waits else num_slots // schedule.group


def rollout_memory(config: Config, shape: Shape) -> Memory:
    """Of a rollout, beside the optimizer's state."""
    shape = rollout_shape(config, shape)
    model = shape.model
    state = state_bytes(config, shape.sizes)
    rows = wave_rows(config, shape.num_shards)
    schedule = rollout_schedule(config, shape.num_shards)
    size, t = shape.itemsize, shape.tensor
    # Layers that are not stacked are copies, whatever their dtype.
    copied = not shape.on_tpu or shape.sizes[1] > 1 or model.dtype != model.weights_dtype
    copied = copied and config.sampling.gather_weights
    copies = shape.matrix_weights / t * size if copied else 2 * shape.layer_weights / t * size
    if model.lora is not None and not copied:  # merged weights are copies where nothing else is, and cut as they were
        copies += model.num_hidden_layers * shape.layer_weights / t / shape.sizes[1] * size
    # Prefill: the prompts' own cache, before it is put into the pool, and one layer's activations.
    tokens = schedule.batch * config.max_prompt_length
    prefill = (
        _cached_bytes(config, shape, tokens) + tokens * (3 * model.hidden_size + 3 * model.intermediate_size / t) * size
    )
    # Decoding: the prompts of each group of slots, and logits in float32, three times over while a token is drawn.
    groups = _num_groups(config, shape)
    decode: float = _cached_bytes(config, shape, groups * config.max_prompt_length)
    decode += 3 * 4 * rows / shape.num_shards * model.vocab_size / t
    # Growing: keys, then values in a ring of twice the slots, and the old ones meanwhile.
    grown = ring_bytes(config, shape) / 4 if ring_capacity(config) > LEAST_RING[0] else 0
    results = rows * config.max_completion_length * 8 / shape.num_shards
    return Memory(
        weights=state.weights,
        optimizer=state.optimizer,
        cache=cache_bytes(config, shape),
        copies=int(copies),
        activations=int(max(prefill, decode, grown) + results),
        in_flight=state.in_flight,
    )


def prefill_work(config: Config, shape: Shape) -> Work:
    """Of the prompts of as many generations as there are slots, the gathering of the weights included."""
    shape = rollout_shape(config, shape)
    prompts = rollout_schedule(config, shape.num_shards).batch
    t, f, size = shape.tensor, shape.sizes[1], shape.itemsize
    flops = prompts * shape.forward_flops(config.max_prompt_length) / t
    weight_bytes = shape.matrix_weights / t * size
    sent = (f - 1) / f * weight_bytes
    local_tokens = prompts * config.max_prompt_length
    sent += 4 * config.model.num_hidden_layers * (t - 1) / t * local_tokens * config.model.hidden_size * size
    passes = 3 if config.model.lora is None else 5  # adapters are merged: weights are read and written once more
    return Work(flops, passes * weight_bytes, sent)


def decode_work(config: Config, shape: Shape) -> Work:
    """Of one token in every slot. Attention reads the prompts of all groups of slots, and `ring_bytes_read`."""
    shape = rollout_shape(config, shape)
    model = config.model
    local = wave_rows(config, shape.num_shards) // shape.num_shards
    L, t, f, size = model.num_hidden_layers, shape.tensor, shape.sizes[1], shape.itemsize
    context = config.max_prompt_length + ring_capacity(config)
    attention = 4 * model.num_attention_heads * model.head_dim * context
    flops = local * (L * (2 * shape.layer_weights + attention) + 2 * shape.output_weights) / t
    weight_bytes = (L * shape.layer_weights + shape.output_weights) / t * size
    sent = L * 2 * 2 * (t - 1) / t * local * model.hidden_size * size
    if not config.sampling.gather_weights:
        sent += (f - 1) / f * weight_bytes
    prompts = _cached_bytes(config, shape, _num_groups(config, shape) * config.max_prompt_length)
    return Work(flops, weight_bytes + ring_bytes_read(config, shape) + prompts, sent)


def num_waves(config: Config, shape: Shape) -> int:
    """Waves of a step's rollout."""
    rows = config.prompts_per_step * config.num_generations
    return -(-rows // wave_rows(config, shape.num_shards))


def rollout_work(config: Config, shape: Shape) -> Work:
    """Of one step's rollout, every completion of the full length."""
    steps = config.max_completion_length
    return (prefill_work(config, shape) + decode_work(config, shape).times(steps)).times(num_waves(config, shape))


def rollout_seconds(config: Config, shape: Shape, chip: Chip) -> tuple[float | None, str | None]:
    """The least time of a step's rollout, all completions of full length, and what bounds the longer of its parts."""
    prefill, prefill_by = prefill_work(config, shape).seconds(chip)
    decode, decode_by = decode_work(config, shape).times(config.max_completion_length).seconds(chip)
    if prefill is None or decode is None:
        return None, None
    return num_waves(config, shape) * (prefill + decode), decode_by if decode >= prefill else prefill_by
