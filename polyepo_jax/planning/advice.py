"""What to change so that a run fits, by the estimate."""

import dataclasses
import itertools
from collections.abc import Iterator

from polyepo_jax.config import Config
from polyepo_jax.config.meshes import nearest_meshes, update_rows, why_not
from polyepo_jax.planning.estimate import shape_of, update_memory, update_work
from polyepo_jax.planning.hardware import GENERATIONS, Chip, Topology, parse_topology
from polyepo_jax.planning.rollout_estimate import rollout_memory, rollout_seconds, wave_rows
from polyepo_jax.sharding import AXES, MeshConfig, mesh_sizes

Sizes = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Change:
    """Overrides of the config, as on the command line, and what the estimate says then.

    peak_bytes: of a device. seconds: a step's, None where the devices' speed is unknown.
    """

    overrides: tuple[tuple[str, str], ...]
    config: Config
    sizes: Sizes
    peak_bytes: int
    seconds: float | None

    def arguments(self) -> str:
        """The overrides as they are typed."""
        return " ".join(f"--{key} {value}" for key, value in self.overrides)


@dataclasses.dataclass(frozen=True)
class Advice:
    """Other devices, and the change of the config that goes with them."""

    topology: Topology
    change: Change


def platform_of(topology: Topology) -> str:
    """ "tpu", "gpu" or "cpu"."""
    return "tpu" if topology.compiles else ("cpu" if topology.name == "cpu" else "gpu")


def peak_bytes(config: Config, sizes: Sizes, platform: str) -> tuple[int, int]:
    """Estimated peaks of update and rollout, bytes of a device."""
    shape = shape_of(config, sizes, platform)
    return update_memory(config, shape).total, rollout_memory(config, shape).total


def step_seconds(config: Config, sizes: Sizes, platform: str, chip: Chip) -> float | None:
    """Estimated least time of a step."""
    shape = shape_of(config, sizes, platform)
    update, _ = update_work(config, shape).seconds(chip)
    rollout, _ = rollout_seconds(config, shape, chip)
    return None if update is None or rollout is None else update + rollout


def _micro_batches(config: Config, num_shards: int) -> Iterator[int]:
    """Smaller micro-batches that divide the mini-batch and are divided by the mesh."""
    rows = update_rows(config)[1]
    for smaller in range(rows - 1, 0, -1):
        if rows % smaller == 0 and smaller % num_shards == 0:
            yield smaller


def _waves(config: Config) -> Iterator[int]:
    rows = min(config.sampling.max_rows, config.prompts_per_step * config.num_generations) // 2
    while rows >= config.num_generations:
        yield rows
        rows //= 2


def _with(config: Config, micro: int | None, wave: int | None, full_remat: bool) -> Config:
    if micro is not None:
        config = dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, micro_batch_size=micro))
    if wave is not None:
        config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, max_rows=wave))
    if full_remat:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="full"))
    return config


def nearest_change(
    config: Config, sizes: Sizes, platform: str, chip: Chip, scales: tuple[float, float] = (1.0, 1.0)
) -> Change | None:
    """The change of the fewest settings that makes update and rollout fit; of several the fastest.

    Args:
      sizes: of the mesh the run has.
      scales: compiled peaks over estimated ones, of update and rollout, where they are known.

    Returns:
      None if no micro-batch, wave, rematerialisation or mesh of these devices fits.
    """
    num_devices = sizes[0] * sizes[1] * sizes[2]
    meshes = [sizes, *(mesh for mesh in nearest_meshes(config, num_devices, count=100) if mesh != sizes)]
    best: tuple[tuple[int, float], Change] | None = None
    for mesh in meshes:
        on_mesh = config if mesh == sizes else dataclasses.replace(config, mesh=MeshConfig(*mesh))
        micros = [None, *_micro_batches(on_mesh, mesh[0] * mesh[1])]
        remats = [False] if config.model.remat == "full" else [False, True]
        for micro, wave, remat in itertools.product(micros, [None, *_waves(config)], remats):
            number = (mesh != sizes) + (micro is not None) + (wave is not None) + remat
            if number == 0 or (best is not None and number > best[0][0]):
                continue
            changed = _with(on_mesh, micro, wave, remat)
            if why_not(changed, mesh):
                continue
            peaks = peak_bytes(changed, mesh, platform)
            peak = int(max(p * s for p, s in zip(peaks, scales, strict=True)))
            if peak > chip.hbm_bytes:
                continue
            seconds = step_seconds(changed, mesh, platform, chip)
            rank = number, seconds or 0.0
            if best is None or rank < best[0]:
                overrides = [
                    *(_mesh_overrides(mesh) if mesh != sizes else ()),
                    *((("algorithm.micro-batch-size", str(micro)),) if micro is not None else ()),
                    *((("sampling.max-rows", str(wave)),) if wave is not None else ()),
                    *((("model.remat", "full"),) if remat else ()),
                ]
                best = rank, Change(tuple(overrides), changed, mesh, peak, seconds)
    return None if best is None else best[1]


def _mesh_overrides(sizes: Sizes) -> tuple[tuple[str, str], ...]:
    return tuple((f"mesh.{axis}", str(size)) for axis, size in zip(AXES, sizes, strict=True))


def largest_wave(config: Config, sizes: Sizes, platform: str, chip: Chip, scale: float = 1.0) -> int | None:
    """Rows of the largest wave whose rollout fits; None if not even one prompt's generations do."""
    for prompts in range(config.prompts_per_step, 0, -1):
        changed = _with(config, None, prompts * config.num_generations, False)
        if why_not(changed, sizes) is None and peak_bytes(changed, sizes, platform)[1] * scale <= chip.hbm_bytes:
            # Waves are of one size, which can be less than the limit that was asked for.
            return wave_rows(changed, sizes[0] * sizes[1])
    return None


def _doubled(topology: Topology) -> Topology | None:
    """Twice the devices: the shortest side of a slice doubled, or twice the slices of the largest shape."""
    kind, _, shape = topology.name.partition(":")
    if kind == "gpu":
        name, _, count = shape.rpartition("x")
        return parse_topology(f"gpu:{name}x{2 * int(count)}")
    if kind not in GENERATIONS:
        return None
    sides = [int(side) for side in shape.split("x")]
    shortest = len(sides) - 1 - sides[::-1].index(min(sides))
    sides[shortest] *= 2
    try:
        return parse_topology(f"{kind}:{'x'.join(map(str, sides))}", topology.num_slices)
    except ValueError:
        return parse_topology(topology.name, 2 * topology.num_slices)


def fewest_devices(config: Config, topology: Topology, at_most: int = 4096) -> Advice | None:
    """Devices of that kind, doubled until the run fits with some mesh or change."""
    platform, chip = platform_of(topology), topology.chip
    larger = _doubled(topology)
    while larger is not None and larger.num_devices <= at_most:
        try:
            own = mesh_sizes(config.mesh, larger.num_devices)
        except ValueError:
            own = None
        for sizes in nearest_meshes(config, larger.num_devices, count=1):
            # The config's own mesh grows with the devices where one of its axes is -1.
            sizes = own if own is not None and why_not(config, own) is None else sizes
            on_mesh = config if sizes == own else dataclasses.replace(config, mesh=MeshConfig(*sizes))
            overrides = () if sizes == own else _mesh_overrides(sizes)
            peak = max(peak_bytes(on_mesh, sizes, platform))
            if peak <= chip.hbm_bytes:
                seconds = step_seconds(on_mesh, sizes, platform, chip)
                return Advice(larger, Change(overrides, on_mesh, sizes, peak, seconds))
            change = nearest_change(on_mesh, sizes, platform, chip)
            if change is not None:
                if change.sizes == sizes:
                    change = dataclasses.replace(change, overrides=(*overrides, *change.overrides))
                return Advice(larger, change)
        larger = _doubled(larger)
    return None
