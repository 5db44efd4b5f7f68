"""What an update says of itself: sums over its micro-batches, means over its tokens, and those of a step's updates."""

import jax.numpy as jnp

from polyepo_jax.types import Array

# What ends so is a maximum in place of a sum.
_MAXIMUM = "_max"


def combined(totals: dict[str, Array], part: dict[str, Array]) -> dict[str, Array]:
    """The sums, and maxima, of micro-batches with those of another; maxima are of what is positive and begin at 0."""
    return {
        name: (jnp.maximum if name.endswith(_MAXIMUM) else jnp.add)(total, part[name]) for name, total in totals.items()
    }


def per_token(sums: dict[str, Array]) -> dict[str, Array]:
    """Of an update's sums the means over the tokens that it trained; maxima, and `all_tokens`, as they are."""
    tokens, all_tokens = sums.pop("tokens"), sums.pop("all_tokens")
    means = {n: total if n.endswith(_MAXIMUM) else total / jnp.maximum(tokens, 1) for n, total in sums.items()}
    undefined = {"gap", "ratio", "ratio_max"} & means.keys()  # of no token
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
    numbers["tokens"] = jnp.sum(stats["all_tokens"])
    numbers["nonfinite"] = jnp.sum(stats["nonfinite"])
    return numbers


def of_no_update() -> dict[str, Array]:
    """The numbers of a step without an update: NaN for what is said of tokens, of which there were none."""
    zeros, undefined = ("loss", "grad_norm", "learning_rate", "tokens", "nonfinite"), jnp.full((), jnp.nan)
    of_tokens = ("clip_frac", "ratio_mean", "ratio_max", "sampler_gap")
    return dict.fromkeys(of_tokens, undefined) | {name: jnp.zeros(()) for name in zeros}
