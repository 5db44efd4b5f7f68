"""Many processes, one run: how they find each other, which one this is, and the short texts that they share.

All of it is `jax.distributed`. In a single process every function here is trivial, so that callers need not ask.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax._src.distributed import global_state

from polyepo_jax.errors import RUN_AGAIN, InputError, TransientError

DAY_MS = 24 * 3600 * 1000
COORDINATOR, NUM_PROCESSES, PROCESS_ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


@dataclasses.dataclass(frozen=True)
class Placement:
    """Which of the processes of a run this one is, as flags or the environment say.

    Attributes:
      coordinator_address: host:port of process 0, which every process can reach and where it listens.
      num_processes: of the run.
      process_id: 0 to num_processes - 1.
    """

    coordinator_address: str
    num_processes: int
    process_id: int

    def __post_init__(self):
        host, _, port = self.coordinator_address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(f"the coordinator's address must be HOST:PORT, got {self.coordinator_address!r}")
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"the process id must be from 0 to {self.num_processes - 1}, for there are {self.num_processes} "
                f"processes, got {self.process_id}"
            )


def placement(given: Mapping[str, str | None], environment: Mapping[str, str]) -> Placement | None:
    """What flags, or else the environment, say; None where they say nothing or that this process is alone.

    Args:
      given: --coordinator-address, --num-processes and --process-id; None where not given.
      environment: may have JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      InputError: one is missing, or is not what it should be.
    """
    flags = dict(zip(("--coordinator-address", "--num-processes", "--process-id"), _NAMES, strict=True))
    values = {flag: given.get(flag) or environment.get(name) for flag, name in flags.items()}
    address, count, index = values.values()
    if count == "1" and index in (None, "0"):
        return None
    if not any(values.values()):
        return None
    missing = [f"{flag} (or {flags[flag]})" for flag, value in values.items() if not value]
    if missing:
        said = ", ".join(f"{flag} {value}" for flag, value in values.items() if value)
        raise InputError(f"{said}: a run of several processes also needs {' and '.join(missing)}")
    assert address is not None
    assert count is not None
    assert index is not None
    if not (count.isdecimal() and index.isdecimal()):
        raise InputError(f"--num-processes and --process-id must be whole numbers, got {count} and {index}")
    try:
        return Placement(address, int(count), int(index))
    except ValueError as error:
        raise InputError(str(error)) from error


_NAMES = (COORDINATOR, NUM_PROCESSES, PROCESS_ID)


def _on_tpu_host() -> bool:
    """Whether chips are attached and may be used."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if (platforms and "tpu" not in platforms) or importlib.util.find_spec("libtpu") is None:
        return False
    return any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def initialize(given: Mapping[str, str | None], timeout_s: int, heartbeat_timeout_s: int) -> None:
    """Joins the other processes of the run, if there are any; before anything else asks for a device.

    Where neither flags nor environment say who this process is, SLURM (several tasks) and a TPU host's metadata do.

    Args:
      given: as of `placement`.
      timeout_s: how long to wait for the others. If they do not come, the C++ runtime aborts this process.
      heartbeat_timeout_s: after which it aborts this process where another one is silent: longer than those who have
        more to say about it need (peers.py).

    Raises:
      InputError: the arguments are not what they should be, or the runtime does not start, on a port in use for one.
      TransientError: it does not start where all is detected, so that no user can have said something wrong: names of
        hosts are not known yet, or a metadata server does not answer.
    """
    place = placement(given, os.environ)
    alone = "1" in (given.get("--num-processes"), os.environ.get(NUM_PROCESSES))
    in_slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in os.environ
    if place is None and (alone or not (in_slurm or _on_tpu_host())):
        return
    # SIGTERM is ours: the run saves and ends (runs/stopping.py). The service would swallow it.
    jax.config.update("jax_enable_preemption_service", False)
    explicit = {} if place is None else {**dataclasses.asdict(place), "cluster_detection_method": "deactivate"}
    try:
        jax.distributed.initialize(
            **explicit, initialization_timeout=timeout_s, heartbeat_timeout_seconds=heartbeat_timeout_s
        )
    except (OSError, RuntimeError, ValueError) as error:
        why = f"jax.distributed did not start ({(str(error).strip() or type(error).__name__).splitlines()[0]:.300})"
        if place is None and not isinstance(error, ValueError):
            raise TransientError(f"{why}; exit {RUN_AGAIN}: the same command tries again") from error
        who = "the other processes" if place is None else f"process {place.process_id} of {place.num_processes}"
        raise InputError(
            f"{who}: {why}: all processes must be started, with the same coordinator address and number of processes "
            f"and ids of their own; {NUM_PROCESSES}=1 runs a process by itself"
        ) from error


def is_primary() -> bool:
    """Whether this is process 0, which writes what a run writes once."""
    return jax.process_index() == 0


class KeyValues:
    """Short texts that every process can set and read at any time, from any thread; process 0 keeps them.

    Unlike what is in collectives.py this works while a process hangs in one. Every method raises
    jax.errors.JaxRuntimeError once process 0 is gone, and hangs while it is frozen.
    """

    def __init__(self, client: Any):
        self._client = client

    def set(self, key: str, value: str) -> None:
        self._client.key_value_set(key, value, allow_overwrite=True)

    def get(self, key: str) -> str | None:
        """The value; None if there is none."""
        try:
            return self._client.key_value_try_get(key)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def wait_for(self, key: str, timeout_s: float) -> str | None:
        """The value, as soon as there is one; None if there was none in time."""
        try:
            return self._client.blocking_key_value_get(key, int(timeout_s * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise

    def below(self, prefix: str) -> dict[str, str]:
        """All values whose keys begin with `prefix`, which ends with a slash; by the rest of the key."""
        return {key.removeprefix(prefix): value for key, value in self._client.key_value_dir_get(prefix)}

    def delete(self, key: str) -> None:
        """Of a key that ends with a slash: all that begin with it."""
        self._client.key_value_delete(key)

    def barrier(self, key: str, timeout_ms: int) -> None:
        """Waits until all processes wait here.

        Raises:
          jax.errors.JaxRuntimeError: they did not come in time.
        """
        self._client.wait_at_barrier(key, timeout_ms)


def key_values() -> KeyValues | None:
    """Those of this run; None for a process by itself."""
    client = global_state.client
    return None if client is None or num_processes() == 1 else KeyValues(client)


def num_processes() -> int:
    """How many joined the run; unlike jax.process_count() this starts no backend."""
    return global_state.num_processes or 1


def process_id() -> int:
    """Which of them this is; 0 keeps the key-value store."""
    return global_state.process_id or 0
