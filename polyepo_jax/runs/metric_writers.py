"""Where the numbers and generations of steps are written: JSON lines, TensorBoard, Weights & Biases."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

Metrics = Mapping[str, float]


class Writer(Protocol):
    """Takes the metrics of each step, in order."""

    def write(self, step: int, metrics: Metrics) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line, `step` first. Undefined numbers are null.

    Args:
      path: of the file; lines of steps after `keep_through` are cut off, a half-written last line too.
      keep_through: the step of the checkpoint that the run goes on from.
    """

    def __init__(self, path: Path, keep_through: int):
        # In place of the old file only when complete: a crash here must not lose the log.
        temporary = path.with_suffix(".tmp")
        with temporary.open("w") as file:
            # Line by line: all generations of a long run are more than memory should hold.
            file.writelines(line for line in _complete_lines(path) if json.loads(line)["step"] <= keep_through)
        os.replace(temporary, path)
        self._file = path.open("a")

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Returns when all that was written is on the disk: a checkpoint must not be newer than its log."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        # Each line was flushed: what is left is one that could not be written, of which its writer has been told.
        with contextlib.suppress(OSError):
            self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON-lines file."""
    return [json.loads(line) for line in _complete_lines(path)]


def _complete_lines(path: Path) -> Iterator[str]:
    """As they are, none of a file that is not there; an interrupted write may have left half a line at its end."""
    if path.exists():
        with path.open() as file:
            yield from (line for line in file if line.endswith("\n"))


class TensorBoard:
    """Event files; steps after `keep_through` of an earlier process are purged."""

    def __init__(self, directory: Path, keep_through: int):
        # Where torch is installed this imports it, and takes seconds: only for whom wants it.
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=keep_through + 1)

    def write(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        # What a checkpoint continues from must not be lost with the process.
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases run (extra `wandb`). Its key comes from the environment.

    Raises:
      ValueError: wandb is not installed.
    """

    def __init__(self, project: str, directory: Path, config: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                f"logging.wandb_project = {project!r} needs the package wandb: pip install 'polyepo-jax[wandb]', "
                "or set logging.wandb_project to None"
            ) from error
        # The run's identity is its directory, so that a resumed run continues the same page.
        path = str(directory.absolute())
        identity = hashlib.sha256(path.encode()).hexdigest()[:16]
        name = "/".join(directory.absolute().parts[-2:])
        self._run = wandb.init(project=project, id=identity, name=name, dir=path, config=config, resume="allow")

    def write(self, step: int, metrics: Metrics) -> None:
        self._run.log({k: v for k, v in metrics.items() if math.isfinite(v)}, step=step)

    def close(self) -> None:
        self._run.finish()
