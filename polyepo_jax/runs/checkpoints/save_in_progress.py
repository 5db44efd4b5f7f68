"""A save in progress, which fails in all processes where it fails in one."""

import concurrent.futures
import itertools
import json
import threading
from collections.abc import Mapping
from typing import Any

import jax

from polyepo_jax.pods import processes
from polyepo_jax.runs.checkpoints.errors import FailedElsewhere, why

# Numbers the saves of this process, and so of all: they come in the same order everywhere.
_attempts = itertools.count()


class SaveInProgress:
    """One save in progress, of which all processes learn if it fails in one.

    Orbax's own barriers wait for a process that has failed until they time out.
    """

    def __init__(self, step: int):
        self.step = step
        self._prefix = f"polyepo/save/{next(_attempts)}"
        self._store = processes.key_values()

    def barrier(self, key: str, timeout_ms: int) -> None:
        """Waits for all processes.

        Raises:
          RuntimeError: another process has failed. TimeoutError: one did not come.
        """
        store = self._store
        assert store is not None
        arrived: concurrent.futures.Future[None] = concurrent.futures.Future()

        def wait() -> None:
            try:
                store.barrier(f"{self._prefix}/{key}", timeout_ms)
                arrived.set_result(None)
            except Exception as error:
                arrived.set_exception(error)

        # Not of a pool, which would be joined at the end of the process.
        threading.Thread(target=wait, name="barrier", daemon=True).start()
        while not concurrent.futures.wait([arrived], timeout=0.25).done:
            try:
                self.check_others()
            except FailedElsewhere:
                # It may have failed behind this barrier, of which this process only has to hear that all were here.
                if not concurrent.futures.wait([arrived], timeout=5).done:
                    raise
        arrived.result()

    def fail(self, error: BaseException) -> None:
        if self._store is not None:
            self._store.set(f"{self._prefix}/failed", why(error))

    def check_others(self) -> None:
        if self._store is not None and (reason := self._store.get(f"{self._prefix}/failed")) is not None:
            raise FailedElsewhere(reason)

    def union(self, own: Mapping[str, Any]) -> dict[str, Any] | None:
        """The entries of all processes, in process 0; None in the others."""
        if self._store is None:
            return dict(own)
        self._store.set(f"{self._prefix}/sums/{jax.process_index()}", json.dumps(own))
        if not processes.is_primary():
            return None
        all_entries: dict[str, Any] = {}
        for process in range(jax.process_count()):
            while (text := self._store.wait_for(f"{self._prefix}/sums/{process}", timeout_s=1)) is None:
                self.check_others()
            all_entries |= json.loads(text)
        self._store.delete(f"{self._prefix}/sums/")
        return all_entries
