"""Generations of an evaluation that is under way: the same command again goes on with them."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp

from polyepo_jax.errors import InputError
from polyepo_jax.evaluation.sampling import Sampled
from polyepo_jax.evaluation.writing import writing

FOLDER = "eval_unfinished"


def checksum(params: Any) -> str:
    """Tells parameters from others, whatever the mesh, as well as 32 bits for each array can."""

    def mixed(x):  # MurmurHash3's finalizer: each bit of x changes half of the result's
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    @jax.jit
    def sums(params):
        def bits(x):
            return jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize])

        # A sum of integers knows no order of summation; places are mixed in, so that values that change them are seen.
        return [
            jnp.sum(mixed(mixed(jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)) + bits(x).astype(jnp.uint32)))
            for x in jax.tree.leaves(params)
        ]

    return hashlib.sha256(json.dumps([int(x) for x in sums(params)]).encode()).hexdigest()[:16]


class Unfinished:
    """What this process has sampled so far, in a file of its own in `directory`. Use as a context manager.

    Each evaluation has a folder, so that others, under way or interrupted, keep theirs.

    Args:
      directory: of the result.
      identity: all that the generations depend on, as JSON.

    Raises:
      InputError: the same evaluation is under way, or the directory cannot be read or written.

    Attributes:
      kept: Sampled problems from before, by benchmark.
      others: whether there is something of other evaluations.
    """

    def __init__(self, directory: Path, identity: dict[str, Any]):
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self._folder = directory / FOLDER / digest
        self.kept: dict[str, list[Sampled]] = {}
        with contextlib.ExitStack() as stack:
            try:
                self._open(stack)
            except OSError as error:
                raise InputError(f"{self._folder} cannot be read or written: {error.strerror}") from error
            self._stack = stack.pop_all()
        self.others = any(path != self._folder for path in self._folder.parent.iterdir())

    def _open(self, stack: contextlib.ExitStack) -> None:
        own, num_processes = jax.process_index(), jax.process_count()
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context((self._folder / f"{own}.lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            where = self._folder.parent.parent
            raise InputError(f"the same evaluation is under way in {where}: wait for its end") from None
        # Of a run with more processes than this one: each of those files has one reader now.
        paths = [path for path in self._folder.glob("*.jsonl") if path.stem.isdecimal()]
        paths = [path for path in paths if int(path.stem) % num_processes == own]
        for path in paths:
            self._read(path)
        self._path = self._folder / f"{own}.jsonl"
        # Written anew: what is half a line is gone then.
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w") as file:
            for benchmark, problems in self.kept.items():
                for sampled in problems:
                    self._write(file, benchmark, sampled)
        temporary.replace(self._path)
        for other in paths:
            if other != self._path:
                other.unlink()
        self._file = stack.enter_context(self._path.open("a"))

    def _read(self, path: Path) -> None:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    value = json.loads(line)
                except ValueError:
                    return  # the process ended while it wrote this
                self.kept.setdefault(value.pop("benchmark"), []).append(Sampled(**value))

    @staticmethod
    def _write(file: TextIO, benchmark: str, sampled: Sampled) -> None:
        file.write(json.dumps({"benchmark": benchmark, **dataclasses.asdict(sampled)}) + "\n")

    def add(self, benchmark: str, sampled: Sampled) -> None:
        """Keeps another problem, whatever becomes of this process.

        Raises:
          RunError: it cannot be written.
        """
        with writing(self._folder):
            self._write(self._file, benchmark, sampled)
            self._file.flush()

    def remove(self) -> None:
        """When the result is written."""
        # Other processes tidy up at the same time.
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
            if not any(self._folder.glob("*.jsonl")):
                for lock in self._folder.glob("*.lock"):
                    lock.unlink(missing_ok=True)
            self._folder.rmdir()
            self._folder.parent.rmdir()

    def __enter__(self) -> "Unfinished":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()
