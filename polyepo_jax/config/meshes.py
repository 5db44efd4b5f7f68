"""Which meshes can train, or sample, the model of a config."""

import functools
import math
from typing import Any

import jax
import numpy as np

from polyepo_jax.config.sections import Config, RunConfig, SFTConfig
from polyepo_jax.errors import InputError
from polyepo_jax.model import ModelConfig, init, logical_axes
from polyepo_jax.sampling import own_prompts
from polyepo_jax.sharding import (
    AXES,
    AbstractMesh,
    Mesh,
    MeshConfig,
    check_divides,
    local_rows,
    make_mesh,
    mesh_sizes,
    row_sharding,
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
        return own_prompts(config.prompts_per_step, config.num_generations, mesh)
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
