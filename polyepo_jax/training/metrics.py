"""What the rollouts of a step look like, in numbers."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from polyepo_jax.sets import SIGNAL_THRESHOLD, has_signal
from polyepo_jax.types import DEGENERATE, Grades, Rollouts


def _mean(values: np.ndarray) -> float:
    """The mean, NaN (null in files) of nothing."""
    return float(np.mean(values)) if values.size else math.nan


def _num_distinct(clusters_N: np.ndarray) -> int:
    return len(set(clusters_N.tolist()) - {DEGENERATE})


def _effective_number(clusters_N: np.ndarray) -> float:
    """exp of the entropy of the shares of the non-degenerate clusters (Hill number of order 1); 0 if there is none."""
    _, counts = np.unique(clusters_N[clusters_N != DEGENERATE], return_counts=True)
    shares = counts / counts.sum()
    return float(np.exp(-np.sum(shares * np.log(shares)))) if counts.size else 0.0


def _group_quantiles(rewards_PN: np.ndarray, valid_PN: np.ndarray) -> dict[str, float]:
    """Of the mean rewards of groups with a valid generation; between two of them by linear interpolation."""
    means = [r[v].mean(dtype=np.float64) for r, v in zip(rewards_PN, valid_PN, strict=True) if v.any()]
    names = ("min", "q25", "median", "q75", "max")
    values = np.quantile(means, np.linspace(0, 1, len(names))).tolist() if means else [math.nan] * len(names)
    return {f"rewards/group_{name}": value for name, value in zip(names, values, strict=True)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Completions:
    """What the metrics need to know of the generations of P prompts; NumPy arrays.

    lengths_PN: tokens, the end token included. logprobs_PN: of all of a generation's tokens together, as sampled, nats.
    truncated_PN: cut at the length limit.
    """

    lengths_PN: np.ndarray
    logprobs_PN: np.ndarray
    truncated_PN: np.ndarray


def completions_of(rollouts: Rollouts) -> Completions:
    """Of rollouts on the host."""
    mask_PNT = np.asarray(rollouts.completion_mask_PNT)
    logprobs_PNT = np.asarray(rollouts.sampler_logprobs_PNT, np.float64)
    return Completions(
        mask_PNT.sum(axis=2), np.sum(logprobs_PNT, axis=2, where=mask_PNT), np.asarray(rollouts.truncated_PN)
    )


def join(parts: Sequence[Completions]) -> Completions:
    """Those of successive prompts in one."""
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def rollout_metrics(completions: Completions, grades: Grades, advantages_PN: np.ndarray) -> dict[str, float]:
    """What the rollouts of a step look like; arrays on the host. Invalid generations are left out.

    `clusters/*` count different non-degenerate clusters among a prompt's N generations, means over prompts;
    `clusters/effective` counts them by their shares: as many clusters of equal size have the same entropy.
    `advantages/nonzero_frac` is the share of groups that carry signal, `rewards/all_correct_frac` that of groups whose
    generations are all correct, `advantages/positive_frac_*` the share of positive ones among such generations.
    `rewards/group_min` to `group_max` are the quantiles 0, 1/4, 1/2, 3/4 and 1 of the groups' mean rewards.
    `completions/entropy` is the mean of -logprob of the sampled tokens, an unbiased estimate of the entropy of
    the sampled distribution, nats a token.
    """
    rewards_PN, clusters_PN, valid_PN = map(np.asarray, (grades.rewards_PN, grades.clusters_PN, grades.valid_PN))
    num_tokens = int(np.sum(completions.lengths_PN))
    correct_PN = (rewards_PN > 0) & valid_PN
    incorrect_PN = (rewards_PN <= 0) & valid_PN
    groups = list(zip(clusters_PN, valid_PN, correct_PN, strict=True))
    all_correct_P = np.all(correct_PN | ~valid_PN, axis=1) & valid_PN.any(axis=1)
    return {
        "rewards/mean": _mean(rewards_PN[valid_PN]),
        **_group_quantiles(rewards_PN, valid_PN),
        "rewards/all_correct_frac": _mean(all_correct_P),
        "coverage": _mean(correct_PN.any(axis=1)),
        "clusters/distinct": _mean(np.array([_num_distinct(c[v]) for c, v, _ in groups])),
        "clusters/distinct_correct": _mean(np.array([_num_distinct(c[r]) for c, _, r in groups])),
        "clusters/effective": _mean(np.array([_effective_number(c[v]) for c, v, _ in groups])),
        "clusters/degenerate_frac": _mean(clusters_PN[valid_PN] == DEGENERATE),
        "advantages/nonzero_frac": _mean(has_signal(advantages_PN)),
        "advantages/positive_frac_correct": _mean(advantages_PN[correct_PN] >= SIGNAL_THRESHOLD),
        "advantages/positive_frac_incorrect": _mean(advantages_PN[incorrect_PN] >= SIGNAL_THRESHOLD),
        "completions/mean_length": _mean(completions.lengths_PN),
        "completions/truncated_frac": _mean(completions.truncated_PN),
        "completions/entropy": -float(np.sum(completions.logprobs_PN)) / num_tokens if num_tokens else math.nan,
    }
