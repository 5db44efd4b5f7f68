"""Run directories in object storage, given by URL: gs://bucket/path or file:///path.

Checkpoints are written to the URL itself. Everything else in a run directory is appended to, which object storage
cannot do: it lives in a working copy on this machine, is copied to the URL before each checkpoint, and comes from there
when another machine takes over. Of this etils.epath has the single files: it keeps no copy, and knows not what is new.
`file:` serves file systems on which appending is slow, such as a mounted bucket.
"""

import contextlib
import fcntl
import fnmatch
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import fsspec
from etils import epath

from polyepo_jax.errors import InputError

_URL = re.compile(r"(gs|file):/+(.+)")  # pathlib has made one slash of several
_MARKER = ".url"
OWN = (_MARKER, ".lock", ".pulling", ".shared")  # of a directory on this machine
# Not copied. Judges write their caches at any time, and what they hold serves steps that the copy does not have; so do
# evaluations what they have sampled so far.
_ELSEWHERE = ("checkpoints", "corrupt_checkpoints", "manifests", "judge_cache*", "eval_unfinished", *OWN)


def url_of(path: Path | str) -> str | None:
    """The URL that a path on the command line is; None if it is a path."""
    match = _URL.fullmatch(str(path))
    if match is None:
        return None
    scheme, rest = match.groups()
    return f"file:///{rest.rstrip('/')}" if scheme == "file" else f"{scheme}://{rest.rstrip('/')}"


def has_url(directory: Path) -> bool:
    """Whether a run directory is the working copy of one at a URL."""
    return (directory / _MARKER).is_file()


def name_of(directory: Path) -> str:
    """What a user calls a run directory: its URL, if it has one."""
    return (directory / _MARKER).read_text() if has_url(directory) else str(directory)


def home(directory: Path) -> epath.Path:
    """Where the checkpoints of a run directory lie: at the URL that a working copy is of, else in itself."""
    return _open((directory / _MARKER).read_text()) if has_url(directory) else epath.Path(directory)


def _open(url: str) -> epath.Path:
    # Others write there too: what was listed a while ago is no longer all there is.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(url.removeprefix("file://"))


def files_below(directory: epath.Path, leave_out: Collection[str] = ()) -> dict[str, epath.Path]:
    """Files in a directory and its folders, by relative path, in order.

    Not by epath's `walk`, which takes a folder that cannot be listed for an empty one.

    Args:
      leave_out: patterns of names of files and folders, at any depth.
    """
    found: dict[str, epath.Path] = {}
    for child in sorted(directory.iterdir(), key=lambda path: path.name):
        if any(fnmatch.fnmatchcase(child.name, pattern) for pattern in leave_out):
            continue
        if child.is_dir():
            found |= {f"{child.name}/{name}": path for name, path in files_below(child, leave_out).items()}
        else:
            found[child.name] = child
    return found


def working_copy(path: Path) -> Path:
    """The local directory that stands for a run directory, with the files that are at its URL now.

    Args:
      path: of a run directory; one that is no URL is its own.

    Raises:
      InputError: the URL cannot be read.
    """
    url = url_of(path)
    if url is None:
        return path
    cache = Path(os.environ.get("POLYEPO_CACHE") or Path.home() / ".cache" / "polyepo_jax")
    local = cache / "runs" / hashlib.sha256(url.encode()).hexdigest()[:12] / url.rpartition("/")[2]
    try:
        local.mkdir(parents=True, exist_ok=True)
        with _locked(local / ".pulling", wait=True), _locked(local / ".lock", wait=False) as unused:
            (local / _MARKER).write_text(url)
            if unused:  # else a run writes it on this machine, and nothing at the URL is newer
                _pull(_open(url), local)
    except InputError:
        raise
    except Exception as error:  # of the storage's own package: access, network, ...
        raise InputError(f"{url} cannot be read: {_why(error)}") from error
    return local


def _why(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "gs:// needs the package gcsfs: pip install -e '.[gcs]'"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {reason:.300}; check the address and this machine's access to it"


@contextlib.contextmanager
def _locked(path: Path, wait: bool) -> Iterator[bool]:
    """Holds a lock file; yields whether it could."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _pull(source: epath.Path, local: Path) -> None:
    """Makes the files of a working copy those at the URL."""
    wanted = files_below(source, _ELSEWHERE) if source.is_dir() else {}
    for name, path in wanted.items():
        target = local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        temporary.write_bytes(path.read_bytes())
        os.replace(temporary, target)
    for name, path in files_below(epath.Path(local), _ELSEWHERE).items():
        if name not in wanted:
            Path(path).unlink()


class Pusher:
    """Copies what has changed in a run directory to its URL; does nothing where it has none.

    Args:
      directory: a run directory, as `working_copy` gives it.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._url = (directory / _MARKER).read_text() if has_url(directory) else None
        self._pushed: dict[str, tuple[int, int]] = {}

    def remove(self, name: str) -> None:
        """Removes a file that is no more.

        Raises:
          OSError: it cannot be.
        """
        if self._url is None:
            return
        try:
            (_open(self._url) / name).unlink(missing_ok=True)
        except Exception as error:
            raise OSError(0, f"{self._url} cannot be written: {_why(error)}") from error

    def push(self, only: str = "*") -> None:
        """Copies files that are new or have changed since the last time.

        Args:
          only: pattern of their relative paths.

        Raises:
          OSError: they cannot be written there.
        """
        if self._url is None:
            return
        try:
            for name, path in files_below(epath.Path(self._directory), _ELSEWHERE).items():
                status = os.stat(path)
                now = status.st_size, status.st_mtime_ns
                if self._pushed.get(name) != now and fnmatch.fnmatchcase(name, only):
                    target = _open(self._url) / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(path.read_bytes())
                    self._pushed[name] = now
        except Exception as error:
            raise OSError(0, f"{self._url} cannot be written: {_why(error)}") from error
