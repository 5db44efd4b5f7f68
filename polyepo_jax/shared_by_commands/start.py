"""The command line of the training commands."""

import ctypes
import importlib.metadata
import importlib.util
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from polyepo_jax.config.files import AnyConfig, docstring_of, load, override, to_json
from polyepo_jax.errors import InputError
from polyepo_jax.pods import collectives, object_storage, peers
from polyepo_jax.runs import signals
from polyepo_jax.runs.model_shape import resolve
from polyepo_jax.runs.run_directory import default_directory

OPTIONS = """\
  --config FILE   Python file with get_config(), or the config.json of a run
  --run-dir DIR   where the run lives, a path or a URL such as gs://bucket/run; runs/<folder>/<name of the config> if
                  not given
  --profile       write a jax.profiler trace of a few steps to DIR/profile
  --stopped-exit-code N
                  status to exit with where a signal stopped the run before its end; 0 if not given
  --coordinator-address HOST:PORT, --num-processes N, --process-id I
                  of a run of several processes, where SLURM or a TPU's metadata do not say them; or the environment
                  (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID)
"""
PROCESS_FLAGS = ("--coordinator-address", "--num-processes", "--process-id")


def take(arguments: list[str], flag: str) -> str | None:
    """Removes `flag value` or `flag=value` from the arguments; the last one counts."""
    value, rest = None, []
    stream = iter(arguments)
    for argument in stream:
        name, has_value, inline = argument.partition("=")
        if name.replace("_", "-") != flag:
            rest.append(argument)
            continue
        value = inline if has_value else next(stream, None)
        if not value or (not has_value and value.startswith("--")):
            raise InputError(f"{flag} needs a value")
    arguments[:] = rest
    return value


def keep_compilations() -> None:
    """Compiled programs are kept for later runs of the same shapes, where JAX is not told otherwise.

    JAX_COMPILATION_CACHE_DIR says where (it may be a URL), else it is a folder of the user's cache; with
    JAX_ENABLE_COMPILATION_CACHE=false nothing is kept.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = caches / "polyepo_jax" / "compilations"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that is not there or not to be written: every run compiles
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))


# mallopt's names in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_memory() -> None:
    """On CPUs, memory that a program has freed is kept for the next. To be called before JAX makes its threads.

    glibc gives large blocks back to the system at every step and takes them again at the next: an update of a small
    model spends a tenth of its time on the page faults. Up to 2 GiB that are free at the end of the heap are now kept.
    Where the environment sets MALLOC_... or GLIBC_TUNABLES, it is left to that; without glibc, or where JAX was
    installed for accelerators and is not told to leave them alone, nothing is done.
    """
    accelerators = importlib.util.find_spec("libtpu") or importlib.metadata.entry_points(group="jax_plugins")
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    if (platforms != "cpu") if platforms else accelerators:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    told = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if mallopt is None or told:
        return
    for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TOP_PAD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(option, value)


def docstring_help(arguments: Sequence[str], config_path: str | None, help_text: str | None, options: str) -> bool:
    """Prints a command's own part of --help, where it is asked for.

    Returns:
      Whether that was all: without a config there are no fields to list.
    """
    if not {"-h", "--help"} & set(arguments):
        return False
    print(f"{help_text}\n{options}")
    if config_path is None:
        print("With --config, --help also lists the fields that can be overridden.")
        return True
    print(f"{config_path}: {docstring_of(Path(config_path))}\n")
    return False


def start(
    module: str,
    config_class: type[AnyConfig],
    run: Callable[[AnyConfig, Path, str, bool], bool],
    arguments: Sequence[str],
    help_text: str | None,
) -> None:
    """Reads `--config FILE [--run-dir DIR] [--profile] [--section.field value ...]` and what OPTIONS lists, and runs.

    Raises:
      InputError: arguments or config are not what they should be.
    """
    rest = list(arguments)
    config_path, run_dir = take(rest, "--config"), take(rest, "--run-dir")
    stopped_exit_code = _status(take(rest, "--stopped-exit-code"))
    places = {flag: take(rest, flag) for flag in PROCESS_FLAGS}
    again = list(arguments)  # without what differs between processes
    for flag in PROCESS_FLAGS:
        take(again, flag)
    profile = "--profile" in rest
    rest = [argument for argument in rest if argument != "--profile"]
    if docstring_help(rest, config_path, help_text, OPTIONS):
        sys.exit(0)
    if config_path is None:
        raise InputError(f"--config is missing: python -m {module} --config configs/polynomial/....py")
    keep_compilations()
    keep_memory()
    peers.start(places)
    resume_command = shlex.join([sys.executable, "-m", module, *again])
    if peers.are_watched():
        signals.listen(lambda number: _end_early(number, stopped_exit_code, resume_command))
    with collectives.agreed():
        config = load(Path(config_path), config_class)
        config = override(config, rest, f"python -m {module} --config {config_path}")
        directory = (
            default_directory(Path(config_path)) if run_dir is None else object_storage.working_copy(Path(run_dir))
        )
        config = resolve(config, directory)
    collectives.check_same(config=to_json(config))
    complete = run(config, directory, resume_command, profile)
    if not complete and stopped_exit_code:
        sys.exit(stopped_exit_code)


def _end_early(number: int, status: int, resume_command: str) -> None:
    """Where a process is told to stop before the run has come to its steps; from then on runs/stopping.py hears it."""
    name = signal.Signals(number).name
    peers.end(status, f"{name} before the first step, so that nothing is lost; go on with: {resume_command}")


def _status(text: str | None) -> int:
    if text is None:
        return 0
    if not text.isdecimal() or int(text) > 255:
        raise InputError(f"--stopped-exit-code must be a status from 0 to 255, got {text}")
    return int(text)
