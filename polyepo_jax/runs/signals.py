"""SIGTERM and SIGINT, heard also while Python waits for devices or other processes.

Python runs its own handlers once the call that the main thread is in returns, which a collective that hangs never does,
and runs them once where two equal signals came meanwhile. But the number of each signal is written to a pipe at once,
and here a thread reads it.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class _Listener:
    """Calls `told` with the number of the first signal, from a thread; the second ends the process at once.

    From the main thread only.
    """

    def __init__(self, told: Callable[[int], None]):
        self.told = told
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        # The pipe gets what Python has a handler for.
        self._before = {number: signal.signal(number, lambda *signal_and_frame: None) for number in _NUMBERS}

    def close(self) -> None:
        """Signals are what they were before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _listen(self) -> None:
        num_heard = 0
        while received := os.read(self._read, 1):
            if received[0] in _NUMBERS:
                num_heard += 1
                if num_heard > 1:
                    os._exit(128 + received[0])
                self.told(received[0])


_listener: _Listener | None = None


def listen(told: Callable[[int], None]) -> None:
    """From now on, until the interpreter ends, `told` is called with the number of the first signal; a second one ends
    the process at once."""
    global _listener
    assert _listener is None
    _listener = _Listener(told)


@contextlib.contextmanager
def heeded(told: Callable[[int], None]) -> Iterator[None]:
    """Within it `told` is called in this way; after it, where this process listens, a first signal changes nothing."""
    if _listener is not None:
        _listener.told = told
        try:
            yield
        finally:
            _listener.told = lambda number: None
        return
    own = _Listener(told)
    try:
        yield
    finally:
        own.close()
