"""Threads that orbax leaves behind where a save has failed, ended by names that it keeps private.

They wait for directories, five minutes in each process and at its end, also for those that could not be made; and what
they still write must not come among the files of the next save. Where orbax has other names a failed save ends as much
later, and nothing else differs.
"""

import concurrent.futures
import contextlib
import threading
import time
import warnings
from collections.abc import Collection
from typing import Any


def _of_manager(checkpointer: Any, name: str) -> Any:
    return getattr(getattr(checkpointer, "_async_manager", None), name, None)


def writer_of(checkpointer: Any) -> threading.Thread | None:
    """The thread that completes a save; None where there is none, or where it is not known."""
    return _of_manager(checkpointer, "_thread")


def abandon(checkpointer: Any, timeout_s: float) -> None:
    """Ends what an AsyncCheckpointer does for a save that has failed, and returns once it has ended."""
    # Of what is given up before it began, which is meant.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    writing: tuple[concurrent.futures.Future, ...] = tuple(_of_manager(checkpointer, "_commit_futures") or ())
    for commit in writing:
        with contextlib.suppress(RuntimeError, AttributeError):  # it has just come to its end; or is no such thing
            commit.cancel()
    with contextlib.suppress(ImportError, AttributeError, TypeError):
        _say_that_directories_are_made()
    for commit in writing:
        with contextlib.suppress(BaseException):  # of a save that has failed already
            commit.result(timeout_s)
    with contextlib.suppress(BaseException):  # which the next save would be told of
        checkpointer.wait_until_finished()


def writers() -> frozenset[threading.Thread]:
    """The threads that write for saves now."""
    return frozenset(thread for thread in threading.enumerate() if type(thread).__name__ == "_SignalingThread")


def outlast(before: Collection[threading.Thread], timeout_s: float) -> None:
    """Returns once the writers that were not there before have ended: of a save that failed where it was started,
    which left some behind that no one else knows of."""
    with contextlib.suppress(ImportError, AttributeError, TypeError):
        _say_that_directories_are_made()
    deadline = time.monotonic() + timeout_s
    for thread in writers() - frozenset(before):
        with contextlib.suppress(BaseException):  # it raises what has failed in it
            thread.join(max(0.0, deadline - time.monotonic()))


def _say_that_directories_are_made() -> None:
    """So that all who wait for them look up."""
    from orbax.checkpoint._src.futures import future
    from orbax.checkpoint._src.futures.synchronization import HandlerAwaitableSignal, OperationIdGenerator

    future.set_signals(
        [HandlerAwaitableSignal.STEP_DIRECTORY_CREATION, HandlerAwaitableSignal.ITEM_DIRECTORY_CREATION],
        operation_id=OperationIdGenerator.get_current_operation_id(),
    )
