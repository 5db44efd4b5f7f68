"""A run directory: whose it is, what it may be resumed with, and who holds it."""

import contextlib
import copy
import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyepo_jax.config import RunConfig
from polyepo_jax.config.files import from_json, to_json
from polyepo_jax.errors import InputError
from polyepo_jax.pods import collectives, object_storage, processes
from polyepo_jax.runs.checkpoints.files import write_durably

# What may differ when a run is resumed: where and how it runs, and what the messages of a judge that failed ask to be
# changed. Differences are logged.
RESUMABLE = (
    "max_steps",
    "save_interval_steps",
    "eval_interval_steps",
    "max_to_keep",
    "on_save_failure",
    "mesh",
    "logging",
    "algorithm.skip_zero_advantage",
    "judge.clusterer.transport",
    "judge.clusterer.cache",
    "judge.clusterer.chat_template_kwargs",
    "judge.clusterer.max_asks",
    "judge.clusterer.max_completion_length",
    "judge.clusterer.max_rows",
    "judge.clusterer.max_tokens",
    "judge.clusterer.structured_output",
    "task.verifier.num_workers",
    "judge.max_failure_frac",
    "judge.failure_window",
)


def _differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Paths at which two JSON values differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = {}
        for key in [*old, *(k for k in new if k not in old)]:
            found.update(_differences(old.get(key), new.get(key), f"{path}.{key}" if path else key))
        return found
    return {} if old == new else {path: (old, new)}


def read_config(directory: Path) -> RunConfig:
    """The config that a run directory was made with.

    Raises:
      InputError: not a run directory, or its config.json is damaged.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise InputError(f"{directory} is not a run directory: it has no config.json")
    try:
        return from_json(json.loads(path.read_text()), RunConfig)
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error


def check(directory: Path, config: RunConfig) -> list[str]:
    """Whether `config` may run in `directory`. Writes nothing.

    Returns:
      The differences that are allowed, a line each; empty for a new directory.

    Raises:
      InputError: it cannot be written to, holds other things, or belongs to a run that differs elsewhere.
    """
    existing = directory
    try:
        while not existing.exists():
            existing = existing.parent
    except PermissionError as error:
        raise InputError(f"run directory {directory} cannot be reached: no permission; choose --run-dir") from error
    if not existing.is_dir():
        raise InputError(f"run directory {directory}: {existing} is a file, not a directory; choose --run-dir")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"run directory {directory} cannot be written: no permission in {existing}; choose --run-dir")
    if not directory.exists():
        return []
    path = directory / "config.json"
    if not path.exists():
        others = sorted(p.name for p in directory.iterdir() if p.name not in (*object_storage.OWN, "config.tmp"))
        if others:
            raise InputError(f"{directory} is no run directory but holds {', '.join(others[:3])}; choose --run-dir")
        return []
    try:
        old = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON: {error}; restore it, or choose another --run-dir") from error
    return compare(directory, old, config)


def compare(directory: Path, old: dict[str, Any], config: RunConfig) -> list[str]:
    """What differs between the config that a run in `directory` had, as JSON, and the one it is to go on with.

    Returns:
      The differences that are allowed, a line each.

    Raises:
      InputError: there are others.
    """
    with contextlib.suppress(InputError):
        old = to_json(from_json(old, RunConfig))  # fields that an older version did not have get their defaults
    differences = _differences(old, to_json(config))
    lines = {key: f"{key}: {before!r} -> {now!r}" for key, (before, now) in differences.items()}
    refused = [line for key, line in lines.items() if not f"{key}.".startswith(tuple(f"{name}." for name in RESUMABLE))]
    if refused:
        raise InputError(
            f"run directory {directory} belongs to a run of another config: {'; '.join(refused)}; "
            "choose another --run-dir, or the same config to go on"
        )
    return list(lines.values())


def config_hash(config: RunConfig) -> str:
    """Identifies a config but for what may differ when its run is resumed."""
    fixed = copy.deepcopy(to_json(config))
    for name in RESUMABLE:
        *path, key = name.split(".")
        section: Any = fixed
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.pop(key, None)
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def check_shared(directory: Path, timeout_s: float = 90.0) -> None:
    """Whether all processes of a run see the same directory; all of them call this once process 0 has made it.

    Args:
      timeout_s: how long to wait for what process 0 writes there to be seen, as network file systems may take a while.

    Raises:
      InputError: some do not.
    """
    if len(collectives.gather(None)) == 1 or object_storage.has_url(directory):
        return
    path, own = directory / ".shared", secrets.token_hex(8)
    if processes.is_primary():
        path.write_text(own)
    token = collectives.gather(own)[0]
    end = time.monotonic() + timeout_s
    while not (sees := path.is_file() and path.read_text() == token) and time.monotonic() < end:
        time.sleep(0.1)
    blind = [process for process, seen in enumerate(collectives.gather(sees)) if not seen]
    if processes.is_primary():
        path.unlink()
    if blind:
        raise InputError(
            f"run directory {directory}: processes {', '.join(map(str, blind))} do not see what process 0 writes "
            "there: choose a --run-dir on a file system that all machines share, or a URL such as gs://bucket/run"
        )


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Makes the directory and keeps other training processes out of it.

    Raises:
      InputError: another process trains in it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("w")
    except OSError as error:
        raise InputError(f"run directory {directory} cannot be written ({error.strerror}); choose --run-dir") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"another process is running in {directory}: wait for it, or choose --run-dir") from error
        yield


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, as `write_durably` does."""
    write_durably(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def default_directory(config_path: Path) -> Path:
    """runs/<folder>/<name> for configs/<folder>/<name>.py; the run directory itself for its own config.json."""
    if config_path.is_dir():
        return config_path
    if config_path.name == "config.json":
        return config_path.parent
    return Path("runs") / config_path.resolve().parent.name / config_path.stem
