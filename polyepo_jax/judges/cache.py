"""Answers of a judge that are kept, so that what was answered once is never asked again.

Libraries for caches on disk share one file by its locks, which network file systems do not keep: here each process of a
run writes a file of its own, and has read those of the others.
"""

import contextlib
import glob
import hashlib
import json
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tenacity

_BUSY_S = 60.0  # how long to wait while another process writes

# SQLite itself does not wait where two processes turn a new file to WAL.
_when_free = tenacity.Retrying(
    retry=tenacity.retry_if_exception(lambda error: getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY),
    wait=tenacity.wait_random(0, 0.1),
    stop=tenacity.stop_after_delay(_BUSY_S),
    reraise=True,
)


def of_process(path: Path, index: int) -> Path:
    """The file of one of several processes: `cache.sqlite` of the first, `cache.1.sqlite` of the next."""
    return path if index == 0 else path.with_name(f"{path.stem}.{index}{path.suffix}")


def siblings(path: Path) -> list[Path]:
    """All files that `of_process` names and that are there, those of an earlier number of processes too."""
    numbered = path.parent.glob(f"{glob.escape(path.stem)}.*{glob.escape(path.suffix)}")
    found = [other for other in numbered if other.stem.removeprefix(f"{path.stem}.").isdecimal()]
    return [other for other in (path, *sorted(found)) if other.exists()]


def cache_key(*content: Any) -> str:
    """Of all that an answer depends on: anything JSON can hold, texts with half characters too."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class ReplyCache:
    """Strategy ids by key, in a SQLite file that several threads and processes on one machine may use at a time.

    What was put is on disk when `put` returns: a process that is killed loses nothing.
    """

    def __init__(self, path: Path | None, others: Sequence[Path] = (), one_host: bool = True):
        """Opens the file, or makes it.

        Args:
          path: None to keep the answers in memory only.
          others: files of the same kind whose answers are taken over; nobody writes to them meanwhile.
          one_host: whether no other machine opens the file; else it is slower, for SQLite's log is of one machine.

        Raises:
          ValueError: it cannot be opened, or is damaged.
        """
        self._lock = threading.Lock()
        self._name = ":memory:" if path is None else str(path)
        with contextlib.ExitStack() as stack:
            try:
                # Autocommit: each statement is a transaction of its own.
                self._connection = sqlite3.connect(
                    self._name, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
                )
                stack.callback(self._connection.close)
                _when_free(lambda: self._prepare("WAL" if one_host else "TRUNCATE"))
                for other in others:
                    self._take_over(other)
            except sqlite3.OperationalError as error:
                raise ValueError(
                    f"{path}: cannot be opened ({error}); expected a file in a writable directory of a local disk"
                ) from error
            except sqlite3.Error as error:
                raise ValueError(
                    f"{path}: no cache of judge replies, or a damaged one ({error}); delete it and what is beside it "
                    "under the same name with -wal and -shm, and the judge is asked again"
                ) from error
            stack.pop_all()

    def _prepare(self, journal_mode: str) -> None:
        self._connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, ids TEXT NOT NULL)")
        [(verdict,)] = self._connection.execute("PRAGMA quick_check(1)").fetchall()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)

    def _take_over(self, other: Path) -> None:
        try:
            self._connection.execute("ATTACH DATABASE ? AS other", (str(other),))
            with contextlib.suppress(sqlite3.OperationalError):  # its process has not made the table yet
                self._connection.execute("INSERT OR IGNORE INTO replies SELECT key, ids FROM other.replies")
            self._connection.execute("DETACH DATABASE other")
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{other}: no cache of judge replies, or a damaged one ({error}); delete it") from error

    def get(self, key: str) -> tuple[int, ...] | None:
        """What was put under a key, None if nothing was.

        Raises:
          sqlite3.Error: the file cannot be read.
        """
        with self._lock:
            row = self._connection.execute("SELECT ids FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else tuple(json.loads(row[0]))

    def put(self, key: str, ids: Sequence[int]) -> None:
        """Keeps an answer; of two under one key the first stays.

        Raises:
          sqlite3.Error: the file cannot be written.
        """
        with self._lock:
            self._connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", (key, json.dumps(list(ids))))

    def close(self) -> None:
        self._connection.close()

    def __repr__(self) -> str:
        return f"ReplyCache({self._name!r})"
