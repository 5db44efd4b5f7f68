"""Groups of a prompt's generations with their advantages, and the rows of an update that are made of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from polyepo_jax.sets import has_signal
from polyepo_jax.types import Array, Batch, Prompts, Rollouts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Groups:
    """P prompts, the N generations of each, and the advantages of these; on the devices."""

    prompts: Prompts
    rollouts: Rollouts
    advantages_PN: Array


@jax.jit
def keep_informative(kept: Groups, new: Groups) -> Groups:
    """P of two times P groups, in their order: those that carry signal, then the first others; no prompt's twice."""
    repeated_P = jnp.any(
        (new.prompts.ids_P[:, None] == kept.prompts.ids_P[None, :]) & has_signal(kept.advantages_PN)[None, :], axis=1
    )
    lacks_signal = jnp.concatenate(
        [~has_signal(kept.advantages_PN), ~has_signal(new.advantages_PN) | repeated_P], dtype=bool
    )
    chosen_P = jnp.sort(jnp.argsort(lacks_signal, stable=True)[: repeated_P.size])
    return jax.tree.map(lambda first, second: jnp.concatenate([first, second])[chosen_P], kept, new)


def num_informative(groups: Groups) -> int:
    """How many groups carry signal."""
    return int(jnp.sum(has_signal(groups.advantages_PN)))


@functools.partial(jax.jit, static_argnums=0)
def flatten(mask_truncated: bool, prompts: Prompts, rollouts: Rollouts, advantages_PN: Array) -> Batch:
    """Rows of prompt and completion, P * N of them."""
    num_generations = advantages_PN.shape[1]

    def rows(prompt_PT, completion_PNT):
        completion_BT = completion_PNT.reshape(-1, completion_PNT.shape[-1])
        return jnp.concatenate([jnp.repeat(prompt_PT, num_generations, axis=0), completion_BT], axis=1)

    trained_PNT = rollouts.completion_mask_PNT
    if mask_truncated:
        trained_PNT = trained_PNT & ~rollouts.truncated_PN[:, :, None]
    sampler_logprobs_BT = rows(jnp.zeros(prompts.mask_PT.shape), rollouts.sampler_logprobs_PNT)
    return Batch(
        tokens_BT=rows(prompts.tokens_PT, rollouts.tokens_PNT),
        mask_BT=rows(prompts.mask_PT, rollouts.completion_mask_PNT),
        loss_mask_BT=rows(jnp.zeros_like(prompts.mask_PT), trained_PNT),
        sampler_logprobs_BT=sampler_logprobs_BT,
        proximal_logprobs_BT=sampler_logprobs_BT,
        advantages_B=advantages_PN.reshape(-1),
    )
