"""The command line of the training commands."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from polyepo_jax.config_files import AnyConfig, docstring_of, load, override
from polyepo_jax.errors import InputError
from polyepo_jax.run_directory import default_directory

OPTIONS = """\
  --config FILE   Python file with get_config(), or the config.json of a run
  --run-dir DIR   where the run lives; runs/<folder>/<name of the config> if not given
  --profile       write a jax.profiler trace of a few steps to DIR/profile
"""


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
    run: Callable[[AnyConfig, Path, str, bool], None],
    arguments: Sequence[str],
    help_text: str | None,
) -> None:
    """Reads `--config FILE [--run-dir DIR] [--profile] [--section.field value ...]` and runs.

    Raises:
      InputError: arguments or config are not what they should be.
    """
    rest = list(arguments)
    config_path, run_dir = take(rest, "--config"), take(rest, "--run-dir")
    profile = "--profile" in rest
    rest = [argument for argument in rest if argument != "--profile"]
    if docstring_help(rest, config_path, help_text, OPTIONS):
        sys.exit(0)
    if config_path is None:
        raise InputError(f"--config is missing: python -m {module} --config configs/polynomial/....py")
    config = load(Path(config_path), config_class)
    config = override(config, rest, f"python -m {module} --config {config_path}")
    directory = default_directory(Path(config_path)) if run_dir is None else Path(run_dir)
    run(config, directory, shlex.join([sys.executable, "-m", module, *arguments]), profile)
