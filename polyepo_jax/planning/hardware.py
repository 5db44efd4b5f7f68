"""The machines one can plan for: what a device of theirs has, and stand-ins for the devices to compile for.

Figures of a `Chip` are per JAX device. On v2, v3 and tpu7x a device is one of a chip's two cores and has half of what
is published for the chip; chips are what one pays for, so a `Topology` counts both.
"""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils, topologies
from jax.sharding import AbstractMesh, Mesh

from polyepo_jax.sharding import AXES, MeshConfig, make_mesh, mesh_sizes

GIB = 2**30

# JAX takes this share of a GPU's memory at the start and never more (its default of XLA_PYTHON_CLIENT_MEM_FRACTION).
GPU_MEMORY_SHARE = 0.75

# libtpu asks these of the machine it runs on, and waits for answers that a machine without a TPU never gives. Whatever
# they say, one may compile for any topology.
LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}

EXAMPLES = "v5e:4x4, v5p:2x2x4, tpu7x:2x2x1, gpu:h200x4 or cpu"


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one JAX device has.

    hbm_bytes: memory that a program may fill. On TPU what the compiler grants, on GPU what JAX takes of it.
    peak_flops: dense bfloat16 FLOP/s; None where no figure is meaningful.
    hbm_bandwidth: bytes/s between memory and compute units; None as above.
    interconnect_bandwidth: bytes/s that a device can send to others, the sum over its links, within one slice (TPU) or
      one NVLink domain (GPU); None as above.
    """

    name: str
    hbm_bytes: int
    peak_flops: float | None
    hbm_bandwidth: float | None
    interconnect_bandwidth: float | None


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of one kind and how many.

    name: as `parse_topology` reads it, of one slice. chip: figures per device. num_devices, num_chips: over all slices.
    num_slices: TPU slices, joined by the data-center network.
    """

    name: str
    chip: Chip
    num_devices: int
    num_chips: int
    num_slices: int = 1

    @property
    def compiles(self) -> bool:
        """Whether programs can be compiled for it without having it."""
        return self.chip.name in GENERATIONS


@dataclasses.dataclass(frozen=True)
class Generation:
    """A TPU generation.

    chip: figures per device. dimensions: of the torus of chips. max_chips: in one slice. devices_per_chip: JAX devices.
    chip_config: libtpu's name for the way that cores are joined to devices; None for its default.
    """

    chip: Chip
    dimensions: int
    max_chips: int
    devices_per_chip: int = 1
    chip_config: str | None = None


def _tpu(name: str, hbm_gib: float, flops: float, hbm: float, links: float, devices_per_chip: int = 1) -> Chip:
    """hbm_gib per device; flops, hbm (bandwidth) and links (one direction, summed) per chip, as published."""
    return Chip(name, int(hbm_gib * GIB), flops / devices_per_chip, hbm / devices_per_chip, links / devices_per_chip)


# hbm_gib is measured: a program with a temporary of 512 GiB on one device, compiled for each generation, fails with
# RESOURCE_EXHAUSTED "... exceeds available HBM (15.75G)" (libtpu 0.0.42). It is the same for every shape.
# Published figures: the Google Cloud TPU documentation's page of each generation ("TPU v5e", "TPU7x (Ironwood)", ...),
# its "bidirectional inter-chip interconnect bandwidth" halved. For v2, v3 and v4 the documentation gives no bandwidth
# of links: Jouppi et al., "A Domain-Specific Supercomputer for Training Deep Neural Networks" (2020): 4 links of
# 496 Gbit/s (v2), of 656 Gbit/s (v3); Jouppi et al., "TPU v4: An Optically Reconfigurable Supercomputer" (2023):
# 6 links of 50 GB/s.
# max_chips is the pod; for v5p the largest job, of 6144 of a pod's 8960 chips.
GENERATIONS = {
    "v2": Generation(_tpu("v2", 7.48, 45e12, 700e9, 248e9, 2), 2, 256, 2),
    "v3": Generation(_tpu("v3", 15.48, 123e12, 900e9, 328e9, 2), 2, 1024, 2),
    # Machines with v4 join a chip's cores into one device ("megacore"); libtpu's default does not.
    "v4": Generation(_tpu("v4", 30.75, 275e12, 1200e9, 300e9), 3, 4096, chip_config="megacore"),
    "v5e": Generation(_tpu("v5e", 15.75, 197e12, 819e9, 200e9), 2, 256),
    "v5p": Generation(_tpu("v5p", 95.74, 459e12, 2765e9, 600e9), 3, 6144),
    "v6e": Generation(_tpu("v6e", 31.25, 918e12, 1638e9, 400e9), 2, 256),
    "tpu7x": Generation(_tpu("tpu7x", 94.75, 2307e12, 7380e9, 600e9, 2), 3, 9216, 2),
}


def _gpu(name: str, memory_gb: float, flops: float, hbm: float, links: float) -> Chip:
    """memory_gb is the whole memory, in 10^9 bytes."""
    return Chip(name, int(memory_gb * 1e9 * GPU_MEMORY_SHARE), flops, hbm, links)


# NVIDIA's data sheets, by name; FLOP/s without sparsity, half of NVLink's total bandwidth for one direction.
GPUS = {
    "a100": _gpu("a100", 80, 312e12, 2039e9, 300e9),  # "NVIDIA A100 Tensor Core GPU", 80 GB SXM
    "h100": _gpu("h100", 80, 989e12, 3350e9, 450e9),  # "NVIDIA H100 Tensor Core GPU", SXM
    "h200": _gpu("h200", 141, 989e12, 4800e9, 450e9),  # "NVIDIA H200 Tensor Core GPU", SXM
    "b200": _gpu("b200", 180, 2250e12, 8000e9, 900e9),  # "NVIDIA DGX B200": an eighth of the system
}


def parse_topology(text: str, num_slices: int = 1) -> Topology:
    """Reads a generation with a shape in chips (`v5e:4x4`), a GPU with a number (`gpu:h200x4`), or `cpu`.

    Args:
      text: what to read; upper and lower case are the same.
      num_slices: TPU slices of that shape.

    Raises:
      ValueError: if it is none of these, saying what was expected.
    """
    name = text.strip().lower()
    kind, colon, size = name.partition(":")
    if num_slices < 1:
        raise ValueError(f"slices must be at least 1, got {num_slices}")
    if num_slices > 1 and kind in ("cpu", "gpu"):
        raise ValueError(f"only TPUs come in slices: {text!r} with {num_slices} slices; leave slices at 1")
    if name == "cpu":
        return Topology(name, _this_cpu(), num_devices=1, num_chips=1)
    if not colon or kind == "cpu":
        raise ValueError(f"a topology is a kind and a size, as in {EXAMPLES}; got {text!r}")
    return _parse_gpu(name, size) if kind == "gpu" else _parse_tpu(name, kind, size, num_slices)


def _this_cpu() -> Chip:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Chip("cpu", memory, None, None, None)


def _parse_gpu(name: str, size: str) -> Topology:
    match = re.fullmatch(r"([a-z]+\d+)x(\d+)", size)
    if not match:
        raise ValueError(f"GPUs are written as gpu:h200x4, a name of {', '.join(GPUS)} and a number; got {name!r}")
    if match[1] not in GPUS:
        raise ValueError(f"unknown GPU {match[1]!r}{_closest(match[1], GPUS)}; known: {', '.join(GPUS)}")
    number = int(match[2])
    if number < 1:
        raise ValueError(f"{name!r} has no GPU: the number after x must be at least 1")
    return Topology(name, GPUS[match[1]], num_devices=number, num_chips=number)


def _parse_tpu(name: str, kind: str, size: str, num_slices: int) -> Topology:
    if kind not in GENERATIONS:
        known = ", ".join(GENERATIONS)
        raise ValueError(f"unknown TPU generation {kind!r}{_closest(kind, GENERATIONS)}; known: {known}; or gpu, cpu")
    generation = GENERATIONS[kind]
    example = f"{kind}:{'x'.join('2' * generation.dimensions)}"
    if not re.fullmatch(r"\d+(x\d+)*", size):
        raise ValueError(f"the size of a TPU topology is its shape in chips, as in {example}; got {name!r}")
    shape = tuple(int(side) for side in size.split("x"))
    if len(shape) != generation.dimensions:
        raise ValueError(
            f"{kind} topologies have {generation.dimensions} dimensions, as in {example}; got {len(shape)} in {name!r}"
        )
    if min(shape) < 1:
        raise ValueError(f"every side of a topology must be at least 1 chip, got {name!r}")
    _check_size(name, shape, generation)
    chips = math.prod(shape) * num_slices
    return Topology(name, generation.chip, chips * generation.devices_per_chip, chips, num_slices)


def _check_size(name: str, shape: tuple[int, ...], generation: Generation) -> None:
    """Raises ValueError for more than the largest slice: libtpu ends the process on some of those."""
    side = math.isqrt(generation.max_chips)
    if len(shape) == 2 and max(shape) > side:
        raise ValueError(f"a slice of {generation.chip.name} has at most {side}x{side} chips, got {name!r}; use slices")
    if math.prod(shape) > generation.max_chips:
        raise ValueError(
            f"a slice of {generation.chip.name} has at most {generation.max_chips} chips, got {math.prod(shape)} in "
            f"{name!r}; use slices"
        )


def _closest(word: str, known: Sequence[str] | dict) -> str:
    found = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def topology_devices(topology: Topology) -> list[jax.Device]:
    """Devices to compile for; nothing can run on them.

    Sets environment variables that libtpu reads when it is loaded. The caller decides on what the process itself
    computes (`jax_platforms`).

    Returns:
      Ordered by slice, then by coordinates with the last one fastest, then by core: neighbours stand together.

    Raises:
      ValueError: if the topology is not one of TPUs, libtpu is missing, or it refuses the shape.
    """
    if not topology.compiles:
        raise ValueError(f"programs are compiled ahead for TPUs only, not for {topology.name!r}")
    for key, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **_libtpu_options(topology)
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"libtpu refuses the topology {topology.name!r}: {error}") from error
    except (RuntimeError, ImportError) as error:
        raise ValueError(
            "planning for TPUs needs libtpu: make install ACCELERATOR=tpu, or pip install 'polyepo-jax[tpu]'; "
            "--topology cpu or gpu:... gives the analytic part"
        ) from error
    if len(devices) != topology.num_devices:
        raise ValueError(f"libtpu makes {len(devices)} devices of {topology.name!r}, expected {topology.num_devices}")
    return sorted(devices, key=lambda d: (_slice_index(d), tuple(d.coords), d.core_on_chip))


def _slice_index(device: jax.Device) -> int:
    """Devices of a single slice have no such attribute."""
    return getattr(device, "slice_index", 0)


def _libtpu_options(topology: Topology) -> dict:
    options: dict = {}
    if topology.num_chips == topology.num_slices:
        options["chips_per_host_bounds"] = (1, 1, 1)  # hosts have 2x2 chips otherwise, which do not fit into one chip
    if topology.num_slices > 1:
        options["num_slices"] = topology.num_slices
    config = GENERATIONS[topology.chip.name].chip_config
    if config is not None:
        options["chip_config_name"] = config
    return options


def topology_mesh(topology: Topology, config: MeshConfig) -> Mesh | AbstractMesh:
    """The mesh of `polyepo_jax.sharding` over a topology.

    On TPU, mesh axes follow the links of the torus; slices lie along `data`, and along `fsdp` as far as `data` is
    smaller than their number, so that `tensor` never crosses the data-center network. Elsewhere there are no devices,
    only sizes: an abstract mesh, enough for `NamedSharding(...).shard_shape`.

    Raises:
      ValueError: if the axes do not multiply to the number of devices, `data` and `fsdp` are no multiple of the slices,
        or `topology_devices` raises it.
    """
    sizes = mesh_sizes(config, topology.num_devices)
    if not topology.compiles:
        return AbstractMesh(sizes, AXES)
    devices = topology_devices(topology)
    if topology.num_slices == 1:
        return make_mesh(config, devices)
    slices = _slices_along_axes(sizes, topology.num_slices)
    within = tuple(size // number for size, number in zip(sizes, slices, strict=True))
    array = mesh_utils.create_hybrid_device_mesh(within, slices, devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(array), AXES)


def _slices_along_axes(sizes: tuple[int, ...], num_slices: int) -> tuple[int, int, int]:
    """Slices along `data`, `fsdp` and `tensor`."""
    data, fsdp, _ = sizes
    along_data = math.gcd(data, num_slices)
    along_fsdp = num_slices // along_data
    if fsdp % along_fsdp:
        raise ValueError(
            f"{num_slices} slices do not fit mesh.data = {data}, mesh.fsdp = {fsdp}: slices lie along data, then fsdp, "
            f"never along tensor; make mesh.data a multiple of {num_slices}"
        )
    return along_data, along_fsdp, 1
