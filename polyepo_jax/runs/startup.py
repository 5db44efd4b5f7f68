"""What a command needs before it starts, checked: admissible problems, parameters, a judge that can work."""

from pathlib import Path
from typing import Any

from polyepo_jax.config import RunConfig
from polyepo_jax.config.meshes import abstract_params
from polyepo_jax.errors import InputError, warn_on_stderr
from polyepo_jax.grading import JudgeConfig
from polyepo_jax.model import logical_axes
from polyepo_jax.pods import object_storage, processes
from polyepo_jax.runs import model_directory, run_directory
from polyepo_jax.runs.checkpoint import CheckpointError, Checkpoints
from polyepo_jax.sharding import (
    Mesh,
    param_shardings,
)
from polyepo_jax.tasks import Problem, Split
from polyepo_jax.training import data


def admitted(config: RunConfig, split: Split) -> tuple[Problem, ...]:
    """The problems of a split whose prompts fit.

    Raises:
      InputError: as of `data.admit`.
    """
    try:
        _check_tokenizer(config)
        problems = config.task.problems(split)
        return data.admit(problems, config.task.tokenizer, config.max_prompt_length, config.long_prompts)
    except ValueError as error:
        raise InputError(str(error)) from error


def _check_tokenizer(config: RunConfig) -> None:
    """Reads the tokenizer's files, if it has any, before anything else does.

    Raises:
      ValueError: they are not what they should be, or have ids for which the model has no embedding.
    """
    tokenizer = config.task.tokenizer
    largest = max(tokenizer.vocab_size - 1, tokenizer.pad_id, *tokenizer.stop_ids)
    if largest >= config.model.vocab_size:
        raise ValueError(
            f"the tokenizer's largest id is {largest}, but the model's embedding has model.vocab_size = "
            f"{config.model.vocab_size} rows: this is another model's tokenizer"
        )


def load_params(directory: Path, config: RunConfig, mesh: Mesh, step: int | None = None) -> tuple[Any, int]:
    """The params of a run directory's newest readable checkpoint (or that of `step`), for `config.model`.

    Returns:
      The params, placed on the mesh, and their step.

    Raises:
      InputError: no such checkpoint, one of another model, or only damaged ones.
    """
    directory = object_storage.working_copy(directory)
    run = run_directory.read_config(directory)
    if not (object_storage.home(directory) / "checkpoints").is_dir():
        raise InputError(f"{directory} has no checkpoints: train it first, or give another run directory")
    model_directory.check_same(f"the checkpoint in {directory}", run.model, config.model)
    abstract = abstract_params(config.model)
    checkpoints = Checkpoints(object_storage.home(directory), read_only=True)
    try:
        shardings = param_shardings(mesh, logical_axes(config.model))
        warn = warn_on_stderr if processes.is_primary() else lambda line: None
        return checkpoints.restore_params(abstract, shardings, warn, step)
    except CheckpointError as error:
        raise InputError(str(error)) from error
    finally:
        checkpoints.close()


def check_judge(judge: JudgeConfig, num_responses: int) -> None:
    """Raises InputError where a judge that can tell beforehand could not work."""
    check = getattr(judge.clusterer, "check", None)
    if check is not None:
        try:
            check(num_responses)
        except ValueError as error:
            raise InputError(f"judge.clusterer: {error}") from error
