"""When grading has failed too often to go on, over the calls of all processes.

Libraries that break circuits count the calls of one process: the processes of a run would end at different steps.
"""

import collections
import threading

import jax

from polyepo_jax.errors import GradeFailure
from polyepo_jax.grading.calls import one_line
from polyepo_jax.grading.judge_config import JudgeConfig
from polyepo_jax.pods import collectives


class Failures:
    """Counts failed calls, from any thread.

    Args:
      config: how many may fail.

    Attributes:
      stopped: why no further call is to be made; None as long as grading goes on.
    """

    def __init__(self, config: JudgeConfig):
        self._config = config
        self._recent: dict[str, collections.deque[bool]] = {
            caller: collections.deque(maxlen=config.failure_window) for caller in ("judge", "verifier")
        }
        self._untold: list[tuple[str, str | None]] = []  # calls of which other processes have not heard
        self._lock = threading.Lock()
        self.stopped: str | None = None

    def watch(self, caller: str, result: object) -> None:
        """Takes what a call of "judge" or "verifier" came to, and stops all further ones once too many have failed."""
        failure = one_line(str(result)) if isinstance(result, GradeFailure) else None
        with self._lock:
            if jax.process_count() > 1:
                self._untold.append((caller, failure))
            self._count(caller, failure)

    def hear_others(self) -> None:
        """Counts the calls of other processes too, each of many making few; all call this at the same point."""
        with self._lock:
            untold, self._untold = self._untold, []
        for process, calls in enumerate(collectives.gather(untold)):
            if process != jax.process_index():
                with self._lock:
                    for caller, failure in calls:
                        self._count(caller, failure)

    def _count(self, caller: str, failure: str | None) -> None:
        config, recent = self._config, self._recent[caller]
        recent.append(failure is not None)
        num_failed, num_calls = sum(recent), len(recent)
        if failure is None or self.stopped is not None:
            return
        if config.on_failure == "stop" and caller == "judge":
            self.stopped = f"a judge call failed, and judge.on_failure is 'stop': {failure}"
        elif num_calls == config.failure_window and num_failed > config.max_failure_frac * num_calls:
            self.stopped = (
                f"{num_failed} of the last {num_calls} {caller} calls failed, more than judge.max_failure_frac = "
                f"{config.max_failure_frac} allows; the last one: {failure}"
            )
