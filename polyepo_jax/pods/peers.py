"""The other processes of a run: telling them of an end, and noticing one that has gone without a word.

A process that hangs in a collective with a lost one would hang for good, and jax.distributed's own heartbeat ends it
with SIGABRT, which tells a launcher nothing. Here every process gives a sign of life each second, through its key-value
store, which works while collectives hang. Who is silent for too long is lost: the others say so and end with
`errors.RUN_AGAIN`. Who ends with an error says so first, and the others end with the same status.
"""

import atexit
import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
from jax._src.distributed import global_state

from polyepo_jax import errors
from polyepo_jax.errors import RUN_AGAIN, InputError
from polyepo_jax.pods import processes

TIMEOUT, JOIN_TIMEOUT = "POLYEPO_PEER_TIMEOUT_S", "POLYEPO_JOIN_TIMEOUT_S"
_INTERVAL_S = 1.0
# Once a collective has failed, silence between so many looks tells who made it fail.
_SUSPICIOUS = 5
_TELL_S = 5.0


class Store(Protocol):
    """What is needed of `processes.KeyValues`."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> str | None: ...
    def below(self, prefix: str) -> dict[str, str]: ...
    def barrier(self, key: str, timeout_ms: int) -> None: ...


class Signs:
    """Signs of life of other processes, as one of them sees them.

    Time is counted in looks: one that was frozen itself does not take the others for lost.
    """

    def __init__(self, others: set[int]):
        self._last: dict[int, str | None] = dict.fromkeys(others)
        self._silent = dict.fromkeys(others, 0)

    def look(self, signs: Mapping[int, str]) -> None:
        """Takes what stands in the store now."""
        for process, last in self._last.items():
            now = signs.get(process, last)
            self._silent[process] = 0 if now != last else self._silent[process] + 1
            self._last[process] = now

    def silent(self, looks: int) -> list[int]:
        """Processes that have given no sign in so many looks."""
        return sorted(process for process, count in self._silent.items() if count >= looks)


class Peers:
    """This process's watch over the others.

    Args:
      store: shared by all processes; process 0 keeps it.
      process, num_processes: this one, and how many there are.
      timeout_s: after which a silent process is lost.
      leave: ends this process with a status, after a line for the user, if there is one.
      pause: waits so many seconds.
      within: calls something, and gives it so many seconds: the store does not answer where process 0 is frozen.
    """

    def __init__(
        self,
        store: Store,
        process: int,
        num_processes: int,
        timeout_s: float,
        leave: Callable[[int, str], None],
        pause: Callable[[float], None] = time.sleep,
        within: Callable[[float, Callable[[], None]], None] | None = None,
    ):
        self._store, self._process, self._num_processes = store, process, num_processes
        self._timeout_s, self._leave, self._pause = timeout_s, leave, pause
        self._within = _within if within is None else within
        self._looks = max(round(timeout_s / _INTERVAL_S), 2)
        self._numbers = itertools.count()
        # Process 0 watches all, the others process 0: the store answers two questions of each process a second.
        self._signs = Signs(set(range(1, num_processes)) if process == 0 else {0})
        self._unanswered = 0
        self._ending = threading.Lock()
        self._asked_to_stop = self._hears_stop = False
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._each_interval, args=(watch,), name="peers", daemon=True)
            for watch in (self.tell_and_look, self.count_unanswered)
        ]

    def start(self) -> None:
        """Begins to watch, in threads."""
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Waits until all processes are done, and then watches no more: threads that are in C++ code when the
        interpreter ends abort the process."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._store.barrier("polyepo/finished", processes.DAY_MS)  # who is lost meanwhile is found as ever
        self._closed.set()
        for thread in self._threads:
            thread.join()

    def _each_interval(self, watch: Callable[[], None]) -> None:
        while not self._closed.is_set():
            # Process 0 is gone: the other thread counts.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                watch()
            self._closed.wait(_INTERVAL_S)

    def tell_and_look(self) -> None:
        """Gives this process's sign of life, and reads those of others."""
        self._store.set(f"polyepo/alive/{self._process}", str(next(self._numbers)))
        if self._asked_to_stop:
            self._store.set("polyepo/news/stop", "")
        news = self._store.below("polyepo/news/")
        if "ended" in news:
            self._follow(json.loads(news["ended"]))
        self._hears_stop |= "stop" in news
        self._signs.look(self._alive() if self._process == 0 else {0: self._store.get("polyepo/alive/0") or ""})
        self._unanswered = 0
        self._part_from(self._signs.silent(self._looks), f"no sign of life for {self._timeout_s:.0f} s")

    def _alive(self) -> dict[int, str]:
        return {int(process): number for process, number in self._store.below("polyepo/alive/").items()}

    def count_unanswered(self) -> None:
        """The store itself may hang, with a process 0 that is frozen or a network that is gone."""
        self._unanswered += 1
        if self._process and self._unanswered > self._looks:
            self._part_from([0], f"no answer for {self._timeout_s:.0f} s")

    def request_stop(self) -> None:
        """This process was told to stop: the others are to know. Returns at once."""
        self._asked_to_stop = self._hears_stop = True

    @property
    def stop_requested(self) -> bool:
        """Whether some process was told to stop, as far as this one has heard."""
        return self._hears_stop

    def part(self, error: BaseException, status: int) -> None:
        """Ends this process, and so all, after an error: its own, or the mark that a lost process left.

        Args:
          error: told to the user already if it is one of `errors`.
          status: to end with.
        """
        if any(map(_is_of_the_runtime, _with_causes(error))):
            self._find_the_lost()
        if status == 1 and not isinstance(error, errors.RunError):
            traceback.print_exception(error)
        self.end(status, (str(error).strip() or type(error).__name__).splitlines()[0], said=True)

    def _find_the_lost(self) -> None:
        """Ends this process if one of the others is gone."""
        signs = Signs(set(range(self._num_processes)) - {self._process})
        try:
            for _ in range(_SUSPICIOUS + 2):
                signs.look(self._alive())
                self._pause(_INTERVAL_S)
        except jax.errors.JaxRuntimeError:
            self._part_from([0], "it does not answer")
        self._part_from(signs.silent(_SUSPICIOUS), "a collective failed, and no sign of life since")

    def _part_from(self, lost: list[int], why: str) -> None:
        if lost:
            names = f"process {lost[0]}" if len(lost) == 1 else f"processes {', '.join(map(str, lost))}"
            self.end(RUN_AGAIN, f"lost {names} of {self._num_processes} ({why})")

    def end(self, status: int, reason: str, said: bool = False) -> None:
        """Ends this process, having told the others: the first to end decides how all do.

        Args:
          said: the user has been told the reason.
        """
        with self._ending:
            self._within(_TELL_S, lambda: self._tell(status, reason))
            self._leave(status, "" if said else f"process {self._process}: {reason}")

    def _tell(self, status: int, reason: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if (ended := self._store.get("polyepo/news/ended")) is not None:
                self._follow(json.loads(ended))
            news = {"process": self._process, "status": status, "reason": reason}
            self._store.set("polyepo/news/ended", json.dumps(news))
            self._await_leaving()

    def _follow(self, ended: Mapping[str, Any]) -> None:
        """Ends as another process did."""
        if ended["process"] != self._process:
            self._await_leaving()
            self._leave(ended["status"], f"process {ended['process']} ended the run: {ended['reason']}")

    def _await_leaving(self) -> None:
        """Process 0 is the last to go: the others could not read the reason without it."""
        self._store.set(f"polyepo/left/{self._process}", "")
        if self._process == 0:
            for _ in range(5):
                if len(self._store.below("polyepo/left/")) == self._num_processes:
                    return
                self._pause(_INTERVAL_S / 2)


def _is_of_the_runtime(error: BaseException) -> bool:
    """Where a process is gone, the runtime of the others fails: on CPUs with a ValueError."""
    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _within(seconds: float, call: Callable[[], None]) -> None:
    thread = threading.Thread(target=call, name="peers", daemon=True)
    thread.start()
    thread.join(seconds)


_peers: Peers | None = None


def start(given: Mapping[str, str | None]) -> None:
    """Joins the other processes of the run and watches over them from now on; does nothing for a process by itself.

    Before anything else asks for a device.

    Args:
      given: as of `processes.placement`.

    Raises:
      InputError: the arguments or the environment are not what they should be, or jax.distributed did not start.
    """
    global _peers
    timeout_s, join_timeout_s = _seconds(TIMEOUT, 60), _seconds(JOIN_TIMEOUT, 300)
    _on_abort(lambda: _leave(RUN_AGAIN, f"the other processes did not come within {join_timeout_s:.0f} s"))
    processes.initialize(given, int(join_timeout_s), int(max(300, 3 * timeout_s)))
    _on_abort(None)
    store = processes.key_values()
    if store is None:
        return
    # From here on: the backend has not started yet, and waits for minutes where a process is lost.
    _peers = Peers(store, processes.process_id(), processes.num_processes(), timeout_s, _leave)
    if processes.process_id():
        _on_abort(_aborted)
        atexit.register(_on_abort, None)  # Python cannot be called while it ends
    errors.part_with(_peers.part)
    _peers.start()
    atexit.register(_peers.finish)  # before jax's own shutdown, which was registered earlier


def _seconds(name: str, default: int) -> float:
    text = os.environ.get(name, str(default))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 2 <= seconds < float("inf"):
        raise InputError(f"{name} must be a number of seconds, at least 2, got {text!r}")
    return seconds


_handler: Any = None  # what C code calls must not be collected


def _on_abort(call: Callable[[], None] | None) -> None:
    """What to call when C code aborts this process, instead of (None: nothing but) ending it with SIGABRT.

    Python's own signal handlers do not serve: they run once C code returns, and here it does not.
    """
    global _handler
    libc = ctypes.CDLL(None)
    if call is None:
        libc.signal(signal.SIGABRT, signal.SIG_DFL.value)
        return

    def handle(number: int) -> None:
        call()
        libc.signal(signal.SIGABRT, signal.SIG_DFL.value)

    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    libc.signal(signal.SIGABRT, _handler)


def _leave(status: int, line: str) -> None:
    """Ends this process without waiting for others, as the interpreter's own end would."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    advice = f"; exit {status}: the same command goes on from the newest checkpoint" if status == RUN_AGAIN else ""
    if line:
        os.write(2, f"{line}{advice}\n".encode())
    os._exit(status)


def _aborted() -> None:
    """Where process 0 is gone, the runtime aborts: an end with RUN_AGAIN too. Other aborts stay what they are."""
    if not _answers(global_state.coordinator_address or ""):
        here, count = processes.process_id(), processes.num_processes()
        _leave(RUN_AGAIN, f"process {here}: lost process 0 of {count} (it is gone)")


def _answers(address: str) -> bool:
    """Whether someone listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def are_watched() -> bool:
    """Whether there are other processes."""
    return _peers is not None


def end(status: int, reason: str) -> None:
    """Ends all processes, this one first, with a status and a reason for the user."""
    assert _peers is not None
    _peers.end(status, reason)


def request_stop() -> None:
    """This process was told to stop: the others are to know. Returns at once."""
    if _peers is not None:
        _peers.request_stop()


def stop_requested() -> bool:
    """Whether some process was told to stop, as far as this one has heard from others."""
    return _peers is not None and _peers.stop_requested
