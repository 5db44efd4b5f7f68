"""What the processes of one pod compile is kept for the next pod."""

import types
from typing import Any
from unittest import mock

from jax._src import compiler

_AS_THE_FIRST = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0))


def kept_by_every_process() -> None:
    """Lets each process of a pod write to JAX's compilation cache, not only the first.

    On CPU devices the key of a program differs between the processes of a pod, so that all but the first would compile
    everything anew in every pod. Only time depends on it.
    """
    write = compiler._cache_write

    def write_as_the_first(*arguments: Any) -> None:
        with mock.patch.object(compiler, "distributed", _AS_THE_FIRST):
            write(*arguments)

    compiler._cache_write = write_as_the_first
