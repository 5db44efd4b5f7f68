"""One mesh, and where arrays lie on it.

Parameters carry logical axis names (MaxText's words); one table maps them to the mesh axes `data`, `fsdp` and
`tensor`. Everything beneath is jax.jit with NamedSharding.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from polyepo_jax.types import Array

AXES = ("data", "fsdp", "tensor")

# Which mesh axis a logical axis is cut over; the rest is replicated.
RULES = {"embed": "fsdp", "vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}

# Rows of a batch are cut over both of these.
BATCH_AXES = ("data", "fsdp")

# The same for activations; of several cuts the first that divides. Between the layers these are cut along the sequence,
# where the layers themselves cut heads and mlp (sequence parallelism, Korthikanti et al. 2022): what the backward pass
# keeps is cut over all devices.
ACTIVATION_RULES: dict[str, tuple[tuple[str, ...], ...]] = {
    "batch": (BATCH_AXES,),
    "batch_everywhere": (AXES, BATCH_AXES),
    "length": (("tensor",),),
    "heads": (("tensor",),),
    "mlp": (("tensor",),),
    "vocab": (("tensor",),),
}


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


def mesh_sizes(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """How many devices lie along data, fsdp and tensor.

    Raises:
      ValueError: if the axes do not multiply to the number of devices.
    """
    sizes = config.data, config.fsdp, config.tensor
    fixed = math.prod(size for size in sizes if size != -1)
    data, fsdp, tensor = (num_devices // fixed if size == -1 else size for size in sizes)
    if data * fsdp * tensor != num_devices:
        raise ValueError(
            f"mesh data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} does not fit {num_devices} devices: "
            "the axes must multiply to that number"
        )
    return data, fsdp, tensor


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config` over `devices` (None: all). On TPU its axes follow the links of the torus.

    Raises:
      ValueError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if devices[0].platform == "tpu":
        sizes = mesh_sizes(config, len(devices))
        return Mesh(mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True), AXES)
    return Mesh(np.asarray(devices).reshape(mesh_sizes(config, len(devices))), AXES)


def param_sharding(mesh: Mesh, logical_axes: tuple[str, ...]) -> NamedSharding:
    """Where a parameter with these logical axes lies."""
    return NamedSharding(mesh, PartitionSpec(*(RULES.get(axis) for axis in logical_axes)))


def param_shardings(mesh: Mesh, logical_axes):
    """`param_sharding` of every leaf of a tree of logical axes."""
    return jax.tree.map(lambda axes: param_sharding(mesh, axes), logical_axes, is_leaf=lambda x: isinstance(x, tuple))


def check_divides(mesh: Mesh | AbstractMesh, params, logical_axes) -> None:
    """Raises ValueError, naming an axis, unless the mesh cuts every parameter into equal parts."""

    def check(param, names):
        for size, name in zip(param.shape, names, strict=True):
            mesh_axis = RULES.get(name)
            if mesh_axis and size % mesh.shape[mesh_axis]:
                raise ValueError(
                    f"mesh.{mesh_axis} = {mesh.shape[mesh_axis]} does not divide the model's {name} = {size}"
                )

    jax.tree.map(check, params, logical_axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """Cut along the leading axis, over all batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def num_row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Devices that rows are cut over; those along the other axis hold the same rows."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def num_row_shards_in_use() -> int:
    """`num_row_shards` of the mesh in use; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else num_row_shards(mesh)


def num_devices_in_use() -> int:
    """Devices of the mesh in use; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def row_sharding(mesh: Mesh, num_rows: int) -> NamedSharding:
    """Where an array of so many rows lies: cut along them, or copied where the mesh does not divide them."""
    return rows(mesh) if num_rows % num_row_shards(mesh) == 0 else replicated(mesh)


def shard_rows(mesh: Mesh, tree):
    """Arrays, each placed by `row_sharding`. Of a NumPy array a process needs the rows of its own devices only."""

    def place(x):
        sharding = row_sharding(mesh, x.shape[0])
        if isinstance(x, jax.Array):
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, tree)


def copy_to_all(mesh: Mesh, tree):
    """Arrays that every process has, random keys too, as ones that lie on every device."""
    return jax.jit(_unchanged, out_shardings=replicated(mesh))(tree)


def _unchanged(tree):
    return tree


def local_rows(sharding: NamedSharding, num_rows: int) -> np.ndarray:
    """Which rows of an array lie on devices of this process, bool[num_rows]."""
    local_B = np.zeros(num_rows, bool)
    indices: Any = sharding.addressable_devices_indices_map((num_rows,))
    for (index,) in indices.values():
        local_B[index] = True
    return local_B


def row_owners(sharding: NamedSharding, num_rows: int) -> np.ndarray:
    """The process that takes each row of an array to its host, int[num_rows]: one that has it, and in turn where
    several have it."""
    holders: list[set[int]] = [set() for _ in range(num_rows)]
    indices: Any = sharding.devices_indices_map((num_rows,))
    for device, (index,) in indices.items():
        for row in range(*index.indices(num_rows)):
            holders[row].add(device.process_index)
    num_seen: collections.Counter[tuple[int, ...]] = collections.Counter()
    owners_B = np.zeros(num_rows, int)
    for row, processes in enumerate(tuple(sorted(held)) for held in holders):
        owners_B[row] = processes[num_seen[processes] % len(processes)]
        num_seen[processes] += 1
    return owners_B


def any_process(mesh: Mesh, flag: bool) -> Array:
    """Whether `flag` is set in any process: a scalar on all devices, being computed; all processes call this."""
    flags = jax.make_array_from_callback(
        (mesh.size,), NamedSharding(mesh, PartitionSpec(AXES)), lambda index: np.full(mesh.size, flag)[index]
    )
    return _any(flags)


_any = jax.jit(jnp.any)


def mesh_platform() -> str:
    """The platform of the mesh in use ("cpu", "gpu", "tpu"), which need not be that of this process; else its own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def activation_spec(shape: Sequence[int], axes: Sequence[str | None], free: Any = None) -> PartitionSpec:
    """How an activation of this shape is cut over the mesh in use, `free` where that does not divide it.

    Within `by_rows` the rows are this device's already, and only the other mesh axes count.
    """
    mesh = jax.sharding.get_abstract_mesh()

    def cut(size: int, axis: str | None):
        if axis is None:
            return None
        for candidate in ACTIVATION_RULES[axis]:
            names = tuple(name for name in candidate if name not in mesh.manual_axes)
            if size % math.prod(mesh.shape[name] for name in names) == 0:
                return names or None
        return free

    return PartitionSpec(*map(cut, shape, axes))


def constrain(x: Array, *axes: str | None) -> Array:
    """Cuts an activation along its logical axes and no others (None); where the mesh does not divide one, that is the
    compiler's choice. Without a mesh: as it is."""
    chex.assert_rank(x, len(axes))
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(x.shape, axes, PartitionSpec.UNCONSTRAINED))


def everywhere(x: Array) -> Array:
    """A copy on every device of the mesh in use."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def gathered(params: Any, logical_axes: Any, dtype: Any) -> Any:
    """Parameters in `dtype`, cut along heads, mlp and vocabulary only: no device has to ask others for its part."""
    mesh = jax.sharding.get_abstract_mesh()

    def gather(names: tuple[str, ...], x: Array) -> Array:
        x = x.astype(dtype)
        if mesh.empty:
            return x
        spec = PartitionSpec(*("tensor" if RULES.get(name) == "tensor" else None for name in names))
        return jax.lax.with_sharding_constraint(x, spec)

    return jax.tree.map(gather, logical_axes, params, is_leaf=lambda x: isinstance(x, tuple))


def by_rows(function: Callable[..., Array], shared: Any, *arrays: Array) -> Array:
    """`function(shared, *arrays)` on each device's rows alone, where the mesh in use divides them.

    What the function computes of `shared` in a loop, its gradient for one, is then summed over the devices once and
    not in every pass of the loop.
    """
    mesh = jax.sharding.get_abstract_mesh()
    num_parts = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if num_parts == 1 or arrays[0].shape[0] % num_parts:
        return function(shared, *arrays)
    split = PartitionSpec(BATCH_AXES)

    def own(x: Array) -> Array:
        # Each device's own from here on, so that here, and not in the function's loops, its gradient is summed.
        return jax.lax.pcast(x, BATCH_AXES, to="varying") if jnp.issubdtype(x.dtype, jnp.inexact) else x

    def of_own_rows(shared, *arrays):
        return function(jax.tree.map(own, shared), *arrays)

    return jax.shard_map(
        of_own_rows, in_specs=(PartitionSpec(), *(split for _ in arrays)), out_specs=split, axis_names=set(BATCH_AXES)
    )(shared, *arrays)
