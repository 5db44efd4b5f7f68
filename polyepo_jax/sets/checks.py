"""Objectives and advantages that users bring are tried on made-up groups before a run starts."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polyepo_jax.sets.advantages import SetAdvantage, marginal_advantages, mean_over_sets
from polyepo_jax.sets.construct import all_sets
from polyepo_jax.sets.objectives import conditional_means_of
from polyepo_jax.types import DEGENERATE

# Sets of one trial that are enumerated to check a closed form, at most.
_MAX_SETS = 20_000
# Groups or sets that are tried.
_NUM_TRIALS = 32
# Differences beyond this, relative to numbers of the order of 1, are not rounding of float32.
_TOLERANCE = 1e-4


def _trial_groups(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and cluster ids [trials, size]: 0/1 rewards and fractions, few clusters and many, all wrong, all right,
    and degenerates alone."""
    rng = np.random.default_rng(0)
    shape = (_NUM_TRIALS, size)
    rewards = np.where(np.arange(_NUM_TRIALS)[:, None] % 2, rng.random(shape), rng.random(shape) < 0.5)
    rewards[:2] = [[0.0], [1.0]]
    clusters = rng.integers(DEGENERATE, 3, shape)
    clusters[1:3] = [[DEGENERATE], [7]]
    clusters[3] = np.arange(size)
    return rewards.astype(np.float32), clusters.astype(np.int32)


def _same(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(first - second) <= _TOLERANCE * np.maximum(1, np.abs(first))


def _tried(what: str, function: Any, *arguments: Any) -> np.ndarray:
    """The results on all trials; the user's code may raise anything."""
    try:
        result = jax.jit(jax.vmap(function))(*arguments)
    except Exception as error:
        (first_line, *_) = str(error).splitlines() or [""]
        raise ValueError(f"{what} failed under jax.jit and jax.vmap: {type(error).__name__}: {first_line}") from error
    if not isinstance(result, jax.Array) or jnp.iscomplexobj(result):
        kind = "complex numbers" if isinstance(result, jax.Array) else f"a {type(result).__name__}"
        raise ValueError(f"{what} must return an array of real numbers, got {kind}")
    return np.asarray(result, float)


def _listed(array: np.ndarray) -> list:
    return np.round(array.astype(float), 4).tolist()


def check_objective(objective: Any, num_generations: int) -> None:
    """Tries an objective on random sets of its `set_size`, and its closed form against enumeration.

    Raises:
      ValueError: it raises, returns no scalar or no finite number, depends on the order of a set's members, or its
        `conditional_means` are not its means.
    """
    rewards, clusters = _trial_groups(objective.set_size)
    name = f"objective {getattr(objective, '__name__', None) or repr(objective)}"
    order = np.random.default_rng(1).permuted(np.tile(np.arange(objective.set_size), (_NUM_TRIALS, 1)), axis=1)
    twice = (np.concatenate([array, np.take_along_axis(array, order, axis=1)]) for array in (rewards, clusters))
    results = _tried(name, objective, *twice)
    if results.shape != (2 * _NUM_TRIALS,):
        raise ValueError(
            f"{name} must return a scalar for a set's rewards and cluster ids, each of shape [{objective.set_size}], "
            f"got shape {list(results.shape[1:])}"
        )
    values, others = np.split(results, 2)

    def example(trial):
        return f"rewards {_listed(rewards[trial])} and cluster ids {clusters[trial].tolist()}"

    if not np.all(np.isfinite(values)):
        trial = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"{name} must be finite, got {values[trial]} for {example(trial)}")
    if not np.all(_same(values, others)):
        trial = int(np.argmin(_same(values, others)))
        raise ValueError(
            f"{name} must not depend on the order of a set's members (a set has none), got {values[trial]:.6g} for "
            f"{example(trial)}, and {others[trial]:.6g} when they are taken in the order {order[trial].tolist()}"
        )
    if conditional_means_of(objective) is not None:
        # In groups as large as those of the run, or as can be enumerated.
        while math.comb(num_generations, objective.set_size) > _MAX_SETS:
            num_generations -= 1
        _check_closed_form(objective, num_generations)


def _check_closed_form(objective: Any, num_generations: int) -> None:
    rewards, clusters = _trial_groups(num_generations)
    valid = np.ones(rewards.shape, bool)
    valid[::4, 0] = False
    sets_SM = all_sets(num_generations, objective.set_size)

    def both(rewards_N, clusters_N, valid_N):
        group = objective, rewards_N, clusters_N
        results = []
        for chosen in (None, sets_SM):
            advantages_N = marginal_advantages(*group, valid_N=valid_N, sets_SM=chosen)
            mean = mean_over_sets(*group, valid_N=valid_N, sets_SM=chosen)
            results.append(jnp.append(advantages_N, mean))
        return jnp.stack(results)

    name = f"conditional_means of objective {objective!r}"
    closed_form, enumerated = np.moveaxis(_tried(name, both, rewards, clusters, valid), 1, 0)
    if not np.all(_same(closed_form, enumerated)):
        trial, _ = np.unravel_index(np.argmax(np.abs(closed_form - enumerated)), closed_form.shape)
        raise ValueError(
            f"{name} are not its means over all sets: for rewards {_listed(rewards[trial])}, cluster ids "
            f"{clusters[trial].tolist()} and valid {valid[trial].tolist()} they give advantages "
            f"and E[f] {_listed(closed_form[trial])}, enumeration gives {_listed(enumerated[trial])}"
        )


@functools.lru_cache(maxsize=64)
def check_advantage(advantage: Any, num_generations: int) -> None:
    """Tries an advantage on random groups, and first the objective in it; once a process for equal arguments.

    Raises:
      ValueError: it raises, does not return one number a generation, or numbers that are not finite; or as of
        `check_objective`.
    """
    if hasattr(advantage, "check"):
        advantage.check(num_generations)
    if isinstance(advantage, SetAdvantage):
        check_objective(advantage.objective, num_generations)
    rewards, clusters = _trial_groups(num_generations)
    valid = np.ones(rewards.shape, bool)
    valid[::4, 0] = False
    valid[4] = False
    keys = jax.random.split(jax.random.key(0), _NUM_TRIALS)
    name = f"advantage {advantage!r}"
    values = _tried(name, advantage, keys, rewards, clusters, valid)
    if values.shape != rewards.shape:
        raise ValueError(
            f"{name} must return one number for each of the {num_generations} generations of a prompt, "
            f"shape [{num_generations}], got shape {list(values.shape[1:])}"
        )
    if not np.all(np.isfinite(values) | ~valid):
        trial = int(np.argmax(np.any(~np.isfinite(values) & valid, axis=1)))
        raise ValueError(
            f"{name} must be finite, got {_listed(values[trial])} for rewards {np.round(rewards[trial], 3).tolist()}, "
            f"cluster ids {clusters[trial].tolist()} and valid {valid[trial].tolist()}"
        )
