"""What an update says of itself: sums over its micro-batches, means over its tokens, and those of a step's updates."""

import math

import jax.numpy as jnp

from polyepo_jax.losses import importance_weights
from polyepo_jax.types import Array

# What ends so is a maximum in place of a sum.
_MAXIMUM = "_max"


def weight_sums(logprobs: Array, sampler_logprobs: Array, trained: Array) -> dict[str, Array]:
    """Sums over trained tokens of their importance weights w, trainer / sampler, and of w^2.

    Their effective sample size is (sum w)^2 / sum w^2 (Kish 1965), `summary` has it as a share of the n tokens: 1 where
    all weigh the same, 1 / n where one weighs all.
    """
    weights, _ = importance_weights(logprobs, sampler_logprobs, math.inf)
    weights = jnp.where(trained, weights, 0)
    return {"weight": jnp.sum(weights), "weight_squared": jnp.sum(weights**2)}


def combined(totals: dict[str, Array], part: dict[str, Array]) -> dict[str, Array]:
    """The sums, and maxima, of micro-batches with those of another; maxima are of what is positive and begin at 0."""
    return {
        name: (jnp.maximum if name.endswith(_MAXIMUM) else jnp.add)(total, part[name]) for name, total in totals.items()
    }


def per_token(sums: dict[str, Array]) -> dict[str, Array]:
    """Of an update's sums the means over the tokens that it trained; maxima, and `all_tokens`, as they are."""
    tokens, all_tokens = sums.pop("tokens"), sums.pop("all_tokens")
    means = {n: total if n.endswith(_MAXIMUM) else total / jnp.maximum(tokens, 1) for n, total in sums.items()}
    undefined = {"gap", "ratio", "ratio_max", "weight"} & means.keys()  # of no token
    return means | {n: jnp.where(tokens > 0, means[n], jnp.nan) for n in undefined} | {"all_tokens": all_tokens}


def summary(stats: dict[str, Array]) -> dict[str, Array]:
    """Of the numbers of a step's updates, [updates] each, those of the step."""
    means = {"loss", "grad_norm", "learning_rate", "kl"} & stats.keys()
    numbers = {name: jnp.mean(stats[name]) for name in sorted(means)}
    if "importance_capped" in stats:
        numbers["importance_capped_frac"] = jnp.mean(stats["importance_capped"])
    if "clipped" in stats:
        numbers["clip_frac"] = jnp.mean(stats["clipped"])
    if "ratio" in stats:  # not of updates that trained no token
        numbers["ratio_mean"], numbers["ratio_max"] = jnp.nanmean(stats["ratio"]), jnp.nanmax(stats["ratio_max"])
    numbers["sampler_gap"] = stats["gap"][0]
    if "weight" in stats:
        numbers["effective_sample_size"] = stats["weight"][0] ** 2 / stats["weight_squared"][0]
    numbers["tokens"] = jnp.sum(stats["all_tokens"])
    numbers["nonfinite"] = jnp.sum(stats["nonfinite"])
    return numbers


def of_no_update(capped: bool, stale: bool) -> dict[str, Array]:
    """The numbers of a step without an update: NaN for what is said of tokens, of which there were none.

    Args:
      capped: whether the loss has an importance cap. stale: as of `UpdateSpec`.
    """
    zeros, undefined = ("loss", "grad_norm", "learning_rate", "tokens", "nonfinite"), jnp.full((), jnp.nan)
    of_tokens = ["clip_frac", "ratio_mean", "ratio_max", "sampler_gap"]
    of_tokens += ["importance_capped_frac"] * capped + ["effective_sample_size"] * stale
    return dict.fromkeys(of_tokens, undefined) | {name: jnp.zeros(()) for name in zeros}
