"""One mesh, and where arrays lie on it.

Parameters carry logical axis names (MaxText's words); one table maps them to the mesh axes `data`, `fsdp` and
`tensor`. Everything beneath is jax.jit with NamedSharding.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polyepo_jax.types import Array

AXES = ("data", "fsdp", "tensor")

# Which mesh axis a logical axis is cut over; the rest is replicated.
RULES = {"embed": "fsdp", "vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}

# Rows of a batch are cut over both of these.
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1, for at most one of them, takes what the others leave.

    data: batches are cut, parameters copied. fsdp: both are cut. tensor: matrices are cut along heads and mlp.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = self.data, self.fsdp, self.tensor
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(f"mesh axes must be at least 1, and at most one of them -1 (the rest), got {sizes}")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config` over `devices` (None: all).

    Raises:
      ValueError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    fixed = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise ValueError(
            f"mesh data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} does not fit the {len(devices)} "
            "devices there are: the axes must multiply to that number"
        )
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def param_sharding(mesh: Mesh, logical_axes: tuple[str, ...]) -> NamedSharding:
    """Where a parameter with these logical axes lies."""
    return NamedSharding(mesh, PartitionSpec(*(RULES.get(axis) for axis in logical_axes)))


def param_shardings(mesh: Mesh, logical_axes):
    """`param_sharding` of every leaf of a tree of logical axes."""
    return jax.tree.map(lambda axes: param_sharding(mesh, axes), logical_axes, is_leaf=lambda x: isinstance(x, tuple))


def check_divides(mesh: Mesh, params, logical_axes) -> None:
    """Raises ValueError, naming an axis, unless the mesh cuts every parameter into equal parts."""

    def check(param, names):
        for size, name in zip(param.shape, names, strict=True):
            mesh_axis = RULES.get(name)
            if mesh_axis and size % mesh.shape[mesh_axis]:
                raise ValueError(
                    f"mesh.{mesh_axis} = {mesh.shape[mesh_axis]} does not divide the model's {name} = {size}: choose a "
                    "divisor of it"
                )

    jax.tree.map(check, params, logical_axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """Cut along the leading axis, over all batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def shard_rows(mesh: Mesh, tree):
    """Host arrays, cut along their leading axis; copied where that axis does not divide evenly."""
    num_shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)

    def put(x) -> Array:
        return jax.device_put(x, rows(mesh) if x.shape[0] % num_shards == 0 else replicated(mesh))

    return jax.tree.map(put, tree)
