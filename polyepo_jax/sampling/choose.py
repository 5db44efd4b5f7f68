"""Labels under constraint: one token a step, of a few that are allowed, after one prefill.

A model that sorts N items needs no more than N labels of it. With one token for each label, and only labels allowed,
every answer is valid and its length is known.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from polyepo_jax.model import ModelConfig, hidden_states, logical_axes, prefill, unembed
from polyepo_jax.sampling.methods import Sampling, sample_token
from polyepo_jax.sampling.slots import generation_keys
from polyepo_jax.sharding import constrain, gathered
from polyepo_jax.types import DEGENERATE, Array, Prompts


@dataclasses.dataclass(frozen=True)
class LabelSpec:
    """What is chosen; static under jit.

    model: the model's shape.
    num_items: N, labels of an answer.
    label_ids: N distinct tokens, the labels in the order in which they come into use.
    degenerate_id: another token, for an item that belongs to no cluster.
    separator_ids: tokens that follow each label.
    sampling: of the allowed tokens; temperature 0 takes the most likely one.
    gather_weights: as of GenerationSpec.
    """

    model: ModelConfig
    num_items: int
    label_ids: tuple[int, ...]
    degenerate_id: int
    separator_ids: tuple[int, ...] = ()
    sampling: Sampling = Sampling(temperature=0)
    gather_weights: bool = True

    def __post_init__(self):
        if self.num_items < 1 or len(self.label_ids) != self.num_items:
            raise ValueError(f"expected a label for each of {self.num_items} items, got {len(self.label_ids)}")
        if len({*self.label_ids, self.degenerate_id}) != self.num_items + 1:
            raise ValueError(f"label tokens must differ, got {self.label_ids} and {self.degenerate_id}")


@functools.partial(jax.jit, static_argnums=0)
def choose_labels(spec: LabelSpec, params, prompts: Prompts, key: Array) -> Array:
    """A cluster for each of N items, in their order, as the model writes labels after each prompt.

    An item may take any label in use, the first one that is not (a new cluster), or the degenerate one: so clusters
    are numbered as they appear, and no two answers say the same in other words.

    Args:
      spec: static.
      params: of `spec.model`.
      prompts: P prompts.
      key: for a temperature above 0.

    Returns:
      int32[P, N], ids from 0 or DEGENERATE.
    """
    num_prompts, prompt_length = prompts.tokens_PT.shape
    if spec.gather_weights:
        params = gathered(params, logical_axes(spec.model), spec.model.dtype)
    allowed_ids = jnp.array([*spec.label_ids, spec.degenerate_id], jnp.int32)  # position N is the degenerate one
    separator_P = jnp.tile(jnp.array(spec.separator_ids, jnp.int32)[None], (num_prompts, 1))
    keys_P = generation_keys(key, prompts.ids_P, jnp.zeros_like(prompts.ids_P))

    def choose(n, hidden_PD, num_used_P):
        logits_PV = constrain(unembed(spec.model, params, hidden_PD), "batch_everywhere", None)
        logits_PL = logits_PV[:, allowed_ids]
        positions_L = jnp.arange(spec.num_items + 1)[None, :]
        allowed_PL = (positions_L <= num_used_P[:, None]) | (positions_L == spec.num_items)
        logits_PL = jnp.where(allowed_PL, logits_PL, jnp.finfo(logits_PL.dtype).min)
        uniform_P = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, n)))(keys_P)
        chosen_P, _ = jax.vmap(sample_token)(jax.vmap(spec.sampling.transform)(logits_PL), uniform_P)
        return chosen_P, num_used_P + (chosen_P == num_used_P)

    hidden_PTD, prefilled = prefill(spec.model, params, prompts.tokens_PT, prompts.mask_PT)
    cache = prefilled.fork(1, prompt_length + spec.num_items * (1 + len(spec.separator_ids)))
    cache = dataclasses.replace(
        cache,
        keys_LBCKA=constrain(cache.keys_LBCKA, None, "batch", None, "heads", None),
        values_LBCKA=constrain(cache.values_LBCKA, None, "batch", None, "heads", None),
    )

    def step(carry, n):
        hidden_PD, num_used_P, cache = carry
        chosen_P, num_used_P = choose(n, hidden_PD, num_used_P)
        written_PT = jnp.concatenate([allowed_ids[chosen_P][:, None], separator_P], axis=1)
        hidden_PTD, cache = hidden_states(spec.model, params, written_PT, cache=cache)
        return (hidden_PTD[:, -1], num_used_P, cache), chosen_P

    carry = hidden_PTD[:, -1], jnp.zeros(num_prompts, jnp.int32), cache
    _, chosen_NP = jax.lax.scan(step, carry, jnp.arange(spec.num_items))
    return jnp.where(chosen_NP == spec.num_items, DEGENERATE, chosen_NP).T
