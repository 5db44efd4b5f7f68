"""A model is named once: what a config leaves to the directory that it starts from is read there."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyepo_jax.config.files import AnyConfig
from polyepo_jax.errors import InputError
from polyepo_jax.model import ModelConfig, ModelNumerics
from polyepo_jax.pods import object_storage
from polyepo_jax.runs import model_directory, run_directory


def resolve(config: AnyConfig, begun: Path | None = None) -> AnyConfig:
    """The config with the model's shape, and the directory of the task's tokenizer, where it leaves them open.

    Both are those of init.model_dir, or of the run in init.run_dir; with neither, the shape is that of the directory
    of the task's tokenizer. What the config states stays as it is.

    Args:
      begun: the run directory, if this is of a run. One that has begun goes on as it did when these are gone by now.

    Raises:
      InputError: nothing says where they are, or what is there cannot be read.
    """
    try:
        config = _with_tokenizer(config, _tokenizer_dir)
        return _with_shape(config, _shape)
    except InputError:
        if begun is None or not (begun / "config.json").is_file():
            raise
        run = run_directory.read_config(begun)
        config = _with_tokenizer(config, lambda _: getattr(run.task, "tokenizer_dir", None))
        return _with_shape(config, lambda _: run.model)


def _with_tokenizer(config: AnyConfig, directory_of: Callable[[AnyConfig], str | None]) -> AnyConfig:
    if getattr(config.task, "tokenizer_dir", "") is not None:
        return config
    return dataclasses.replace(config, task=dataclasses.replace(config.task, tokenizer_dir=directory_of(config)))


def _with_shape(config: AnyConfig, shape_of: Callable[[AnyConfig], ModelConfig]) -> AnyConfig:
    if isinstance(config.model, ModelConfig):
        return config
    try:
        model = dataclasses.replace(shape_of(config), **_fields(config.model))
        return dataclasses.replace(config, model=model)
    except ValueError as error:
        raise InputError(str(error)) from error


def _fields(config: ModelNumerics) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _tokenizer_dir(config: AnyConfig) -> str:
    directory = config.init.model_dir
    if config.init.run_dir is not None:
        directory = getattr(_initial_run(config).task, "tokenizer_dir", None)
    if directory is None:
        raise InputError(
            "task.tokenizer_dir is not set, and nothing else says whose tokenizer it is: set it, or init.model_dir"
        )
    return directory


def _shape(config: AnyConfig) -> ModelConfig:
    if config.init.run_dir is not None:
        return _initial_run(config).model
    directory = config.init.model_dir or getattr(config.task.tokenizer, "directory", None)
    if directory is None:
        raise InputError(
            "model has no shape: set it to a ModelConfig, or init.model_dir to a directory that has the model"
        )
    return model_directory.read_shape(Path(directory))


def _initial_run(config: AnyConfig) -> Any:
    return run_directory.read_config(object_storage.working_copy(Path(str(config.init.run_dir))))
