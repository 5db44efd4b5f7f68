"""A pod on this machine: P processes of D CPU devices each, and what can happen to them."""

import dataclasses
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax

from polyepo_jax.config.meshes import mesh_of
from polyepo_jax.runs.initial import load_params
from polyepo_jax.runs.run_directory import read_config
from polyepo_jax.sharding import MeshConfig
from tests.compilations import QUICKLY

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "tests" / "pod_config.py"
FOREVER = ("--max-steps", "100000", "--save-interval-steps", "100000")
DEADLINE_S = 240.0  # for what takes seconds: reached only by what hangs


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Polls; there is nothing to be woken by where another process writes a file."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not come about in {deadline_s:.0f} s"
        time.sleep(0.02)


def _copy(stream: IO[bytes], path: Path) -> None:
    with stream, path.open("wb") as file:
        while block := stream.read1():
            file.write(block)
            file.flush()


# Takes from what it executes the right to write where permissions forbid it, which root has. Not a preexec_fn: that
# forks, of which JAX warns once its backend is there.
_OBEY_PERMISSIONS = """
import ctypes, os, sys
prctl, drop_from_bounding_set, dac_override = ctypes.CDLL(None).prctl, 24, 1
if os.geteuid() == 0 and prctl(drop_from_bounding_set, dac_override, 0, 0, 0) != 0:
    sys.exit("the right to write anywhere cannot be dropped")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Pod:
    """Processes of one run. Use as a context manager: none is left behind.

    Args:
      num_processes, num_devices: of each.
      command: what each runs, after `python`.
      logs: directory for their output, a file each.
      environment: in addition.
      obedient: file permissions bind the processes, also those of root.
    """

    def __init__(
        self,
        num_processes: int,
        num_devices: int,
        command: Sequence[str],
        logs: Path,
        environment: Mapping[str, str] | None = None,
        obedient: bool = False,
    ):
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = [logs / f"{index}.txt" for index in range(num_processes)]
        inherited = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
        shared = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{QUICKLY} --xla_force_host_platform_device_count={num_devices}",
            "JAX_NUM_PROCESSES": str(num_processes),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
            **(environment or {}),
        }
        if obedient:
            command = ["-c", _OBEY_PERMISSIONS, *command]
        self.processes = []
        self._copiers = []
        for index, log in enumerate(self.logs):
            process = subprocess.Popen(
                [sys.executable, *command],
                env=shared | {"JAX_PROCESS_ID": str(index)},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,  # not a file, whose size `limit_files` would limit
                stderr=subprocess.STDOUT,
            )
            copier = threading.Thread(target=_copy, args=(process.stdout, log))
            copier.start()
            self.processes.append(process)
            self._copiers.append(copier)

    def __enter__(self) -> "Pod":
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for copier in self._copiers:
            copier.join()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for something that happens while all processes live."""

        def come_about() -> bool:
            now = condition()
            assert now or all(process.poll() is None for process in self.processes), f"{what}:\n{self.said()}"
            return now

        wait_until(come_about, what)

    def send(self, index: int, number: signal.Signals) -> None:
        self.processes[index].send_signal(number)

    def limit_files(self, num_bytes: int, index: int | None = None) -> None:
        """From now on no file of a process (None: of any) may grow larger: what a full disk looks like to it."""
        for process in self.processes if index is None else [self.processes[index]]:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))

    def wait(self, deadline_s: float = DEADLINE_S) -> list[int]:
        """The exit status of each process, once all have ended."""
        end = time.monotonic() + deadline_s
        for process in self.processes:
            try:
                process.wait(timeout=max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"the pod did not end in {deadline_s:.0f} s:\n{self.said()}") from None
        for copier in self._copiers:
            copier.join()
        return [process.returncode for process in self.processes]

    def said(self, index: int | None = None) -> str:
        """What a process (None: all of them) has written."""
        logs = self.logs if index is None else [self.logs[index]]
        return "".join(f"--- {log.stem}\n{log.read_text()}" for log in logs)


def training(config: Path, directory: Path, *arguments: str, module: str = "polyepo_jax.train") -> list[str]:
    """The command of a run, after `python`."""
    return ["-m", module, "--config", str(config), "--run-dir", str(directory), *arguments]


def steps_done(directory: Path) -> int:
    """The last step in the log of a run."""
    log = directory / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def start(shape: tuple[int, int], directory: Path, *arguments: str, **options: Any) -> Pod:
    """A pod of so many processes with so many devices each, that trains tests/pod_config.py."""
    return Pod(*shape, training(CONFIG, directory, *arguments), directory.with_suffix(".logs"), **options)


def run(shape: tuple[int, int], directory: Path, *arguments: str, **options: Any) -> str:
    """The same to its end, which has to be good; what process 0 wrote."""
    with start(shape, directory, *arguments, **options) as pod:
        assert pod.wait() == [0] * shape[0], pod.said()
        return pod.said(0)


def samples_of(directory: Path, step: int) -> list[dict]:
    """The logged generations of a step."""
    rows = map(json.loads, (directory / "samples.jsonl").read_text().splitlines())
    return [row for row in rows if row["step"] == step]


def checkpoints_of(directory: Path) -> list[int]:
    """The steps of the complete ones."""
    return sorted(int(path.name) for path in (directory / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def params_of(directory: Path, step: int | None = None) -> Any:
    """Of a checkpoint (None: the newest), on the host."""
    config = dataclasses.replace(read_config(directory), mesh=MeshConfig())
    return jax.device_get(load_params(directory, config, mesh_of(config), step)[0])
