"""Topologies: what is read, what is refused and how, and the meshes made of them."""

import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from polyepo_jax.planning import hardware
from polyepo_jax.planning.hardware import GENERATIONS, GIB, GPUS, parse_topology, topology_devices, topology_mesh
from polyepo_jax.sharding import AXES, MeshConfig, rows

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.parametrize(
    ("text", "slices", "devices", "chips"),
    [
        ("v5e:4x4", 1, 16, 16),
        ("v5e:4x4", 2, 32, 32),
        ("v5e:1x1", 1, 1, 1),
        ("v5p:2x2x4", 1, 16, 16),
        ("v4:2x2x1", 1, 4, 4),
        ("tpu7x:2x2x1", 1, 8, 4),
        ("tpu7x:2x2x1", 3, 24, 12),
        ("v2:16x16", 1, 512, 256),
        ("v3:2x2", 1, 8, 4),
        (" V6E:2X4 ", 1, 8, 8),
        ("gpu:h200x4", 1, 4, 4),
        ("gpu:a100x1", 1, 1, 1),
        ("cpu", 1, 1, 1),
    ],
)
def test_parse_topology_counts_devices_and_chips(text, slices, devices, chips):
    topology = parse_topology(text, slices)
    assert (topology.num_devices, topology.num_chips, topology.num_slices) == (devices, chips, slices)
    assert topology.name == text.strip().lower()
    assert topology.compiles == (topology.chip.name in GENERATIONS)


@pytest.mark.parametrize(
    ("text", "slices", "words"),
    [
        ("v5e:4x4", 0, ["slices must be at least 1", "0"]),
        ("cpu", 2, ["only TPUs come in slices", "2 slices"]),
        ("gpu:h200x4", 2, ["only TPUs come in slices", "2 slices"]),
        ("", 1, ["a kind and a size", "v5e:4x4", "''"]),
        ("v5e", 1, ["a kind and a size", "v5e:4x4", "'v5e'"]),
        ("cpu:4", 1, ["a kind and a size", "or cpu", "'cpu:4'"]),
        ("v5:4x4", 1, ["unknown TPU generation 'v5'", "did you mean v5", "v2, v3, v4, v5e, v5p, v6e, tpu7x"]),
        ("v7x:4x4x4", 1, ["unknown TPU generation 'v7x'", "did you mean tpu7x"]),
        ("wombat:4x4", 1, ["unknown TPU generation 'wombat'; known: v2"]),
        ("v5e:", 1, ["its shape in chips", "v5e:2x2", "'v5e:'"]),
        ("v5e:16", 1, ["v5e topologies have 2 dimensions", "v5e:2x2", "got 1"]),
        ("v5e:4*4", 1, ["its shape in chips", "v5e:2x2"]),
        ("v5p:4x-4x4", 1, ["its shape in chips", "v5p:2x2x2"]),
        ("v5p:4x4", 1, ["v5p topologies have 3 dimensions", "v5p:2x2x2", "got 2"]),
        ("v6e:2x2x1", 1, ["v6e topologies have 2 dimensions", "got 3"]),
        ("v5e:0x4", 1, ["at least 1 chip", "'v5e:0x4'"]),
        ("v5e:16x32", 1, ["at most 16x16 chips", "use slices"]),
        ("v5p:32x32x32", 1, ["at most 6144 chips", "got 32768", "use slices"]),
        ("gpu:h200", 1, ["gpu:h200x4", "a100, h100, h200, b200"]),
        ("gpu:", 1, ["gpu:h200x4"]),
        ("gpu:h201x4", 1, ["unknown GPU 'h201'", "did you mean h200", "known: a100"]),
        ("gpu:h200x0", 1, ["at least 1", "'gpu:h200x0'"]),
    ],
)
def test_parse_topology_says_what_was_expected(text, slices, words):
    everything = "".join(f"(?=.*{re.escape(word)})" for word in words)
    with pytest.raises(ValueError, match=everything):
        parse_topology(text, slices)


def test_a_core_has_half_of_a_chip():
    # Per chip: 2307 TFLOP/s and 7380 GB/s; libtpu makes a device of each of its two cores.
    chip = parse_topology("tpu7x:2x2x1").chip
    assert (chip.peak_flops, chip.hbm_bandwidth, chip.interconnect_bandwidth) == (1153.5e12, 3690e9, 300e9)


@pytest.mark.parametrize("chip", [*(generation.chip for generation in GENERATIONS.values()), *GPUS.values()])
def test_figures_have_sensible_units(chip):
    assert 4 * GIB < chip.hbm_bytes < 256 * GIB
    assert 10e12 < chip.peak_flops < 1e16
    assert 1e11 < chip.interconnect_bandwidth < chip.hbm_bandwidth < 1e13


def test_cpu_has_memory_and_no_figures():
    chip = parse_topology("cpu").chip
    assert chip.hbm_bytes > GIB / 2
    assert (chip.peak_flops, chip.hbm_bandwidth, chip.interconnect_bandwidth) == (None, None, None)


def test_gpu_memory_is_what_jax_takes():
    assert parse_topology("gpu:h200x4").chip.hbm_bytes == 141_000_000_000 * 3 // 4


def test_mesh_without_devices_gives_shapes_of_shards():
    mesh = topology_mesh(parse_topology("gpu:h200x8"), MeshConfig(fsdp=2, tensor=2))
    assert isinstance(mesh, AbstractMesh)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert NamedSharding(mesh, PartitionSpec("fsdp", "tensor")).shard_shape((8, 6)) == (4, 3)
    assert rows(mesh).shard_shape((8, 6)) == (2, 6)


@pytest.mark.parametrize("text", ["gpu:h200x8", pytest.param("v5e:2x4", marks=needs_libtpu)])
def test_mesh_must_fit_the_topology(text):
    with pytest.raises(ValueError, match=r"does not fit .*8 devices"):
        topology_mesh(parse_topology(text), MeshConfig(data=3))


def test_only_tpus_have_devices_to_compile_for():
    with pytest.raises(ValueError, match="for TPUs only, not for 'gpu:h200x8'"):
        topology_devices(parse_topology("gpu:h200x8"))


@pytest.mark.parametrize("error", [RuntimeError("JAX TPU support not installed"), ImportError("no libtpu")])
def test_missing_libtpu_says_how_to_get_it(monkeypatch, error):
    def fail(**_):
        raise error

    monkeypatch.setattr(hardware.topologies, "get_topology_desc", fail)
    with pytest.raises(ValueError, match=r"needs libtpu: make install ACCELERATOR=tpu, or .*--topology cpu or gpu"):
        topology_devices(parse_topology("v5e:2x2"))


@needs_libtpu
def test_libtpu_gives_its_reason():
    with pytest.raises(ValueError, match=r"libtpu refuses the topology 'v5e:3x3': .*not divisible"):
        topology_devices(parse_topology("v5e:3x3"))


@needs_libtpu
@pytest.mark.parametrize(
    ("text", "slices"),
    [
        ("v5e:1x1", 1),
        ("v5e:4x4", 1),
        ("v5e:2x2", 2),
        ("v4:2x2x2", 1),
        ("v3:2x2", 1),
        ("tpu7x:1x1x1", 1),
        ("v5e:1x1", 2),
    ],
)
def test_devices_are_as_many_as_said_and_in_order(text, slices):
    topology = parse_topology(text, slices)
    devices = topology_devices(topology)
    assert len(set(devices)) == len(devices) == topology.num_devices
    places = [(getattr(d, "slice_index", 0), tuple(d.coords), d.core_on_chip) for d in devices]
    assert places == sorted(places)
    assert len({place[:2] for place in places}) == topology.num_chips


@needs_libtpu
def test_mesh_axes_follow_links():
    mesh = topology_mesh(parse_topology("v5e:4x4"), MeshConfig(data=1, fsdp=4, tensor=4))
    assert mesh.axis_names == AXES
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 4}
    for line in [*mesh.devices[0], *mesh.devices[0].T]:
        # Along an axis of the mesh one coordinate stays as it is.
        assert sum(len({device.coords[axis] for device in line}) == 1 for axis in (0, 1)) == 1


@needs_libtpu
@pytest.mark.parametrize(("data", "fsdp", "along"), [(4, 2, (2, 1)), (2, 4, (2, 1)), (1, 8, (1, 2))])
def test_slices_lie_along_data_then_fsdp(data, fsdp, along):
    mesh = topology_mesh(parse_topology("v5e:2x2", 2), MeshConfig(data=data, fsdp=fsdp, tensor=1))
    slices = [[device.slice_index for device in row] for row in mesh.devices[:, :, 0]]
    assert (len({tuple(row) for row in slices}), len(set(slices[0]))) == along


@needs_libtpu
def test_slices_never_lie_along_tensor():
    with pytest.raises(ValueError, match=r"2 slices do not fit mesh.data = 1, mesh.fsdp = 1: .*a multiple of 2"):
        topology_mesh(parse_topology("v5e:2x2", 2), MeshConfig(data=1, fsdp=1, tensor=8))


@needs_libtpu
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "tpu7x" else ()) for name in GENERATIONS]
)
def test_memory_is_what_the_compiler_grants(name):
    generation = GENERATIONS[name]
    device = topology_devices(parse_topology(f"{name}:{'x'.join('221'[: generation.dimensions])}"))[0]
    side = math.isqrt(256 * GIB)
    matrix = jax.ShapeDtypeStruct((side, side), jnp.bfloat16, sharding=SingleDeviceSharding(device))
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as error:
        jax.jit(lambda x: (x @ x).sum()).lower(matrix).compile()
    granted = re.search(r"exceeds available HBM \(([\d.]+)G\)", str(error.value))
    assert float(granted[1]) == pytest.approx(generation.chip.hbm_bytes / GIB, abs=0.005)
