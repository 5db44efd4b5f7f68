"""One prompt's group of generations: arrays checked, means over the valid ones, what counts as signal."""

from typing import Any

import jax.numpy as jnp

from polyepo_jax.types import Array

# |A| below this is rounding, not signal.
SIGNAL_THRESHOLD = 1e-6


def float_rewards(rewards_N) -> Array:
    """Rewards in their float type; integers and booleans in the default one, float64 under x64."""
    rewards_N = jnp.asarray(rewards_N)
    return rewards_N if jnp.issubdtype(rewards_N.dtype, jnp.floating) else rewards_N.astype(float)


def checked_group(rewards_N, clusters_N, valid_N) -> tuple[Array, Array, Array]:
    """Rewards as floats, 0 where not valid; cluster ids; and validity (None: all valid) of one prompt.

    Raises:
      ValueError: they are not three arrays [N], or ids are not integers.
    """
    rewards_N = float_rewards(rewards_N)
    clusters_N = jnp.asarray(clusters_N)
    valid_N = jnp.ones(rewards_N.shape, bool) if valid_N is None else jnp.asarray(valid_N, bool)
    if rewards_N.ndim != 1 or not rewards_N.shape == clusters_N.shape == valid_N.shape:
        raise ValueError(
            "expected rewards, cluster ids and validity of one prompt, each of shape [N], got shapes "
            f"{rewards_N.shape}, {clusters_N.shape} and {valid_N.shape}; use jax.vmap for several prompts"
        )
    if not jnp.issubdtype(clusters_N.dtype, jnp.integer):
        raise ValueError(f"clusters_N must hold integer ids, got {clusters_N.dtype}")
    # An invalid generation's grade may be anything, NaN too: it must not reach any sum.
    return jnp.where(valid_N, rewards_N, 0), clusters_N, valid_N


def mean_of_valid(values_N: Array, valid_N: Array) -> Array:
    """The mean over the valid generations; 0 if there is none."""
    return jnp.sum(jnp.where(valid_N, values_N, 0)) / jnp.maximum(jnp.sum(valid_N), 1).astype(values_N.dtype)


def center(values_N: Array, valid_N: Array) -> Array:
    """values - their mean over the valid generations; 0 where not valid, and exactly 0 where all are equal.

    Taken from one of them first: the mean of equal large numbers is off by rounding, which is no signal.
    """
    shifted_N = values_N - values_N[jnp.argmax(valid_N)]
    return jnp.where(valid_N, shifted_N - mean_of_valid(shifted_N, valid_N), 0)


def has_signal(advantages_N: Any) -> Any:
    """Whether any |A| of a group reaches SIGNAL_THRESHOLD; NaN counts as signal, so that it is found, not dropped.

    The spread of the rewards says nothing of it: an all-correct group can carry signal. Last axis: the group's.
    The answer for NumPy arrays is one, so that asking does not wait for the devices.
    """
    return ~(abs(advantages_N) < SIGNAL_THRESHOLD).all(axis=-1)
