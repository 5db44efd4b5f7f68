"""Most of a test's time is compilation: how it is done in less. Only time depends on it."""

import importlib.metadata
import types
from typing import Any
from unittest import mock

# Much of it is for speed, which no test needs. Half of the rest is the newer of XLA's two ways to emit fusions, which
# is the only one from some version after 0.10 on; XLA ends the process at a flag that it does not know.
QUICKLY = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICKLY += " --xla_cpu_use_fusion_emitters=false"

_AS_THE_FIRST = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0))


def kept_by_every_process() -> None:
    """Lets each process of a pod write to JAX's compilation cache, not only the first.

    On CPU devices the key of a program differs between the processes of a pod, so that all but the first would compile
    everything anew in every pod.
    """
    from jax._src import compiler  # not above: flags are set before JAX is there

    write = compiler._cache_write

    def write_as_the_first(*arguments: Any) -> None:
        with mock.patch.object(compiler, "distributed", _AS_THE_FIRST):
            write(*arguments)

    compiler._cache_write = write_as_the_first
