"""Who is asked to end a run, and what all processes know of it."""

import contextlib
import os
import signal
from collections.abc import Iterator

import jax

from polyepo_jax.errors import Interrupted
from polyepo_jax.pods import collectives, peers
from polyepo_jax.runs import signals
from polyepo_jax.sharding import Mesh, any_process


class Stopping:
    """Requests to end the run, by a signal to any of its processes.

    Args:
      mesh: of all devices, over which processes tell each other.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._signal: int | None = None
        self._news: jax.Array | None = None

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Within it a first SIGTERM or SIGINT is a request, and a second one ends the process at once."""

        def request(number: int) -> None:
            self._signal = number
            peers.request_stop()
            line = f"{signal.Signals(number).name}: saving, then ending (again: ending at once)\n"
            with contextlib.suppress(OSError):  # a terminal that is gone
                os.write(2, line.encode())

        with signals.heeded(request):
            yield

    @property
    def requested(self) -> bool:
        """Whether a signal asks the run to end, here or, as far as this process has heard, in another process."""
        return self._signal is not None or peers.stop_requested()

    def raise_if_requested(self, reason: str) -> None:
        """Asks all processes, which all call this at the same point, once the devices have done what is dispatched.

        Raises:
          Interrupted: in all of them, as one is asked to end the run.
        """
        if any(collectives.gather(self.requested)):
            raise Interrupted(reason)

    def ask(self, has_news: bool) -> None:
        """Starts to ask all processes whether one of them has news. Called once a step, right before its update is
        dispatched, which every later question to the devices would wait for."""
        if jax.process_count() > 1:
            self._news = any_process(self._mesh, has_news)

    def answer(self, has_news: bool) -> bool:
        """Whether a process has news, the same in all of them."""
        return has_news if self._news is None else bool(self._news)
