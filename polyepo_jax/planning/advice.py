"""What to change so that a run fits, by the estimate."""

import dataclasses
import itertools
from collections.abc import Iterator

from polyepo_jax.config import Config
from polyepo_jax.planning.estimate import rollout_memory, rollout_seconds, shape_of, update_memory, update_work
from polyepo_jax.planning.hardware import Chip
from polyepo_jax.sharding import MeshConfig
from polyepo_jax.startup import nearest_meshes, update_rows, why_not

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
            changed = _with(on_mesh, micro, wave, remat)
            number = (mesh != sizes) + (micro is not None) + (wave is not None) + remat
            if number == 0 or (best is not None and number > best[0][0]) or why_not(changed, mesh):
                continue
            peaks = peak_bytes(changed, mesh, platform)
            peak = int(max(p * s for p, s in zip(peaks, scales, strict=True)))
            if peak > chip.hbm_bytes:
                continue
            seconds = step_seconds(changed, mesh, platform, chip)
            rank = number, seconds or 0.0
            if best is None or rank < best[0]:
                overrides = [
                    *(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), mesh, strict=True) if mesh != sizes else ()),
                    *((("algorithm.micro-batch-size", micro),) if micro is not None else ()),
                    *((("sampling.max-rows", wave),) if wave is not None else ()),
                    *((("model.remat", "full"),) if remat else ()),
                ]
                written = tuple((key, str(value)) for key, value in overrides)
                best = rank, Change(written, changed, mesh, peak, seconds)
    return None if best is None else best[1]


def largest_wave(config: Config, sizes: Sizes, platform: str, chip: Chip, scale: float = 1.0) -> int | None:
    """The most rows of a wave whose rollout fits; None if not even one prompt's generations do."""
    most = config.prompts_per_step
    for prompts in range(most, 0, -1):
        changed = _with(config, None, prompts * config.num_generations, False)
        if why_not(changed, sizes) is None and peak_bytes(changed, sizes, platform)[1] * scale <= chip.hbm_bytes:
            return prompts * config.num_generations
    return None


def fewest_devices(config: Config, platform: str, chip: Chip, more_than: int, at_most: int = 4096) -> Change | None:
    """The same run on the fewest devices, a power of two times as many, on which it fits with some mesh or change."""
    num_devices = more_than * 2
    while num_devices <= at_most:
        for sizes in nearest_meshes(config, num_devices, count=1):
            if max(peak_bytes(config, sizes, platform)) <= chip.hbm_bytes:
                on_mesh = dataclasses.replace(config, mesh=MeshConfig(*sizes))
                peak = max(peak_bytes(config, sizes, platform))
                return Change((), on_mesh, sizes, peak, step_seconds(config, sizes, platform, chip))
            change = nearest_change(config, sizes, platform, chip)
            if change is not None:
                return change
        num_devices *= 2
    return None
