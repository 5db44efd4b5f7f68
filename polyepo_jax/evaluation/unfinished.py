"""Generations of an evaluation that is under way: the same command again goes on with them."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp

from polyepo_jax.evaluation.sampling import Sampled

FOLDER = "eval_unfinished"


def checksum(params: Any) -> str:
    """Tells parameters from others, exactly, and on every mesh alike."""

    @jax.jit
    def sums(params):
        def bits(x):
            return jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize])

        # Odd factors, so that values that change places are seen; a sum of integers knows no order.
        return [
            jnp.sum(bits(x).astype(jnp.uint32) * (2 * jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape) + 1))
            for x in jax.tree.leaves(params)
        ]

    return hashlib.sha256(json.dumps([int(x) for x in sums(params)]).encode()).hexdigest()[:16]


class Unfinished:
    """What this process has sampled so far, in files of its own in `directory`. Use as a context manager.

    Args:
      directory: of the result.
      identity: all that the generations depend on, as JSON. What was kept of another evaluation is thrown away.

    Raises:
      OSError: the directory cannot be read or written.

    Attributes:
      kept: Sampled problems from before, by benchmark.
      discarded: whether there was something of another evaluation.
    """

    def __init__(self, directory: Path, identity: dict[str, Any]):
        folder, own, num_processes = directory / FOLDER, jax.process_index(), jax.process_count()
        # Of a run with more processes than this one: each of those files has one reader now.
        paths = [path for path in folder.glob("*.jsonl") if path.stem.isdecimal()]
        self._paths = [path for path in paths if int(path.stem) % num_processes == own]
        self.kept: dict[str, list[Sampled]] = {}
        self.discarded = False
        for path in self._paths:
            self._read(path, identity)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{own}.jsonl"
        self._paths = [*{*self._paths, path}]
        # Written anew: what is half a line, or of another evaluation, is gone then.
        temporary = path.with_suffix(".tmp")
        with temporary.open("w") as file:
            file.write(json.dumps(identity) + "\n")
            for benchmark, problems in self.kept.items():
                for sampled in problems:
                    self._write(file, benchmark, sampled)
        temporary.replace(path)
        for other in self._paths:
            if other != path:
                other.unlink()
        self._file = path.open("a")
        self._folder, self._path = folder, path

    def _read(self, path: Path, identity: dict[str, Any]) -> None:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file):
                try:
                    value = json.loads(line)
                except ValueError:
                    return  # the process ended while it wrote this
                if number == 0 and value != identity:
                    self.discarded = True
                    return
                if number:
                    self.kept.setdefault(value.pop("benchmark"), []).append(Sampled(**value))

    @staticmethod
    def _write(file: TextIO, benchmark: str, sampled: Sampled) -> None:
        file.write(json.dumps({"benchmark": benchmark, **dataclasses.asdict(sampled)}) + "\n")

    def add(self, benchmark: str, sampled: Sampled) -> None:
        """Keeps another problem, whatever becomes of this process."""
        self._write(self._file, benchmark, sampled)
        self._file.flush()

    def remove(self) -> None:
        """When the result is written."""
        self._path.unlink(missing_ok=True)
        if not any(self._folder.iterdir()):
            self._folder.rmdir()

    def __enter__(self) -> "Unfinished":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._file.close()
