"""A plan as a person reads it."""

import dataclasses

import rich.console
import rich.table

from polyepo_jax.config import MeshJudge
from polyepo_jax.planning.estimate import Memory
from polyepo_jax.planning.hardware import GIB
from polyepo_jax.planning.plan import HOPELESS, Plan
from polyepo_jax.planning.rollout_estimate import num_waves, wave_rows
from polyepo_jax.sharding import AXES

MIB = 2**20


def size(count: float) -> str:
    """Bytes of memory."""
    return f"{count / GIB:,.2f} GiB" if abs(count) >= GIB / 10 else f"{count / MIB:,.1f} MiB"


def amount(value: float, unit: str) -> str:
    """With three digits and a prefix: 1.99e17 FLOP are 199 PFLOP."""
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    power = 0
    while power < len(prefixes) - 1 and float(f"{value:.3g}") >= 1000:
        value, power = value / 1000, power + 1
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {prefixes[power]}{unit}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def render(plan: Plan, console: rich.console.Console) -> None:
    """Prints the plan."""
    topology = plan.topology
    slices = f" x {topology.num_slices} slices" if topology.num_slices > 1 else ""
    chips = f"{topology.num_chips} {'chip' if topology.num_chips == 1 else 'chips'}"
    cores = "" if topology.num_devices == topology.num_chips else f" of {topology.num_devices} devices"
    mesh = " x ".join(f"{axis} {length}" for axis, length in zip(AXES, plan.shape.sizes, strict=True))
    _say(console, f"{topology.name}{slices}: {chips}{cores}, mesh {mesh}, attention {plan.shape.kernel}")
    console.print(_memory(plan))
    console.print(_work(plan))
    collectives = _collectives(plan)
    if collectives.row_count:
        console.print(collectives)
    for line in [*_verdict(plan), *_waves(plan), *_ahead(plan), *_time(plan)]:
        _say(console, line)


def _say(console: rich.console.Console, line: str) -> None:
    # A terminal wraps by itself; a command that is broken into lines cannot be copied.
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def _table(*columns: str, left: int = 1) -> rich.table.Table:
    table = rich.table.Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right")
    return table


def _memory(plan: Plan) -> rich.table.Table:
    phases = plan.update, plan.rollout
    table = _table("memory of a device", "update", "rollout")
    for field in dataclasses.fields(Memory):
        values = [getattr(phase.estimate, field.name) for phase in phases]
        if field.name != "in_flight" or any(values):
            table.add_row(field.name.replace("_", " "), *(size(value) if value else "" for value in values))
    table.add_section()
    table.add_row("estimated peak", *(size(phase.estimate.total) for phase in phases))
    if any(phase.compiled is not None for phase in phases):
        compiled = [phase.compiled_bytes for phase in phases]
        table.add_row("compiled peak", *("refused" if value is None else size(value) for value in compiled))
    table.add_row("limit", *(size(plan.topology.chip.hbm_bytes),) * 2)
    return table


def _work(plan: Plan) -> rich.table.Table:
    phases = plan.update, plan.rollout
    table = _table("a step", "update", "rollout")
    table.add_row("all devices compute", *(amount(p.work.flops * plan.topology.num_devices, "FLOP") for p in phases))
    table.add_row("a device sends", *(amount(p.work.sent_bytes, "B") for p in phases))
    table.add_row("least time", *(duration(p.seconds) for p in phases))
    table.add_row("bound by", *(p.bound_by or "unknown" for p in phases))
    return table


def _collectives(plan: Plan) -> rich.table.Table:
    table = _table("program", "collective", "devices", "times a step", "a device sends", left=2)
    for name, c in plan.collectives():
        if c.bytes >= 1e6 or c.between_slices:
            kind = c.kind + (" between slices" if c.between_slices else "")
            table.add_row(name, kind, str(c.group_size), f"{c.count:,}", amount(c.bytes, "B"))
    return table


def _verdict(plan: Plan) -> list[str]:
    """Whether it fits, by how much, and what would."""
    topology = plan.topology
    if plan.fits:
        basis = "" if plan.update.compiled else " by the estimate"
        return [f"fits{basis}: at the larger peak {size(-plan.missing_bytes)} of a device are left"]
    lines = []
    for name, phase in (("update", plan.update), ("rollout", plan.rollout)):
        missing = phase.peak_bytes - topology.chip.hbm_bytes
        if missing > 0:
            lines.append(f"does not fit: the {name} lacks {size(missing)} of a device's memory")
    lines = lines or ["does not fit: the compiler refuses it, without a number"]
    if topology.compiles and not plan.update.compiled and plan.missing_bytes > (HOPELESS - 1) * topology.chip.hbm_bytes:
        lines.append(f"not compiled, since the estimate is above {HOPELESS} times the memory")
    if plan.advice is not None:
        checked = "" if plan.advice_peak_bytes is None else f", compiled at {size(plan.advice_peak_bytes)}"
        lines.append(f"the nearest change that fits, estimated at {size(plan.advice.peak_bytes)}{checked}:")
        lines.append(f"  {plan.advice.arguments()}")
        return lines
    lines.append(f"no micro-batch, number of slots, rematerialisation or mesh of {topology.num_devices} devices fits")
    if plan.more_devices is not None:
        more, change = plan.more_devices.topology, plan.more_devices.change
        slices = f" --slices {more.num_slices}" if more.num_slices > 1 else ""
        lines.append(f"{more.num_devices} devices do, estimated at {size(change.peak_bytes)} of each:")
        lines.append(f"  --topology {more.name}{slices} {change.arguments()}".rstrip())
    else:
        lines.append("take devices with more memory, or a smaller model")
    return lines


def _waves(plan: Plan) -> list[str]:
    count, rows = num_waves(plan.config, plan.shape), wave_rows(plan.config, plan.shape.num_shards)
    limit = plan.config.sampling.max_rows
    most = "none fits" if plan.largest_wave is None else f"{plan.largest_wave} would fit"
    all_rows = plan.config.prompts_per_step * plan.config.num_generations
    passes = "" if count == 1 else f", {count} times over if all are of full length"
    return [f"a step samples {all_rows:,} generations in {rows} slots{passes} (sampling.max-rows is {limit}; {most})"]


def _ahead(plan: Plan) -> list[str]:
    """What is in flight, and the time that a judge has for it."""
    count = plan.config.algorithm.staleness
    if not count:
        return []
    steps = "1 step" if count == 1 else f"{count} steps"
    bytes_in_flight = size(plan.update.estimate.in_flight)
    lines = [
        f"rollouts are sampled {steps} ahead with the parameters at hand: {bytes_in_flight} of a device are in flight, "
        "and no second copy of the parameters is needed"
    ]
    if isinstance(plan.config.judge.clusterer, MeshJudge):
        lines.append("a judge on the mesh is not hidden by it: it takes its turn on the same devices")
    elif plan.hidden_seconds is not None:
        lines.append(f"a step waits for no judge that takes less than {duration(plan.hidden_seconds)}")
    return lines


def _time(plan: Plan) -> list[str]:
    if plan.step_seconds is None or plan.run_hours is None:
        return []
    chip_hours = plan.run_hours * plan.topology.num_chips
    return [
        f"at least {duration(plan.step_seconds)} a step with every completion at its full length; "
        f"{plan.config.max_steps:,} steps take {duration(plan.run_hours * 3600)}, {chip_hours:,.0f} chip-hours",
        "(bounds at the machine's full speed: count on two to three times as much, without grading)",
    ]
