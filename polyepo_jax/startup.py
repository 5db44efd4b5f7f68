"""What a command needs before it starts: admissible problems, a mesh, parameters, streams of random numbers."""

import dataclasses
import sys
import zlib
from pathlib import Path
from typing import Any

import jax

from polyepo_jax import data, run_directory
from polyepo_jax.checkpoint import CheckpointError, Checkpoints
from polyepo_jax.config import RunConfig
from polyepo_jax.errors import InputError
from polyepo_jax.model import init, logical_axes
from polyepo_jax.sampling import GenerationSpec, Sampling
from polyepo_jax.sharding import Mesh, check_divides, make_mesh, param_shardings
from polyepo_jax.tasks import Problem, Split


def admitted(config: RunConfig, split: Split) -> tuple[Problem, ...]:
    """The problems of a split whose prompts fit.

    Raises:
      InputError: as of `data.admit`.
    """
    try:
        problems = config.task.problems(split)
        return data.admit(problems, config.task.tokenizer, config.max_prompt_length, config.long_prompts)
    except ValueError as error:
        raise InputError(str(error)) from error


def mesh_of(config: RunConfig) -> Mesh:
    """The mesh over all devices.

    Raises:
      InputError: it does not fit them, or does not divide the model.
    """
    try:
        mesh = make_mesh(config.mesh)
        check_divides(mesh, jax.eval_shape(lambda: init(config.model, jax.random.key(0))), logical_axes(config.model))
    except ValueError as error:
        raise InputError(str(error)) from error
    return mesh


def load_params(directory: Path, config: RunConfig, mesh: Mesh, step: int | None = None) -> tuple[Any, int]:
    """The params of a run directory's newest readable checkpoint (or that of `step`), for `config.model`.

    Returns:
      The params, placed on the mesh, and their step.

    Raises:
      InputError: no such checkpoint, one of another model, or only damaged ones.
    """
    theirs = run_directory.read_config(directory).model
    if not (directory / "checkpoints").is_dir():
        raise InputError(f"{directory} has no checkpoints: train it first, or give another run directory")
    free = {"dtype", "remat"}  # how it is computed may differ, the arrays may not
    differing = [
        f"{f.name} {getattr(theirs, f.name)!r}, not {getattr(config.model, f.name)!r}"
        for f in dataclasses.fields(theirs)
        if f.name not in free and getattr(theirs, f.name) != getattr(config.model, f.name)
    ]
    if differing:
        raise InputError(
            f"the checkpoint in {directory} is of another model: it has {'; '.join(differing)}; set model.* to match"
        )
    abstract = jax.eval_shape(lambda: init(config.model, jax.random.key(0)))
    checkpoints = Checkpoints(directory, read_only=True)
    try:
        shardings = param_shardings(mesh, logical_axes(config.model))
        return checkpoints.restore_params(abstract, shardings, warn_on_stderr, step)
    except CheckpointError as error:
        raise InputError(str(error)) from error
    finally:
        checkpoints.close()


def warn_on_stderr(line: str) -> None:
    """For what must be seen before there is a progress line."""
    print(line, file=sys.stderr)


def stream(seed: int, name: str) -> jax.Array:
    """The root key of one independent stream of random numbers.

    A step's key is fold_in(root, step), and fold_in(key, i) is the i-th key of split(key): streams that shared a
    root would share keys.
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def evaluation_spec(config: RunConfig, num_samples: int, sampling: Sampling) -> GenerationSpec:
    """How held-out problems are sampled."""
    return GenerationSpec(
        model=config.model,
        num_generations=num_samples,
        max_completion_length=config.max_completion_length,
        stop_ids=config.task.tokenizer.stop_ids,
        pad_id=config.task.tokenizer.pad_id,
        sampling=sampling,
    )
