"""What a command needs before it starts: admissible problems, a mesh, parameters, streams of random numbers."""

import functools
import math
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from polyepo_jax import data, distributed, model_directory, remote, run_directory
from polyepo_jax.checkpoint import CheckpointError, Checkpoints
from polyepo_jax.config import Config, RunConfig, SFTConfig
from polyepo_jax.errors import InputError
from polyepo_jax.grading import JudgeConfig
from polyepo_jax.model import ModelConfig, init, logical_axes
from polyepo_jax.sampling import GenerationSpec, Sampling, own_prompts, prompts_per_wave
from polyepo_jax.sharding import (
    AXES,
    AbstractMesh,
    Mesh,
    MeshConfig,
    check_divides,
    local_rows,
    make_mesh,
    mesh_sizes,
    param_shardings,
    row_sharding,
)
from polyepo_jax.tasks import Problem, Split
from polyepo_jax.tokenizer import Tokenizer
from polyepo_jax.update import UpdateSpec


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


@functools.lru_cache(maxsize=64)
def abstract_params(model: ModelConfig) -> Any:
    """Shapes and dtypes of a model's parameters. One tree for all callers: not to be changed."""
    return jax.eval_shape(lambda: init(model, jax.random.key(0)))


def update_rows(config: RunConfig) -> tuple[str, int]:
    """The rows whose activations are held at a time, and the key that says so."""
    if isinstance(config, SFTConfig):
        return (
            ("prompts_per_step", config.prompts_per_step)
            if config.micro_batch_size is None
            else ("micro_batch_size", config.micro_batch_size)
        )
    assert isinstance(config, Config)
    if config.algorithm.micro_batch_size is not None:
        return "algorithm.micro_batch_size", config.algorithm.micro_batch_size
    prompts = config.algorithm.mini_batch_size or config.prompts_per_step
    return "the generations of a mini-batch", prompts * config.num_generations


def why_not(config: RunConfig, sizes: tuple[int, int, int]) -> str | None:
    """Why a mesh of these sizes (data, fsdp, tensor) cannot train the config; None if it can."""
    mesh = AbstractMesh(sizes, AXES)
    try:
        check_divides(mesh, abstract_params(config.model), logical_axes(config.model))
    except ValueError as error:
        return str(error)
    num_shards = sizes[0] * sizes[1]
    name, rows = update_rows(config)
    if rows % num_shards:
        return (
            f"mesh.data * mesh.fsdp = {num_shards} does not divide {name} = {rows} rows (the next that it divides: "
            f"{-(-rows // num_shards) * num_shards})"
        )
    if isinstance(config, Config):
        prompts, generations = config.prompts_per_step, config.num_generations
        wave = prompts_per_wave(prompts, generations, config.sampling.max_rows, num_shards) * generations
        if wave % num_shards:
            return (
                f"mesh.data * mesh.fsdp = {num_shards} does not divide the rows of a wave, {wave} "
                f"(sampling.max_rows = {config.sampling.max_rows}, num_generations = {generations})"
            )
    return None


def nearest_meshes(config: RunConfig, num_devices: int, count: int = 3) -> list[tuple[int, int, int]]:
    """Sizes (data, fsdp, tensor) of meshes that can train the config, those most like the config's first."""
    wanted = config.mesh.data, config.mesh.fsdp, config.mesh.tensor

    def distance(sizes: tuple[int, int, int]) -> float:
        return sum(abs(math.log(size / want)) for size, want in zip(sizes, wanted, strict=True) if want != -1)

    divisors = [size for size in range(1, num_devices + 1) if num_devices % size == 0]
    candidates = [
        (num_devices // (fsdp * tensor), fsdp, tensor)
        for fsdp in divisors
        for tensor in divisors
        if num_devices % (fsdp * tensor) == 0
    ]
    return [sizes for sizes in sorted(candidates, key=distance) if why_not(config, sizes) is None][:count]


def checked_mesh(config: RunConfig, num_devices: int) -> tuple[int, int, int]:
    """The sizes (data, fsdp, tensor) of the config's mesh over so many devices, if it can train the config.

    Raises:
      InputError: with the numbers, and the nearest meshes that can.
    """
    try:
        sizes = mesh_sizes(config.mesh, num_devices)
        reason = why_not(config, sizes)
    except ValueError as error:
        reason = str(error)
    if reason is None:
        return sizes
    others = [f"data={d} fsdp={f} tensor={t}" for d, f, t in nearest_meshes(config, num_devices)]
    advice = (
        f"meshes of {num_devices} devices that do: {'; '.join(others)}"
        if others
        else (f"no mesh of {num_devices} devices does: choose other numbers of heads, rows or devices")
    )
    raise InputError(f"{reason}; {advice}")


def mesh_of(config: RunConfig) -> Mesh:
    """The mesh over all devices.

    Raises:
      InputError: it does not fit them, or does not divide the model or the rows of an update.
    """
    platform, kernel = jax.devices()[0].platform, config.model.attention
    if {"splash": "tpu", "cudnn": "gpu"}.get(kernel, platform) != platform:
        raise InputError(f"model.attention = {kernel!r} does not run on {platform}: leave it at 'auto'")
    checked_mesh(config, len(jax.devices()))
    return make_mesh(config.mesh)


def prompts_to_tokenize(config: RunConfig, mesh: Mesh) -> np.ndarray:
    """Which prompts of a step's batch this process needs for its devices, bool[P]."""
    if isinstance(config, Config):
        return own_prompts(config.prompts_per_step, config.num_generations, config.sampling.max_rows, mesh)
    return local_rows(row_sharding(mesh, config.prompts_per_step), config.prompts_per_step)


def mesh_to_sample(config: RunConfig) -> Mesh:
    """A mesh over all devices to hold and sample the model: the config's, or one that cuts the parameters at least.

    What a training step asks of a mesh plays no part, and the devices may be others than those of training.
    """
    params, axes = abstract_params(config.model), logical_axes(config.model)
    for mesh_config in (config.mesh, MeshConfig(data=1, fsdp=-1)):
        try:
            mesh = make_mesh(mesh_config)
            check_divides(mesh, params, axes)
        except ValueError:
            continue
        return mesh
    return make_mesh(MeshConfig())


def load_params(directory: Path, config: RunConfig, mesh: Mesh, step: int | None = None) -> tuple[Any, int]:
    """The params of a run directory's newest readable checkpoint (or that of `step`), for `config.model`.

    Returns:
      The params, placed on the mesh, and their step.

    Raises:
      InputError: no such checkpoint, one of another model, or only damaged ones.
    """
    directory = remote.working_copy(directory)
    run = run_directory.read_config(directory)
    if not (remote.home(directory) / "checkpoints").is_dir():
        raise InputError(f"{directory} has no checkpoints: train it first, or give another run directory")
    model_directory.check_same(f"the checkpoint in {directory}", run.model, config.model)
    abstract = abstract_params(config.model)
    checkpoints = Checkpoints(remote.home(directory), read_only=True)
    try:
        shardings = param_shardings(mesh, logical_axes(config.model))
        warn = warn_on_stderr if distributed.is_primary() else lambda line: None
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


def warn_on_stderr(line: str) -> None:
    """For what must be seen before there is a progress line."""
    print(line, file=sys.stderr)


def stream(seed: int, name: str) -> jax.Array:
    """The root key of one independent stream of random numbers.

    A step's key is fold_in(root, step), and fold_in(key, i) is the i-th key of split(key): streams that shared a
    root would share keys.
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def generation_spec(config: Config, tokenizer: Tokenizer | None = None) -> GenerationSpec:
    """What each step samples; with the task's tokenizer, unless another is given."""
    tokenizer = config.task.tokenizer if tokenizer is None else tokenizer
    return GenerationSpec(
        model=config.model,
        num_generations=config.num_generations,
        max_completion_length=config.max_completion_length,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        sampling=config.sampler(),
        gather_weights=config.sampling.gather_weights,
    )


def update_spec(config: Config) -> UpdateSpec:
    """What each step updates."""
    algorithm = config.algorithm
    mini_batch = algorithm.mini_batch_size
    return UpdateSpec(
        model=config.model,
        loss=algorithm.loss,
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        prompt_length=config.max_prompt_length,
        sampling=config.sampler(),
        num_iterations=algorithm.num_iterations,
        mini_batch_rows=None if mini_batch is None else mini_batch * config.num_generations,
        micro_batch_rows=algorithm.micro_batch_size,
        skip_zero_advantage=algorithm.skip_zero_advantage,
    )


def evaluation_spec(config: RunConfig, num_samples: int, sampling: Sampling) -> GenerationSpec:
    """How held-out problems are sampled."""
    return GenerationSpec(
        model=config.model,
        num_generations=num_samples,
        max_completion_length=config.max_completion_length,
        stop_ids=config.task.tokenizer.stop_ids,
        pad_id=config.task.tokenizer.pad_id,
        sampling=sampling,
        gather_weights=config.sampling.gather_weights if isinstance(config, Config) else True,
    )
