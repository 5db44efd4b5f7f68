"""What a run needs of a machine before it is booked: python -m polyepo_jax.plan --config FILE --topology v5e:4x4

Compiles the programs that training runs for TPUs that need not be there, and says whether they fit, what they send
and the least time they take; for cpu and gpu:h200x4 by arithmetic alone. Config fields can be overridden as
--section.field value. Exits with 0 also where the run does not fit: that is an answer.
"""

import dataclasses
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import rich.console
import rich.table

from polyepo_jax.commands import docstring_help, take
from polyepo_jax.config import Config
from polyepo_jax.config_files import load, override
from polyepo_jax.errors import InputError, run_command
from polyepo_jax.planning.advice import Change, fewest_devices, largest_wave, nearest_change, peak_bytes
from polyepo_jax.planning.estimate import (
    SLICE_BANDWIDTH,
    Memory,
    Shape,
    Work,
    decode_work,
    num_waves,
    prefill_work,
    rollout_memory,
    rollout_work,
    shape_of,
    update_memory,
    update_work,
    wave_rows,
)
from polyepo_jax.planning.hardware import EXAMPLES, Topology, parse_topology, topology_mesh
from polyepo_jax.planning.hlo import Collective
from polyepo_jax.planning.programs import Program, TooLarge, compile_rollout, compile_update
from polyepo_jax.sharding import AXES
from polyepo_jax.startup import checked_mesh

OPTIONS = f"""\
  --config FILE      Python file with get_config(), or the config.json of a run
  --topology NAME    {EXAMPLES}
  --slices N         TPU slices of that shape, joined by the data-center network; 1 if not given
  --json FILE        also write everything as JSON
  --estimate-only    compile nothing
  --compile-advice   compile the change that is advised, too, where the run does not fit
"""

GIB = 2**30

# A run whose estimate is so many times the memory is not compiled.
HOPELESS = 1.5


@dataclasses.dataclass(frozen=True)
class Phase:
    """Update or rollout of a step.

    estimate: of memory. compiled: None where nothing was compiled. work: of a device. seconds, bound_by: at least, and
      what takes them; None where the devices' speed is unknown.
    """

    estimate: Memory
    compiled: Program | TooLarge | None
    resident_bytes: int
    work: Work
    seconds: float | None
    bound_by: str | None

    @property
    def peak_bytes(self) -> int:
        """The compiler's figure where there is one, with what lies beside the program; else the estimate."""
        if self.compiled is None or self.compiled.peak_bytes is None:
            return self.estimate.total
        return self.compiled.peak_bytes + self.resident_bytes


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is said of a run on a topology."""

    config: Config
    topology: Topology
    shape: Shape
    update: Phase
    rollout: Phase
    fits: bool
    largest_wave: int | None
    advice: Change | None
    other_devices: Change | None
    advice_peak_bytes: int | None = None


def _collectives(program: Program | TooLarge | None) -> tuple[Collective, ...]:
    return program.collectives if isinstance(program, Program) else ()


def _sent(program: Program | TooLarge | None, estimate: float, chip: Any, times: float = 1) -> float:
    """Bytes a device sends in a step, as if all went between neighbours: what crosses slices counts as slower."""
    if not isinstance(program, Program):
        return estimate
    slower = (chip.interconnect_bandwidth or 0) / SLICE_BANDWIDTH
    return times * sum(c.bytes * (slower if c.between_slices else 1) for c in program.collectives)


def _phases(config: Config, topology: Topology, shape: Shape, compiled: tuple[Any, Any]) -> tuple[Phase, Phase]:
    chip = topology.chip
    memory = update_memory(config, shape)
    work = update_work(config, shape)
    work = dataclasses.replace(work, sent_bytes=_sent(compiled[0], work.sent_bytes, chip))
    update = Phase(memory, compiled[0], 0, work, *work.seconds(chip))

    memory = rollout_memory(config, shape)
    waves, steps = num_waves(config, shape), config.max_completion_length - 1
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
    # generate takes the parameters; the optimizer's state, and a reference policy, lie beside it.
    own = memory.weights // (2 if config.algorithm.loss.needs_reference else 1)
    beside = memory.optimizer + memory.weights - own
    return update, Phase(memory, compiled[1], beside, total, seconds, bound_by)


def _compile(config: Config, topology: Topology, say: Any) -> tuple[Any, Any]:
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


def make_plan(
    config: Config, topology: Topology, compiles: bool = True, compile_advice: bool = False, say: Any = print
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
    platform = "tpu" if topology.compiles else ("cpu" if topology.name == "cpu" else "gpu")
    shape = shape_of(config, sizes, platform)
    # The estimate is not that far off: there is nothing to learn from the compiler.
    hopeless = max(peak_bytes(config, sizes, platform)) > HOPELESS * chip.hbm_bytes
    compiled: tuple[Any, Any] = (None, None)
    if topology.compiles and compiles and not hopeless:
        compiled = _compile(config, topology, say)
    update, rollout = _phases(config, topology, shape, compiled)
    refused = any(isinstance(program, TooLarge) for program in compiled)
    fits = not refused and max(update.peak_bytes, rollout.peak_bytes) <= chip.hbm_bytes

    estimates = peak_bytes(config, sizes, platform)
    # Where the compiler needs more than the estimate, so will the changes.
    scales = max(update.peak_bytes / estimates[0], 1.0), max(rollout.peak_bytes / estimates[1], 1.0)
    advice = None if fits else nearest_change(config, sizes, platform, chip, scales)
    other = None if fits or advice else fewest_devices(config, platform, chip, topology.num_devices)
    plan = Plan(
        config=config,
        topology=topology,
        shape=shape,
        update=update,
        rollout=rollout,
        fits=fits,
        largest_wave=largest_wave(config, sizes, platform, chip, scales[1]),
        advice=advice,
        other_devices=other,
    )
    if compile_advice and advice is not None and topology.compiles and compiles:
        both = _phases(
            advice.config,
            topology,
            shape_of(advice.config, advice.sizes, platform),
            _compile(advice.config, topology, say),
        )
        plan = dataclasses.replace(plan, advice_peak_bytes=max(phase.peak_bytes for phase in both))
    return plan


def step_seconds(plan: Plan) -> float | None:
    """The least time of a step: rollout, then update."""
    if plan.update.seconds is None or plan.rollout.seconds is None:
        return None
    return plan.update.seconds + plan.rollout.seconds


def _missing_bytes(plan: Plan) -> int:
    return max(plan.update.peak_bytes, plan.rollout.peak_bytes) - plan.topology.chip.hbm_bytes


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON; bytes and FLOPs are per device, unless the name says otherwise."""
    topology, devices = plan.topology, plan.topology.num_devices
    seconds = step_seconds(plan)

    def phase(p: Phase, repeats: int) -> dict[str, Any]:
        program = p.compiled if isinstance(p.compiled, Program) else None
        return {
            "peak_bytes": p.peak_bytes,
            "compiled": p.compiled is not None,
            "compiled_peak_bytes": None if p.compiled is None else p.compiled.peak_bytes,
            "resident_bytes": p.resident_bytes,
            "estimate_bytes": dataclasses.asdict(p.estimate) | {"total": p.estimate.total},
            "flops": p.work.flops * devices,
            "flops_per_device": p.work.flops,
            "hbm_bytes": p.work.hbm_bytes,
            "sent_bytes": p.work.sent_bytes,
            "bound_by": p.bound_by,
            "seconds": p.seconds,
            "largest_arrays": [] if program is None else [list(row) for row in program.largest],
            "programs_per_step": repeats,
        }

    waves = num_waves(plan.config, plan.shape)
    run = None
    if seconds is not None:
        hours = seconds * plan.config.max_steps / 3600
        run = {"steps": plan.config.max_steps, "hours": hours, "chip_hours": hours * topology.num_chips}
    advice = None
    if plan.advice is not None:
        advice = {
            "overrides": dict(plan.advice.overrides),
            "estimated_peak_bytes": plan.advice.peak_bytes,
            "compiled_peak_bytes": plan.advice_peak_bytes,
        }
    other = None
    if plan.other_devices is not None:
        other = {
            "num_devices": plan.other_devices.sizes[0] * plan.other_devices.sizes[1] * plan.other_devices.sizes[2],
            "mesh": dict(zip(AXES, plan.other_devices.sizes, strict=True)),
            "overrides": dict(plan.other_devices.overrides),
            "estimated_peak_bytes": plan.other_devices.peak_bytes,
        }
    return {
        "topology": topology.name,
        "num_slices": topology.num_slices,
        "num_chips": topology.num_chips,
        "num_devices": devices,
        "mesh": dict(zip(AXES, plan.shape.sizes, strict=True)),
        "attention": plan.shape.kernel,
        "fits": plan.fits,
        "hbm_limit_bytes": topology.chip.hbm_bytes,
        "missing_bytes": max(_missing_bytes(plan), 0),
        "wave_rows": wave_rows(plan.config, plan.shape.num_shards),
        "num_waves": waves,
        "largest_wave_rows": plan.largest_wave,
        "rollout": phase(plan.rollout, waves),
        "update": phase(plan.update, 1),
        "step_seconds": seconds,
        "run": run,
        "collectives": [
            {"program": name} | dataclasses.asdict(c) | {"count": c.count * times, "bytes": c.bytes * times}
            for name, program, times in (
                ("rollout", plan.rollout.compiled, waves),
                ("update", plan.update.compiled, 1),
            )
            for c in _collectives(program)
        ],
        "advice": advice,
        "more_devices": other,
    }


# --- what a person reads ---


def _gib(size: float | None) -> str:
    return "-" if size is None else f"{size / GIB:.2f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def render(plan: Plan, console: rich.console.Console) -> None:
    """Prints the plan."""
    topology, sizes = plan.topology, dict(zip(AXES, plan.shape.sizes, strict=True))
    slices = f" x {topology.num_slices} slices" if topology.num_slices > 1 else ""
    cores = "" if topology.num_devices == topology.num_chips else f" ({topology.num_devices} devices)"
    mesh = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    table = rich.table.Table(
        title=f"{topology.name}{slices}: {topology.num_chips} chips{cores}, mesh {mesh}; GiB of a device",
    )
    for column in ("", "update", "rollout"):
        table.add_column(column, justify="left" if not column else "right")
    for field in dataclasses.fields(Memory):
        values = (getattr(phase.estimate, field.name) for phase in (plan.update, plan.rollout))
        table.add_row(field.name, *(_gib(value) if value else "" for value in values))
    table.add_section()
    table.add_row("estimated peak", *(_gib(phase.estimate.total) for phase in (plan.update, plan.rollout)))
    compiled = [
        None if p.compiled is None or p.compiled.peak_bytes is None else p.peak_bytes
        for p in (plan.update, plan.rollout)
    ]
    table.add_row("compiled peak", *(_gib(value) for value in compiled))
    table.add_row("limit", *(_gib(topology.chip.hbm_bytes),) * 2)
    table.add_section()
    phases = plan.update, plan.rollout
    table.add_row("PFLOP, all devices", *(f"{p.work.flops * topology.num_devices / 1e15:,.1f}" for p in phases))
    table.add_row("GB sent by a device", *(f"{p.work.sent_bytes / 1e9:,.1f}" for p in phases))
    table.add_row("least time", *(_duration(p.seconds) for p in phases))
    table.add_row("bound by", *(p.bound_by or "-" for p in phases))
    console.print(table)
    _render_collectives(plan, console)
    _render_verdict(plan, console)


def _render_collectives(plan: Plan, console: rich.console.Console) -> None:
    rows = to_json(plan)["collectives"]
    if not rows:
        return
    table = rich.table.Table(title="what a device sends in a step")
    for column in ("program", "collective", "devices", "times", "GB"):
        table.add_column(column, justify="left" if column in ("program", "collective") else "right")
    for row in rows:
        if row["bytes"] >= 1e6:
            kind = row["kind"] + (" between slices" if row["between_slices"] else "")
            table.add_row(
                row["program"], kind, str(row["group_size"]), f"{row['count']:,}", f"{row['bytes'] / 1e9:,.2f}"
            )
    console.print(table)


def _render_verdict(plan: Plan, console: rich.console.Console) -> None:
    config, topology = plan.config, plan.topology

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False)

    rows = wave_rows(config, plan.shape.num_shards)
    waves = num_waves(config, plan.shape)
    most = "no wave fits" if plan.largest_wave is None else f"the largest that fits: {plan.largest_wave}"
    say(f"rollout: {waves} waves of {rows} generations (sampling.max_rows {config.sampling.max_rows}; {most})")
    if plan.fits:
        say(f"fits: {_gib(-_missing_bytes(plan))} GiB of a device are left")
    else:
        by = "" if _missing_bytes(plan) <= 0 else f" by {_gib(_missing_bytes(plan))} GiB a device"
        say(f"does not fit{by}")
        if plan.advice is not None:
            checked = "" if plan.advice_peak_bytes is None else f", compiled: {_gib(plan.advice_peak_bytes)} GiB"
            say(f"the nearest change that would, estimated at {_gib(plan.advice.peak_bytes)} GiB{checked}:")
            say(f"  {plan.advice.arguments()}")
        elif plan.other_devices is not None:
            other = plan.other_devices
            count = other.sizes[0] * other.sizes[1] * other.sizes[2]
            data, fsdp, tensor = other.sizes
            say(
                f"no micro-batch, wave, rematerialisation or mesh of {topology.num_devices} devices would; {count} "
                f"{topology.chip.name} devices would, estimated at {_gib(other.peak_bytes)} GiB:"
            )
            say(f"  --mesh.data {data} --mesh.fsdp {fsdp} --mesh.tensor {tensor} {other.arguments()}".rstrip())
        else:
            say("no micro-batch, wave, rematerialisation or mesh would: take devices with more memory")
    seconds = step_seconds(plan)
    if seconds is not None:
        hours = seconds * config.max_steps / 3600
        say(
            f"at least {_duration(seconds)} a step, every completion at its full length; {config.max_steps} steps: "
            f"{hours:,.1f} h, {hours * topology.num_chips:,.0f} chip-hours. These are bounds at the machine's full "
            "speed; count on two to three times as much, without grading"
        )


def main(arguments: Sequence[str]) -> None:
    """The command."""
    rest = list(arguments)
    config_path, topology_name = take(rest, "--config"), take(rest, "--topology")
    json_path, slices = take(rest, "--json"), take(rest, "--slices")
    flags = {flag for flag in ("--estimate-only", "--compile-advice") if flag in rest}
    rest = [argument for argument in rest if argument not in flags]
    if docstring_help(rest, config_path, __doc__, OPTIONS):
        return
    if config_path is None or topology_name is None:
        name = "--config" if config_path is None else "--topology"
        raise InputError(f"{name} is missing: python -m polyepo_jax.plan --config FILE --topology v5e:4x4")
    try:
        topology = parse_topology(topology_name, int(slices or 1))
    except ValueError as error:
        raise InputError(f"--topology {topology_name}, --slices {slices or 1}: {error}") from error
    config = load(Path(config_path), Config)
    config = override(config, rest, f"python -m polyepo_jax.plan --config {config_path}")
    if json_path is not None and not Path(json_path).absolute().parent.is_dir():
        raise InputError(f"--json {json_path}: its directory does not exist")

    # Nothing runs here but the compiler, also where there are accelerators.
    jax.config.update("jax_platforms", "cpu")
    start = time.perf_counter()
    console = rich.console.Console()
    plan = make_plan(
        config, topology, "--estimate-only" not in flags, "--compile-advice" in flags, lambda line: console.print(line)
    )
    render(plan, console)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    console.print(f"planned in {time.perf_counter() - start:.0f} s with {peak / GIB:.1f} GiB of this machine's memory")
    if json_path is not None:
        Path(json_path).write_text(json.dumps(to_json(plan), indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    run_command(main)
