"""Sampling N generations of each prompt: one jit of a prefill and a decode loop."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from polyepo_jax.model import ModelConfig, hidden_states, logical_axes, prefill, unembed
from polyepo_jax.sampling.methods import Sampling, sample_token
from polyepo_jax.sharding import constrain, gathered
from polyepo_jax.types import Array, Prompts, Rollouts


@dataclasses.dataclass(frozen=True)
class GenerationSpec:
    """What is sampled; static under jit.

    model: the model's shape.
    num_generations: N, of each prompt.
    max_completion_length: tokens of a completion at most, its end token included.
    stop_ids: tokens that end a completion; they belong to it.
    pad_id: fills the rest of a row; not one of stop_ids.
    sampling: temperature, top-k, top-p.
    gather_weights: hold, for the time of a call, a copy of the weights in the model's dtype that is not cut over
      `fsdp`. Without it every device fetches the others' parts of every layer for every token.
    """

    model: ModelConfig
    num_generations: int
    max_completion_length: int
    stop_ids: tuple[int, ...]
    pad_id: int
    sampling: Sampling = Sampling()
    gather_weights: bool = True

    def __post_init__(self):
        if self.pad_id in self.stop_ids:
            raise ValueError(f"pad_id {self.pad_id} must not be one of the stop tokens {self.stop_ids}")
        if self.num_generations < 1 or self.max_completion_length < 1:
            raise ValueError(
                "num_generations and max_completion_length must be at least 1, got "
                f"{self.num_generations} and {self.max_completion_length}"
            )


def generation_keys(key: Array, ids_P: Array, num_generations: int) -> Array:
    """One key for each generation, from (step, prompt id, generation index) alone: keys [P * N]."""
    prompt_keys = jax.vmap(functools.partial(jax.random.fold_in, key))(ids_P)
    indices = jnp.arange(num_generations)
    return jax.vmap(lambda k: jax.vmap(functools.partial(jax.random.fold_in, k))(indices))(prompt_keys).reshape(-1)


@functools.partial(jax.jit, static_argnums=0)
def generate(spec: GenerationSpec, params, prompts: Prompts, key: Array) -> Rollouts:
    """Samples `spec.num_generations` completions of each prompt.

    Each prompt is prefilled once, at P rows, and its cache forked. Decoding stops when all rows have ended. The
    random number of a token depends on (key, prompt id, generation index, token position) only, so that the same
    generation comes out in any batch layout and on any number of devices, up to rounding of the logits.

    Args:
      spec: static.
      params: of `spec.model`.
      prompts: P prompts.
      key: of the step, `fold_in(root_key, step)`.
    """
    num_prompts, prompt_length = prompts.tokens_PT.shape
    num_rows, length = num_prompts * spec.num_generations, spec.max_completion_length
    keys_B = generation_keys(key, prompts.ids_P, spec.num_generations)
    if spec.gather_weights:
        params = gathered(params, logical_axes(spec.model), spec.model.dtype)

    def next_logits(hidden_BTD):
        return unembed(spec.model, params, hidden_BTD[:, -1])

    hidden_PTD, prefilled = prefill(spec.model, params, prompts.tokens_PT, prompts.mask_PT)
    cache = prefilled.fork(spec.num_generations, prompt_length + length - 1)
    cache = dataclasses.replace(
        cache,
        keys_LBCKA=constrain(cache.keys_LBCKA, None, "batch", None, "heads", None),
        values_LBCKA=constrain(cache.values_LBCKA, None, "batch", None, "heads", None),
    )
    logits_BV = jnp.repeat(next_logits(hidden_PTD), spec.num_generations, axis=0)
    logprob_dtype = jnp.promote_types(spec.model.dtype, jnp.float32)
    draw = functools.partial(_draw, spec, keys_B)
    drawn = draw(
        0,
        logits_BV,
        jnp.full((num_rows, length), spec.pad_id, jnp.int32),
        jnp.zeros((num_rows, length), logprob_dtype),
        jnp.zeros((num_rows, length), bool),
        jnp.zeros(num_rows, bool),
    )

    def is_unfinished(carry):
        t, (*_, done_B), _ = carry
        return (t < length) & ~jnp.all(done_B)

    def decode(carry):
        t, drawn, cache = carry
        tokens_BT, *_, done_B = drawn
        last_B1 = jax.lax.dynamic_slice_in_dim(tokens_BT, t - 1, 1, axis=1)
        hidden_B1D, cache = hidden_states(spec.model, params, last_B1, cache=cache, mask_BT=~done_B[:, None])
        return t + 1, draw(t, next_logits(hidden_B1D), *drawn), cache

    _, drawn, _ = jax.lax.while_loop(is_unfinished, decode, (jnp.ones((), jnp.int32), drawn, cache))
    tokens_PNT, logprobs_PNT, mask_PNT, done_PN = (
        x.reshape(num_prompts, spec.num_generations, *x.shape[1:]) for x in drawn
    )
    return Rollouts(tokens_PNT, mask_PNT, logprobs_PNT, ~done_PN)


def _draw(
    spec: GenerationSpec,
    keys_B: Array,
    t: Array | int,
    logits_BV: Array,
    tokens_BT: Array,
    logprobs_BT: Array,
    mask_BT: Array,
    done_B: Array,
) -> tuple[Array, Array, Array, Array]:
    """Appends token t to every row that is not done."""
    # Each device draws for its own rows, from all of their logits.
    logits_BV = constrain(logits_BV, "batch_everywhere", None)
    uniform_B = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, t)))(keys_B)
    token_B, logprob_B = jax.vmap(sample_token)(jax.vmap(spec.sampling.transform)(logits_BV), uniform_B)
    token_B = jnp.where(done_B, spec.pad_id, token_B)
    tokens_BT = tokens_BT.at[:, t].set(token_B)
    logprobs_BT = logprobs_BT.at[:, t].set(jnp.where(done_B, 0, logprob_B.astype(logprobs_BT.dtype)))
    mask_BT = mask_BT.at[:, t].set(~done_B)
    stopped_B = jnp.any(token_B[:, None] == jnp.asarray(spec.stop_ids, jnp.int32)[None, :], axis=1)
    return tokens_BT, logprobs_BT, mask_BT, done_B | stopped_B
