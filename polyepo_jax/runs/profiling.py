"""A jax.profiler trace of a few steps, for --profile."""

from collections.abc import Callable
from pathlib import Path

import jax

# Steps traced, counted from the first of the process: compilation is over by then.
PROFILED_STEPS = range(2, 5)


class Profiler:
    """Traces PROFILED_STEPS.

    Args:
      directory: where the trace goes; None for no trace.
      settle: waits for the work that is dispatched, so that the trace has whole steps.
      say: takes a line for the user.
    """

    def __init__(self, directory: Path | None, settle: Callable[[], object], say: Callable[[str], None]):
        self._directory, self._settle, self._say = directory, settle, say
        self._tracing = False

    def before_step(self, index: int) -> None:
        """Called before each step. index: of the step, from 0 in this process."""
        if self._directory is None:
            return
        if index == PROFILED_STEPS.start:
            self._settle()
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True
        if index == PROFILED_STEPS.stop:
            self.close()

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._tracing:
            self._settle()
            jax.profiler.stop_trace()
            self._tracing = False
            self._say(f"profile in {self._directory}")
