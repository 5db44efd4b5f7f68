"""The plan of a run on a topology: estimates, the compiler's figures where it was asked, and what to change."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from polyepo_jax.config import Config, MeshJudge
from polyepo_jax.config.meshes import checked_mesh
from polyepo_jax.errors import InputError
from polyepo_jax.planning.advice import (
    Advice,
    Change,
    fewest_devices,
    largest_wave,
    nearest_change,
    peak_bytes,
    platform_of,
)
from polyepo_jax.planning.estimate import (
    SLICE_BANDWIDTH,
    Memory,
    Shape,
    Work,
    shape_of,
    state_bytes,
    update_memory,
    update_work,
)
from polyepo_jax.planning.hardware import Chip, Topology, topology_mesh
from polyepo_jax.planning.hlo import Collective
from polyepo_jax.planning.programs import Program, TooLarge, compile_rollout, compile_update
from polyepo_jax.planning.rollout_estimate import (
    decode_work,
    num_waves,
    prefill_work,
    rollout_memory,
    rollout_work,
    wave_rows,
)
from polyepo_jax.sharding import AXES

# A run whose estimate is so many times the memory is not compiled: no estimate is that far off, and a compilation for
# a large model takes minutes.
HOPELESS = 1.5

Compiled = Program | TooLarge | None
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Phase:
    """Update or rollout of a step.

    estimate: of memory. compiled: None where nothing was compiled. resident_bytes: what lies beside the compiled
      program. work: of a device. seconds, bound_by: at least, and what takes them; None where the devices' speed is
      unknown.
    """

    estimate: Memory
    compiled: Compiled
    resident_bytes: int
    work: Work
    seconds: float | None
    bound_by: str | None

    @property
    def compiled_bytes(self) -> int | None:
        """The compiler's peak with what lies beside the program; None where it gave none."""
        if self.compiled is None or self.compiled.peak_bytes is None:
            return None
        return self.compiled.peak_bytes + self.resident_bytes

    @property
    def peak_bytes(self) -> int:
        """The compiler's figure where there is one, else the estimate."""
        return self.estimate.total if self.compiled_bytes is None else self.compiled_bytes


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is said of a run on a topology.

    largest_wave: rows of the largest wave that fits; None if none does.
    advice: the nearest change that fits on these devices. advice_peak_bytes: the compiler's figure for it, if asked.
    more_devices: where there is no such change, the fewest devices that do.
    """

    config: Config
    topology: Topology
    shape: Shape
    update: Phase
    rollout: Phase
    fits: bool
    largest_wave: int | None
    advice: Change | None
    more_devices: Advice | None
    advice_peak_bytes: int | None = None

    @property
    def missing_bytes(self) -> int:
        """What a device lacks; negative: what it has left."""
        return max(self.update.peak_bytes, self.rollout.peak_bytes) - self.topology.chip.hbm_bytes

    @property
    def step_seconds(self) -> float | None:
        """The least time of a step: rollout, then update."""
        if self.update.seconds is None or self.rollout.seconds is None:
            return None
        return self.update.seconds + self.rollout.seconds

    @property
    def hidden_seconds(self) -> float | None:
        """The least time between the end of a rollout and the wait for its grades: what a judge may take that is not on
        the mesh; None if the devices' speed is unknown."""
        staleness = self.config.algorithm.staleness
        if isinstance(self.config.judge.clusterer, MeshJudge) or not staleness:
            return 0.0
        return None if self.step_seconds is None else staleness * self.step_seconds

    @property
    def run_hours(self) -> float | None:
        """The least time of all steps."""
        return None if self.step_seconds is None else self.step_seconds * self.config.max_steps / 3600

    def collectives(self) -> list[tuple[str, Collective]]:
        """What the compiled programs send in a step, under the program's name."""
        waves = num_waves(self.config, self.shape)
        return [
            (name, dataclasses.replace(c, count=c.count * times, bytes=c.bytes * times))
            for name, phase, times in (("rollout", self.rollout, waves), ("update", self.update, 1))
            if isinstance(phase.compiled, Program)
            for c in phase.compiled.collectives
        ]


def make_plan(
    config: Config, topology: Topology, compiles: bool = True, compile_advice: bool = False, say: Say = print
) -> Plan:
    """Plans a run.

    Args:
      compiles: for TPUs, compile the run's programs; skipped where the estimate is above HOPELESS times the memory.
      compile_advice: compile the advised change too.
      say: told what is under way.

    Raises:
      InputError: the mesh does not divide the run or the devices.
    """
    chip = topology.chip
    sizes = checked_mesh(config, topology.num_devices)
    platform = platform_of(topology)
    shape = shape_of(config, sizes, platform)
    estimates = peak_bytes(config, sizes, platform)
    compiled: tuple[Compiled, Compiled] = (None, None)
    if topology.compiles and compiles and max(estimates) <= HOPELESS * chip.hbm_bytes:
        compiled = _compile(config, topology, say)
    update, rollout = _phases(config, topology, shape, compiled)
    refused = any(isinstance(program, TooLarge) for program in compiled)
    fits = not refused and max(update.peak_bytes, rollout.peak_bytes) <= chip.hbm_bytes

    # Where the compiler needs more than the estimate, so will the changes.
    scales = max(update.peak_bytes / estimates[0], 1.0), max(rollout.peak_bytes / estimates[1], 1.0)
    advice = None if fits else nearest_change(config, sizes, platform, chip, scales)
    plan = Plan(
        config=config,
        topology=topology,
        shape=shape,
        update=update,
        rollout=rollout,
        fits=fits,
        largest_wave=largest_wave(config, sizes, platform, chip, scales[1]),
        advice=advice,
        more_devices=None if fits or advice else fewest_devices(config, topology),
    )
    if compile_advice and advice is not None and topology.compiles and compiles:
        programs = _compile(advice.config, topology, say)
        both = _phases(advice.config, topology, shape_of(advice.config, advice.sizes, platform), programs)
        plan = dataclasses.replace(plan, advice_peak_bytes=max(phase.peak_bytes for phase in both))
    return plan


def _compile(config: Config, topology: Topology, say: Say) -> tuple[Compiled, Compiled]:
    try:
        mesh: Any = topology_mesh(topology, config.mesh)
    except ValueError as error:
        raise InputError(str(error)) from error
    programs = []
    for name, compile_program in (("update", compile_update), ("rollout", compile_rollout)):
        say(f"compiling the {name} for {topology.name} ...")
        start = time.perf_counter()
        programs.append(compile_program(config, mesh))
        say(f"compiled the {name} in {time.perf_counter() - start:.0f} s")
    return programs[0], programs[1]


def _phases(
    config: Config, topology: Topology, shape: Shape, compiled: tuple[Compiled, Compiled]
) -> tuple[Phase, Phase]:
    chip = topology.chip
    memory = update_memory(config, shape)
    work = update_work(config, shape)
    work = dataclasses.replace(work, sent_bytes=_sent(compiled[0], work.sent_bytes, chip))
    reference = state_bytes(config, shape.sizes).reference
    # A reference policy that the loss does not read lies beside the program, as do rollouts of steps to come.
    beside = memory.in_flight + (0 if config.algorithm.loss.needs_reference else reference)
    update = Phase(memory, compiled[0], beside, work, *work.seconds(chip))

    memory = rollout_memory(config, shape)
    waves, steps = num_waves(config, shape), config.max_completion_length
    total = rollout_work(config, shape)
    total = dataclasses.replace(total, sent_bytes=_sent(compiled[1], total.sent_bytes, chip, waves))
    prefill, decode = prefill_work(config, shape), decode_work(config, shape).times(steps)
    # One after the other: the weights are gathered and the prompts read before a token is drawn.
    share = decode.sent_bytes / ((prefill + decode).sent_bytes or 1)
    prefill = dataclasses.replace(prefill, sent_bytes=(1 - share) * total.sent_bytes / waves)
    decode = dataclasses.replace(decode, sent_bytes=share * total.sent_bytes / waves)
    (first, first_by), (second, second_by) = prefill.seconds(chip), decode.seconds(chip)
    seconds = None if first is None or second is None else waves * (first + second)
    bound_by = second_by if second is None or first is None or second >= first else first_by
    # A rollout takes the parameters; the optimizer's state, and a reference policy, lie beside it.
    beside = memory.optimizer + reference + memory.in_flight
    return update, Phase(memory, compiled[1], beside, total, seconds, bound_by)


def _sent(program: Compiled, estimate: float, chip: Chip, times: float = 1) -> float:
    """Bytes a device sends in a step, as if all went between neighbours: what crosses slices counts as slower."""
    if not isinstance(program, Program):
        return estimate
    slower = (chip.interconnect_bandwidth or 0) / SLICE_BANDWIDTH
    return times * sum(c.bytes * (slower if c.between_slices else 1) for c in program.collectives)


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON; bytes and seconds are of a device, `flops` of all devices together."""
    topology, waves, hours = plan.topology, num_waves(plan.config, plan.shape), plan.run_hours
    run = None
    if hours is not None:
        run = {"steps": plan.config.max_steps, "hours": hours, "chip_hours": hours * topology.num_chips}
    advice = None
    if plan.advice is not None:
        advice = _change_json(plan.advice) | {"compiled_peak_bytes": plan.advice_peak_bytes}
    more_devices = None
    if plan.more_devices is not None:
        more_devices = _change_json(plan.more_devices.change) | {
            "topology": plan.more_devices.topology.name,
            "num_slices": plan.more_devices.topology.num_slices,
            "num_devices": plan.more_devices.topology.num_devices,
        }
    return {
        "topology": topology.name,
        "num_slices": topology.num_slices,
        "num_chips": topology.num_chips,
        "num_devices": topology.num_devices,
        "mesh": dict(zip(AXES, plan.shape.sizes, strict=True)),
        "attention": plan.shape.kernel,
        "fits": plan.fits,
        "hbm_limit_bytes": topology.chip.hbm_bytes,
        "missing_bytes": max(plan.missing_bytes, 0),
        "wave_rows": wave_rows(plan.config, plan.shape.num_shards),
        "num_waves": waves,
        "largest_wave_rows": plan.largest_wave,
        "rollout": _phase_json(plan.rollout, topology) | {"programs_per_step": waves},
        "update": _phase_json(plan.update, topology) | {"programs_per_step": 1},
        "step_seconds": plan.step_seconds,
        "staleness": {
            "steps": plan.config.algorithm.staleness,
            "in_flight_bytes": plan.update.estimate.in_flight,
            "hidden_judge_seconds": plan.hidden_seconds,
        },
        "run": run,
        "collectives": [{"program": name} | dataclasses.asdict(c) for name, c in plan.collectives()],
        "advice": advice,
        "more_devices": more_devices,
    }


def _phase_json(phase: Phase, topology: Topology) -> dict[str, Any]:
    return {
        "peak_bytes": phase.peak_bytes,
        "compiled": phase.compiled is not None,
        "compiled_peak_bytes": None if phase.compiled is None else phase.compiled.peak_bytes,
        "resident_bytes": phase.resident_bytes,
        "estimate_bytes": dataclasses.asdict(phase.estimate) | {"total": phase.estimate.total},
        "flops": phase.work.flops * topology.num_devices,
        "flops_per_device": phase.work.flops,
        "hbm_bytes": phase.work.hbm_bytes,
        "sent_bytes": phase.work.sent_bytes,
        "bound_by": phase.bound_by,
        "seconds": phase.seconds,
        "largest_arrays": [list(row) for row in phase.compiled.largest] if isinstance(phase.compiled, Program) else [],
    }


def _change_json(change: Change) -> dict[str, Any]:
    return {
        "mesh": dict(zip(AXES, change.sizes, strict=True)),
        "overrides": dict(change.overrides),
        "estimated_peak_bytes": change.peak_bytes,
        "estimated_step_seconds": change.seconds,
    }
