"""Samples a run's newest checkpoint on held-out problems: python -m polyepo_jax.evaluate --run-dir DIR

Writes DIR/eval.json: pass@k, majority@k, and how many different (correct) answers there are among the samples.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import rich.console
import rich.table

from polyepo_jax import run_directory
from polyepo_jax.command_line import parse_command_line
from polyepo_jax.errors import InputError, RunError, run_command
from polyepo_jax.evaluation import sample
from polyepo_jax.sharding import MeshConfig, make_mesh
from polyepo_jax.startup import admitted, evaluation_spec, load_params, mesh_of, stream, warn_on_stderr


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Sample a checkpoint on held-out problems and write eval.json.

    Attributes:
      run_dir: run directory; its newest checkpoint is evaluated.
      checkpoint_step: another checkpoint than the newest.
      split: problems to sample; "test" writes eval.json, "validation" eval_validation.json.
      num_samples: generations of each problem; as the run's config says if not given.
      num_prompts: problems of the split; as the run's config says if not given.
      temperature: as in training if not given; 0 is greedy.
      top_k: as in training if not given; 0 keeps all tokens.
      top_p: as in training if not given; 1 keeps all tokens.
      seed: of the samples; the run's if not given.
    """

    run_dir: Path
    checkpoint_step: int | None = None
    split: Literal["test", "validation"] = "test"
    num_samples: int | None = None
    num_prompts: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None


def main(arguments: Sequence[str]) -> None:
    """The command."""
    options = parse_command_line(Arguments, arguments, "python -m polyepo_jax.evaluate")
    directory = options.run_dir
    config = run_directory.read_config(directory)
    defaults = config.evaluation
    default_prompts = defaults.num_prompts if options.split == "test" else defaults.num_validation_prompts
    num_samples = defaults.num_samples if options.num_samples is None else options.num_samples
    num_prompts = default_prompts if options.num_prompts is None else options.num_prompts
    try:
        evaluation = dataclasses.replace(
            defaults,
            num_samples=num_samples,
            num_prompts=num_prompts,
            max_rows=max(defaults.max_rows, num_samples),
        )
        given = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p")}
        sampler = dataclasses.replace(config.sampler(), **{k: v for k, v in given.items() if v is not None})
        spec = evaluation_spec(config, num_samples, sampler)
    except ValueError as error:
        raise InputError(str(error)) from error
    if not os.access(directory, os.W_OK):
        raise InputError(f"{directory} cannot be written: no permission")
    try:
        mesh = mesh_of(config)
    except InputError:  # trained on other devices than there are here
        mesh = make_mesh(MeshConfig())
    problems = admitted(config, options.split)[:num_prompts]
    params, step = load_params(directory, config, mesh, options.checkpoint_step)
    key = stream(config.seed if options.seed is None else options.seed, "evaluation")
    samples = sample(spec, params, config.task, problems, config.max_prompt_length, evaluation.max_rows, key, mesh)
    summary = samples.summary()
    if samples.failures:
        said = f"{len(samples.failures)} grading calls failed (first: {samples.failures[0]})"
        if summary is None:
            raise RunError(f"{said}: no problem could be graded, so nothing was written")
        warn_on_stderr(f"{said}: {len(problems) - summary['num_prompts']} problems are left out")
    assert summary is not None
    result = {"checkpoint_step": step, "num_samples": num_samples, "benchmarks": {config.task.name: summary}}
    path = directory / ("eval.json" if options.split == "test" else "eval_validation.json")
    run_directory.write_json(path, result)
    _print(directory, step, num_samples, config.task.name, summary)


def _print(directory: Path, step: int, num_samples: int, name: str, summary: dict) -> None:
    table = rich.table.Table(
        title=f"{directory}, step {step}: {name}, {summary['num_prompts']} prompts x {num_samples} samples"
    )
    columns = {f"pass@{k}": value for k, value in summary["pass_at_k"].items() if k in ("1", "8", str(num_samples))}
    columns |= {"distinct": summary["distinct"], "distinct correct": summary["distinct_correct"]}
    for column in columns:
        table.add_column(column, justify="right")
    table.add_row(*(f"{value:.3f}" for value in columns.values()))
    rich.console.Console().print(table)


if __name__ == "__main__":
    run_command(main)
