"""Reports a step, save or evaluation that takes far longer than those before it, with what every process is doing.

One stuck machine holds up all others, which wait for it in a collective: the stack that matters is another's than the
one a user sees. They are asked for through the key-value store of jax.distributed, which works while collectives hang.
The timeouts of jax and orbax end a process, and say nothing of what the others did.
"""

import collections
import contextlib
import dataclasses
import json
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import jax

_INTERVAL_S = 1.0
_MIN_STEPS = 3  # before them nobody knows how long a step takes,
_UNKNOWN_S = 1800.0  # but no compilation takes as long as this
_MIN_S = 10.0
_WAIT_FOR_STACKS_S = 10.0
_WATCHING = ("peers", "signals", "watchdog")  # threads that say nothing of the run
_MAX_CHARACTERS = 16_000  # of one process's stacks


class Store(Protocol):
    """What is needed of `processes.KeyValues`."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> str | None: ...
    def below(self, prefix: str) -> dict[str, str]: ...
    def delete(self, key: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class _UnderWay:
    """What the run is at, and since when; it is reported (again) once so many seconds are gone."""

    what: str
    began: float
    next_report_s: float = 0.0


class Watchdog:
    """Watches the steps of a run, in a thread; process 0 does, and the others answer it.

    Args:
      factor: a step is slow that takes so many times the median of the last hundred, and at least 10 s; 0: never. The
        first three are slow after half an hour.
      report: told of a slow step, in process 0, from another thread.
      process, num_processes: this one, and how many there are.
      store: shared by all processes; None for a process by itself.
      clock: seconds. pause: waits so many of them.
    """

    def __init__(
        self,
        factor: float,
        report: Callable[[str], None],
        process: int = 0,
        num_processes: int = 1,
        store: Store | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
    ):
        self._factor, self._report, self._store, self._clock = factor, report, store, clock
        self._process, self._num_processes = process, num_processes
        self._closed = threading.Event()
        self._pause = self._closed.wait if pause is None else pause
        self._durations: dict[str, collections.deque[float]] = {}
        self._lock = threading.Lock()
        self._at = _UnderWay("step", clock())
        self._answered = ""  # the last question that was answered
        self._num_reports = 0
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        if self._factor:
            self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def step_done(self, duration_s: float) -> None:
        """A step is over, which took so long; another one begins."""
        with self._lock:
            self._note("step", duration_s)
            self._at = _UnderWay("step", self._clock())

    @contextlib.contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Within it time is no part of the step, but of something else, a save say, that is compared with its like."""
        with self._lock:
            step, self._at = self._at, _UnderWay(what, self._clock())
        try:
            yield
        finally:
            with self._lock:
                duration_s = self._clock() - self._at.began
                self._note(what, duration_s)
                self._at = dataclasses.replace(step, began=step.began + duration_s)

    def _note(self, what: str, duration_s: float) -> None:
        self._durations.setdefault(what, collections.deque(maxlen=100)).append(duration_s)

    def _run(self) -> None:
        while not self._closed.is_set():
            # Who finds out that process 0 is gone is another's business (peers.py).
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self.look()
            self._pause(_INTERVAL_S)

    def look(self) -> None:
        """Answers process 0, or reports if this is process 0 and the step is slow."""
        if self._process:
            self._answer()
            return
        with self._lock:
            at, elapsed = self._at, self._clock() - self._at.began
            durations = self._durations.get(at.what, ())
            median = statistics.median(durations) if len(durations) >= _MIN_STEPS else None
            limit = _UNKNOWN_S if median is None else max(self._factor * median, _MIN_S)
            if elapsed < max(limit, at.next_report_s):
                return
            # One that never ends is to fill no disk.
            self._at = dataclasses.replace(at, next_report_s=2 * elapsed)
        against = "longer than one should"
        if median is not None:
            times = elapsed / median if median else float("inf")
            against = f"{times:.0f} times the median of {median:{'.2g' if median < 10 else '.0f'}} s"
        self._report(
            f"this {at.what} has taken {elapsed:.0f} s so far, {against} (see logging.slow_step_factor); what the "
            f"processes are doing:\n{_grouped(self._stacks(), self._num_processes)}"
        )

    def _answer(self) -> None:
        assert self._store is not None
        question = self._store.get("polyepo/stacks/asked") or ""
        if question != self._answered:
            self._answered = question
            self._store.set(f"polyepo/stacks/{question}/{self._process}", json.dumps(stacks()))

    def _stacks(self) -> dict[int, str]:
        """Of this process and of those that answer."""
        found = {0: stacks()}
        if self._store is None:
            return found
        self._num_reports += 1
        prefix = f"polyepo/stacks/{self._num_reports}/"
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._store.set("polyepo/stacks/asked", str(self._num_reports))
            end = self._clock() + _WAIT_FOR_STACKS_S
            while len(answers := self._store.below(prefix)) < self._num_processes - 1 and self._clock() < end:
                if self._closed.is_set():  # and no pause is one any more
                    break
                self._pause(_INTERVAL_S / 2)
            found |= {int(process): json.loads(text) for process, text in answers.items()}
            self._store.delete(prefix)
        return found


def stacks() -> str:
    """What the Python threads of this process are doing, the main one first; without those that watch or are idle."""
    threads = {thread.ident: thread for thread in threading.enumerate()}
    main, own = threading.main_thread().ident, threading.get_ident()
    parts, num_idle = [], 0
    for ident, frame in sorted(sys._current_frames().items(), key=lambda item: item[0] != main):
        lines = traceback.format_stack(frame)
        name = threads[ident].name if ident in threads else "of no name"
        if ident == own or name in _WATCHING:
            continue
        if "concurrent/futures/thread.py" in lines[-1] and "in _worker" in lines[-1]:
            num_idle += 1
            continue
        parts.append(f"thread {name}:\n{''.join(lines)}")
    if num_idle:
        parts.append(f"and {num_idle} idle workers\n")
    text = "".join(parts)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}\n... cut\n"


def _grouped(found: Mapping[int, str], num_processes: int) -> str:
    """Stacks by process, equal ones once: of a hundred machines all but one often do the same."""
    alike: dict[str, list[int]] = {}
    for process in sorted(found):
        alike.setdefault(found[process], []).append(process)
    parts = [f"--- {_named(processes)}\n{text}" for text, processes in alike.items()]
    missing = [process for process in range(num_processes) if process not in found]
    if missing:
        parts.append(f"--- no answer from {_named(missing)}\n")
    return "".join(parts)


def _named(processes: list[int]) -> str:
    """`process 3`, `processes 0-4, 7`."""
    spans: list[list[int]] = []
    for process in processes:
        if spans and process == spans[-1][1] + 1:
            spans[-1][1] = process
        else:
            spans.append([process, process])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"process{'es' if len(processes) > 1 else ''} {text}"
