"""What processes say to each other: values that each of them knows, gathered and agreed on by all.

Every function here is a collective: all processes call it at the same point. In a single process each is trivial, so
that callers need not ask.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from polyepo_jax.errors import InputError
from polyepo_jax.pods.processes import DAY_MS, key_values


def gather(value: Any) -> list[Any]:
    """What each process says, by process; all of them call this, at the same point.

    Args:
      value: what JSON can hold; NaN and infinities too.
    """
    if jax.process_count() == 1:
        return [value]
    _meet()
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    # Powers of two: each new length would be compiled anew.
    padded = np.zeros(max(1024, 1 << (int(sizes.max()) - 1).bit_length()), np.uint8)
    padded[: text.size] = text
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]


_have_met = False


def _meet() -> None:
    """Waits, once, for all processes: Gloo gives them half a minute to come to their first collective, and imports and
    configs can take longer."""
    global _have_met
    if not _have_met and (store := key_values()) is not None:
        store.barrier("polyepo/met", DAY_MS)
    _have_met = True


def gather_rows(rows: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """One value a row, in the order of the rows, each from the process that has it.

    Args:
      rows: of this process; all processes together have 0, 1, ... once each.
      values: of these rows, what JSON can hold.
    """
    everywhere = gather([[int(row), value] for row, value in zip(rows, values, strict=True)])
    pairs = sorted((pair for own in everywhere for pair in own), key=lambda pair: pair[0])
    assert [row for row, _ in pairs] == list(range(len(pairs))), "each row has one owner"
    return [value for _, value in pairs]


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Refuses the input in every process if one of them does.

    The body asks nothing of other processes, so that each comes to its end.

    Raises:
      InputError: this process's own, else the first other's.
    """
    own: InputError | None = None
    try:
        yield
    except InputError as error:
        own = error
    refusals = gather(None if own is None else str(own))
    if own is not None:
        raise own
    for process, refusal in enumerate(refusals):
        if refusal is not None:
            raise InputError(f"process {process}: {refusal}")


def check_same(**values: Any) -> None:
    """Refuses, in all processes, what is not the same in all of them; all call this at the same point.

    Args:
      values: what JSON can hold, by what a user calls it (`_` for spaces).

    Raises:
      InputError: names the processes that have something else than process 0.
    """
    everywhere = gather(values)
    for name, expected in everywhere[0].items():
        different = [process for process, own in enumerate(everywhere) if own[name] != expected]
        if different:
            raise InputError(
                f"processes {', '.join(map(str, different))} have other {name.replace('_', ' ')} than process 0: start "
                "all of them with the same arguments, code, files and data"
            )


def to_host(tree: Any) -> Any:
    """Arrays on the devices of all processes, whole, as NumPy arrays; all processes call this at the same point."""

    def fetch(x: Any) -> np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(fetch, tree)
