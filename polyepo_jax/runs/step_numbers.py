"""The numbers of an update that is still being computed, and what they become in metrics.jsonl."""

import dataclasses
import math
import resource
import time
from collections.abc import Mapping

import jax

_NAMES = {
    "loss": "loss/policy",
    "supervised": "loss/supervised",
    "grad_norm": "loss/grad_norm",
    "learning_rate": "optimizer/learning_rate",
    "clip_frac": "loss/clip_frac",
    "ratio_mean": "loss/ratio_mean",
    "ratio_max": "loss/ratio_max",
    "importance_capped_frac": "loss/importance_capped_frac",
    "effective_sample_size": "policy/effective_sample_size",
    "kl": "loss/kl",
    "start_kl": "kl/start",
    "nonfinite": "loss/nonfinite_updates",
    "sampler_gap": "logprobs/sampler_gap",
}


@dataclasses.dataclass(frozen=True)
class Deferred:
    """A dispatched step whose numbers are still on the devices.

    step: updates done after it.
    stats: from `train_step` and `kl_to_start`, still being computed.
    metrics: known on the host already.
    dispatched_at: time.perf_counter() then.
    """

    step: int
    stats: Mapping[str, jax.Array]
    metrics: dict[str, float]
    dispatched_at: float


@dataclasses.dataclass(frozen=True)
class Settled:
    """The same step once it is computed.

    metrics: all of it, by their names in metrics.jsonl.
    step_s: seconds that it took. at: time.perf_counter() when it was complete.
    nonfinite_in_a_row: updates skipped for a NaN or infinity, up to and with this step.
    """

    metrics: dict[str, float]
    step_s: float
    at: float
    nonfinite_in_a_row: int


def settle(deferred: Deferred, settled_at: float, aside_s: float) -> Settled:
    """Waits for a step.

    Args:
      settled_at: of the step before, as of `Settled.at`.
      aside_s: seconds since then that went into saving and evaluating, which is no part of a step.
    """
    waits = time.perf_counter()
    stats = {name: float(value) for name, value in jax.device_get(deferred.stats).items()}
    now = time.perf_counter()
    step_s, update_s = now - settled_at - aside_s, now - deferred.dispatched_at
    # What the host spends on anything but waiting for the devices counts against them, even where they work on.
    waited = now - waits + deferred.metrics.get("time/rollout_wait_s", 0.0)
    times = {
        "time/step_s": step_s,
        "time/update_s": update_s,
        "time/rollout_update_frac": waited / step_s,
        "throughput/train_tokens_per_s": stats.pop("tokens") / update_s,
    }
    nonfinite_in_a_row = int(stats.pop("nonfinite_in_a_row"))
    named = {_NAMES[name]: value for name, value in stats.items()}
    return Settled(deferred.metrics | named | times | _memory(), step_s, now, nonfinite_in_a_row)


def _memory() -> dict[str, float]:
    """Peaks of this process and of its first device, bytes."""
    host = {"memory/host_peak_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)}
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use", math.nan)
    return host if math.isnan(peak) else host | {"memory/device_peak_bytes": float(peak)}
