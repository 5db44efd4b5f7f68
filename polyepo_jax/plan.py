"""What a run needs of a machine before it is booked: python -m polyepo_jax.plan --config FILE --topology v5e:4x4

Compiles the programs that training runs for TPUs that need not be there, and says whether they fit, what they send
and the least time they take; for cpu and gpu:h200x4 by arithmetic alone. Config fields can be overridden as
--section.field value. Exits with 0 also where the run does not fit: that is an answer.
"""

import json
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import rich.console

from polyepo_jax.config import Config
from polyepo_jax.config.files import load, override
from polyepo_jax.errors import InputError, run_command
from polyepo_jax.planning.hardware import EXAMPLES, Topology, parse_topology
from polyepo_jax.planning.plan import make_plan, to_json
from polyepo_jax.planning.render import render
from polyepo_jax.runs.model_shape import resolve
from polyepo_jax.shared_by_commands.start import docstring_help, take

OPTIONS = f"""\
  --config FILE      Python file with get_config(), or the config.json of a run
  --topology NAME    {EXAMPLES}
  --slices N         TPU slices of that shape, joined by the data-center network; 1 if not given
  --json FILE        also write everything as JSON
  --estimate-only    compile nothing
  --compile-advice   compile the change that is advised, too, where the run does not fit
"""

FLAGS = ("--estimate-only", "--compile-advice")


def _topology(name: str, slices: str) -> Topology:
    try:
        return parse_topology(name, int(slices))
    except ValueError as error:
        number = slices.removeprefix("-").isdigit()
        reason = error if number else f"expected a number of slices, got {slices!r}"
        raise InputError(f"--topology {name}, --slices {slices}: {reason}") from error


def _check_writable(path: Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"--json {path}: its directory does not exist")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise InputError(f"--json {path}: it cannot be written")


def main(arguments: Sequence[str]) -> None:
    """The command."""
    rest = list(arguments)
    config_path, topology_name = take(rest, "--config"), take(rest, "--topology")
    json_path, slices = take(rest, "--json"), take(rest, "--slices")
    flags = {flag for flag in FLAGS if flag in rest}
    rest = [argument for argument in rest if argument not in flags]
    if docstring_help(rest, config_path, __doc__, OPTIONS):
        return
    if config_path is None:
        raise InputError("--config is missing: python -m polyepo_jax.plan --config FILE --topology v5e:4x4")
    config = load(Path(config_path), Config)
    # Where help is asked for, it ends here.
    config = resolve(override(config, rest, f"python -m polyepo_jax.plan --config {config_path}"))
    if topology_name is None:
        raise InputError(f"--topology is missing: python -m polyepo_jax.plan --config {config_path} --topology v5e:4x4")
    topology = _topology(topology_name, slices or "1")
    if json_path is not None:
        _check_writable(Path(json_path))

    # Nothing runs here but the compiler, also where there are accelerators.
    jax.config.update("jax_platforms", "cpu")
    start = time.perf_counter()
    console = rich.console.Console()
    plan = make_plan(config, topology, "--estimate-only" not in flags, "--compile-advice" in flags, console.print)
    render(plan, console)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    console.print(f"planned in {time.perf_counter() - start:.0f} s with {peak:.1f} GiB of this machine's memory")
    if json_path is not None:
        Path(json_path).write_text(json.dumps(to_json(plan), indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    run_command(main)
