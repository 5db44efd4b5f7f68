"""Sampling many prompts wave after wave, so that the devices hold the cache of one wave at a time."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np

from polyepo_jax.errors import Interrupted
from polyepo_jax.sharding import Mesh, any_process, shard_rows
from polyepo_jax.types import Prompts

Tree = TypeVar("Tree")


def prompts_per_wave(num_prompts: int, num_generations: int, max_rows: int, num_shards: int = 1) -> int:
    """Prompts of each wave: as few waves as `max_rows` allows, all of one size.

    Args:
      max_rows: generations of a wave at most; those of one prompt are sampled together, however many.
      num_shards: devices that the rows are cut over; a wave's rows are a multiple where `max_rows` has room for it.
    """
    step = num_shards // math.gcd(num_generations, num_shards)
    most = max(max_rows // num_generations, 1)
    if most < step:
        step = 1  # no room for a multiple
    most = most // step * step
    num_waves = -(-num_prompts // most)
    size = -(-num_prompts // num_waves)
    return -(-size // step) * step


def _wave_rows(num_prompts: int, start: int, size: int) -> np.ndarray:
    """The prompts of a wave. The last one is filled up with its first prompt, so that all share one compilation."""
    rows = start + np.arange(size)
    return np.where(rows < num_prompts, rows, start)


def in_waves(run: Callable[[Prompts], Tree], prompts: Prompts, mesh: Mesh, size: int) -> Iterator[Tree]:
    """`run` for all prompts, `size` at a time, in their order.

    The first wave is dispatched at once, every further one before its predecessor is yielded, so that the devices have
    work while the caller deals with what it has.

    Args:
      run: takes prompts on the mesh and returns arrays whose leading axis they are.
      prompts: NumPy arrays.

    Yields:
      What `run` returns for the next prompts, on the devices, cut as `shard_rows` does, and possibly still being
      computed.
    """
    num_prompts = len(prompts.ids_P)

    def dispatch(start: int) -> Tree:
        count = min(size, num_prompts - start)
        rows = _wave_rows(num_prompts, start, size)
        wave: Prompts = shard_rows(mesh, jax.tree.map(lambda x: x[rows], prompts))
        with jax.set_mesh(mesh):
            result = run(wave)
            return shard_rows(mesh, result if count == size else jax.tree.map(lambda x: x[:count], result))

    def follow(ahead: Tree) -> Iterator[Tree]:
        for start in range(size, num_prompts, size):
            done, ahead = ahead, dispatch(start)
            yield done
        yield ahead

    return follow(dispatch(0))


def until_stopped(waves: Iterable[Tree], mesh: Mesh, stop_requested: Callable[[], bool]) -> Iterator[Tree]:
    """Waves, until a process is asked to end the run; the caller waits for each before it asks for the next.

    Args:
      waves: the first one dispatched, as by `in_waves`.
      stop_requested: whether this process is asked.

    Raises:
      Interrupted: in all processes, after the same wave, which may be the last one.
    """

    several = jax.process_count() > 1

    def ask() -> jax.Array | None:
        # Behind the wave that was dispatched last, before the one that asking for a wave dispatches.
        return any_process(mesh, stop_requested()) if several else None

    asked = ask()
    for wave in waves:
        yield wave
        # The answer is there, as the wave is; one process needs none.
        if stop_requested() if asked is None else bool(asked):
            raise Interrupted("responses were being sampled")
        asked = ask()
