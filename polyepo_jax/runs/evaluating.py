"""Evaluation on the validation split, in the course of a training run."""

import time
from collections.abc import Callable
from typing import Any

from polyepo_jax.config import Config, RunConfig
from polyepo_jax.config.static_arguments import evaluation_spec, stream
from polyepo_jax.evaluation import sample, summarize
from polyepo_jax.runs.preparation import Prepared


def is_due(config: RunConfig, step: int) -> bool:
    """Whether an evaluation follows this step."""
    return config.eval_interval_steps > 0 and step % config.eval_interval_steps == 0


def evaluate(
    prepared: Prepared, params: Any, stop_requested: Callable[[], bool], say: Callable[[str], None]
) -> dict[str, float]:
    """Metrics `eval/*` of the validation split, with `time/eval_s`; only the latter where none could be graded.

    Raises:
      Interrupted: the run is asked to end.
    """
    start, config = time.perf_counter(), prepared.config
    samples = sample(
        evaluation_spec(config, config.evaluation.num_samples, config.sampler()),
        params,
        config.task,
        prepared.validation,
        config.max_prompt_length,
        _rows(config),
        stream(config.seed, "evaluation"),
        prepared.mesh,
        stop_requested,
    )
    described, failures = samples.descriptions()
    if failures:
        say(f"evaluation: {len(failures)} grading calls failed; first: {failures[0]}")
    if not described:
        return {"time/eval_s": time.perf_counter() - start}
    summary = summarize(described, with_intervals=False)
    flat = {f"eval/pass_at_{k}": value for k, value in summary["pass_at_k"].items()}
    for name in ("coverage", "distinct", "distinct_correct", "degenerate_frac", "truncated_frac"):
        flat[f"eval/{name}"] = summary[name]
    return flat | {"time/eval_s": time.perf_counter() - start}


def _rows(config: RunConfig) -> int:
    """Rows of a wave: no more than training samples, for the same state lies beside them."""
    evaluation = config.evaluation
    most = config.sampling.max_rows if isinstance(config, Config) else evaluation.max_rows
    return max(min(evaluation.max_rows, most), evaluation.num_samples)
