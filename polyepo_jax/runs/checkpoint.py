"""Checkpoints of the train state and of the data's position, by orbax.

All processes of a run call every method at the same point. Each writes and checks its share of the files; process 0
moves and deletes.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint._src.futures import future
from orbax.checkpoint._src.futures.synchronization import HandlerAwaitableSignal, OperationIdGenerator

from polyepo_jax.errors import RunError
from polyepo_jax.pods import collectives, processes
from polyepo_jax.pods.object_storage import files_below
from polyepo_jax.training.update import TrainState

_ITEMS = ("params", "rest", "meta")
_IDENTITY = ("fingerprint", "config_hash")  # keys of the meta that the manifest repeats
_DELETED = ".deleted"
_TIMEOUT_S = 1200  # of a save, from its start to the last process's last file
# Numbers the saves of this process, and so of all: they come in the same order everywhere.
_attempts = itertools.count()


class CheckpointError(Exception):
    """No checkpoint can be restored; one line that says why."""


class RestoreError(RunError):
    """Checkpoints cannot be read for what is no damage of theirs: memory, or access. Raised in all processes."""

    def __init__(self, what: str):
        super().__init__(f"{what}; nothing was moved or deleted: once that is mended, the same command goes on")


class SaveError(Exception):
    """A checkpoint could not be written. The older ones are as they were.

    Attributes:
      step: of the checkpoint.
      alone: raised in this process only. The others may wait for it in a collective: it ends, and asks them nothing.
    """

    def __init__(self, step: int, reason: str, alone: bool = False):
        super().__init__(f"checkpoint {step} could not be written: {reason}")
        self.step, self.alone = step, alone


def any_checkpoint(directory: Path | epath.Path | str) -> bool:
    """Whether a run directory has something like a checkpoint; the same in all processes.

    Raises:
      RestoreError: it cannot be read.
    """
    return _of_primary(lambda: bool(_numbered(epath.Path(directory) / "checkpoints")))


def _of_primary(read: Callable[[], Any]) -> Any:
    """What process 0 reads, in all processes.

    Raises:
      RestoreError: in all, where it cannot.
    """
    value, reason = None, None
    if processes.is_primary():
        try:
            value = read()
        except Exception as error:  # object storage has errors of its own
            reason = _why(error)
    value, reason = collectives.gather([value, reason])[0]
    if reason is not None:
        raise RestoreError(f"the checkpoints cannot be read: {reason}")
    return value


def _children(directory: epath.Path) -> list[epath.Path]:
    """What is in a directory; nothing where there is none, as object storage has no empty ones."""
    return list(directory.iterdir()) if directory.is_dir() else []


def _numbered(directory: epath.Path) -> list[int]:
    """Steps with a folder, oldest first."""
    return sorted(int(path.name) for path in _children(directory) if path.name.isdecimal())


def _abstract(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _rest(state: TrainState) -> dict[str, Any]:
    """The state without the params: these are an item of their own, so that others can read them alone."""
    return {"step": state.step, "opt_state": state.opt_state, "nonfinite_in_a_row": state.nonfinite_in_a_row}


def _arrays(tree: Any) -> dict[str, str]:
    """What a manifest says of a tree: dtype and shape of each leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def _contents(state: TrainState, meta: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest but for its files."""
    identity = {name: meta[name] for name in _IDENTITY if name in meta}
    return {"params": _arrays(state.params), "rest": _arrays(_rest(state)), **identity}


def _is_url(path: epath.Path) -> bool:
    return "://" in str(path)


def _is_own(name: str) -> bool:
    """Whether a file is one that this process checks, of all that see it."""
    return zlib.crc32(name.encode()) % jax.process_count() == jax.process_index()


def _checksum(path: epath.Path) -> list[int]:
    """Size and CRC-32 of a file."""
    crc = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
            size += len(block)
    return [size, crc]


def write_durably(path: Path, text: str) -> None:
    """Writes a file whole or not at all, whatever happens to the machine."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _why(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return reason if isinstance(error, _DamagedError | _FailedElsewhere) else f"{type(error).__name__}: {reason:.300}"


def _first(reasons: Sequence[str | None]) -> str | None:
    """What went wrong in some process, with the process where there are several; None if nothing did."""
    found = [(process, reason) for process, reason in enumerate(reasons) if reason is not None]
    if not found:
        return None
    return found[0][1] if len(reasons) == 1 else f"process {found[0][0]}: {found[0][1]}"


class _DamagedError(ValueError):
    """A checkpoint is not what its manifest says."""


def _is_damage_of_files(error: Exception) -> bool:
    """Any other error, of access for one, says nothing of what is in the files."""
    return isinstance(error, _DamagedError | FileNotFoundError)


def _is_damage_of_known(error: Exception) -> bool:
    """Of a checkpoint whose files are what its manifest says."""
    return isinstance(error, _DamagedError)


def _is_damage_of_unknown(error: Exception) -> bool:
    """Of a checkpoint without a manifest."""
    return not isinstance(error, jax.errors.JaxRuntimeError)  # out of memory, for one


class _Save:
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
            except _FailedElsewhere:
                # It may have failed behind this barrier, of which this process only has to hear that all were here.
                if not concurrent.futures.wait([arrived], timeout=5).done:
                    raise
        arrived.result()

    def fail(self, error: BaseException) -> None:
        if self._store is not None:
            self._store.set(f"{self._prefix}/failed", _why(error))

    def check_others(self) -> None:
        if self._store is not None and (reason := self._store.get(f"{self._prefix}/failed")) is not None:
            raise _FailedElsewhere(reason)

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


class _FailedElsewhere(RuntimeError):
    """Another process could not write its part."""


def _in_one_line(record: logging.LogRecord) -> bool:
    """Leaves out where in orbax an error arose: whoever saves is told of it."""
    if "orbax" in record.pathname:
        record.exc_info = None
    return True


class Checkpoints:
    """The checkpoints of one run directory: written asynchronously, complete or absent, the newest ones kept.

    Beside each complete checkpoint lies a manifest, `manifests/<step>.json`: dtypes and shapes, size and CRC-32 of each
    file (orbax reads some damaged files without a word), and which run it is of. A checkpoint whose processes died
    before the manifest was written is trusted as orbax trusts it.

    Args:
      directory: of the run, a path or a URL such as gs://bucket/run; checkpoints lie in its folder `checkpoints`.
      max_to_keep: older ones are deleted.
      read_only: never creates anything.
    """

    def __init__(self, directory: Path | epath.Path | str, max_to_keep: int | None = None, read_only: bool = False):
        home = epath.Path(directory)
        self._home = home if _is_url(home) else epath.Path(os.path.abspath(home))
        self._path = self._home / "checkpoints"
        self._aside = self._home / "corrupt_checkpoints"
        self._manifests = self._home / "manifests"
        self._max_to_keep = max_to_keep
        logging.getLogger("absl").addFilter(_in_one_line)
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._save: _Save | None = None
        self._sealing: concurrent.futures.Future | None = None
        self._handler = ocp.CompositeCheckpointHandler(
            params=ocp.StandardCheckpointHandler(),
            rest=ocp.StandardCheckpointHandler(),
            meta=ocp.JsonCheckpointHandler(),
        )
        self._checkpointer = ocp.AsyncCheckpointer(
            self._handler,
            async_options=ocp.options.AsyncOptions(timeout_secs=_TIMEOUT_S, barrier_sync_fn=self._barrier),
            # Process 0 has looked: what one of the others sees must not make it leave the common path.
            file_options=ocp.options.FileOptions(skip_sync_file_validations=True),
        )
        if not read_only and processes.is_primary():
            self._path.mkdir(parents=True, exist_ok=True)
            self._clean()

    def _barrier(self, *, key: str, timeout_ms: int) -> None:
        assert self._save is not None
        self._save.barrier(key, timeout_ms)

    def _restored(self, step: int, **items: Any) -> Any:
        """Items of a checkpoint, by the handler: orbax's own `restore` ends in a barrier that a failing one misses."""
        return self._handler.restore(self._path / str(step), args=ocp.args.Composite(**items))

    def _clean(self) -> None:
        """Deletes what a process left unfinished when it died or failed, in writing or in deleting."""
        for path in _children(self._path):
            unfinished = ".orbax-checkpoint-tmp" in path.name or path.name.endswith(_DELETED)
            if path.name.isdecimal() and _is_url(path):  # where an unfinished one has its final name
                unfinished = not ocp.utils.is_checkpoint_finalized(path)
            if unfinished and path.is_dir():
                path.rmtree(missing_ok=True)

    def _present(self) -> list[int]:
        """Steps with a directory, as process 0 sees them: the same in all processes."""
        return _of_primary(lambda: _numbered(self._path))

    def _is_complete(self, step: int) -> bool:
        path = self._path / str(step)
        return _of_primary(lambda: (path / "params").is_dir() and ocp.utils.is_checkpoint_finalized(path))

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first; a bare directory named like a step is none."""
        self.wait()
        return [step for step in self._present() if self._is_complete(step)]

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise, as far as this process knows by now."""
        return self._sealing is not None and self._sealing.done() and self._sealing.exception() is not None

    def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Starts to write the state; returns as soon as it is copied off the devices.

        Args:
          meta: of the run, what JSON can hold; `fingerprint` and `config_hash` go into the manifest too.

        Raises:
          RuntimeError: that step has a checkpoint already.
          SaveError: the previous checkpoint could not be written, or nothing can be written now; in all processes
            unless it says otherwise.
        """
        self.wait()
        step = int(state.step)
        self._prepare(step)
        if step in self._present():
            raise RuntimeError(f"checkpoint {step} was not written: {self._path} has one already")
        save = self._save = _Save(step)
        contents = _contents(state, meta)
        try:
            self._checkpointer.save(
                self._path / str(step),
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    rest=ocp.args.StandardSave(_rest(state)),
                    meta=ocp.args.JsonSave(dict(meta)),
                ),
            )
        except Exception as error:
            if not isinstance(error, _FailedElsewhere):
                save.fail(error)
            if jax.process_count() > 1:
                raise SaveError(step, _why(error), alone=True) from error
            self._sealing = concurrent.futures.Future()
            self._sealing.set_exception(error)
        else:
            self._sealing = self._executor.submit(self._seal, save, contents)

    def _prepare(self, step: int) -> None:
        """Finds out beforehand, for all processes, whether process 0 can write: it makes the directories."""
        reason = None
        if processes.is_primary():
            try:
                self._manifests.mkdir(exist_ok=True)
                self._clean()
                if not (self._path / str(step)).exists():
                    self._manifest(step).unlink(missing_ok=True)  # of a checkpoint that is gone
                probe = self._path / "probe"
                probe.write_text("can be written")
                probe.unlink()
            except Exception as error:  # object storage has errors of its own
                reason = _why(error)
        reason = _first(collectives.gather(reason))
        if reason is not None:
            raise SaveError(step, reason)

    def _manifest(self, step: int) -> epath.Path:
        return self._manifests / f"{step}.json"

    def _seal(self, save: _Save, contents: Mapping[str, Any]) -> None:
        """Writes the manifest of a checkpoint once it is complete, and deletes the oldest ones.

        Runs beside the training loop, which joins it before it touches the checkpoints again.
        """
        try:
            writer = self._checkpointer._async_manager._thread
            while writer is not None and writer.is_alive():
                writer.join(0.25)
                save.check_others()  # what has failed there, this process may wait for
            self._checkpointer.wait_until_finished()
            self._write_manifest(save, contents)
            self._delete_old()
        except BaseException as error:
            if not isinstance(error, _FailedElsewhere):
                save.fail(error)
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Ends the threads that orbax leaves behind where a save has failed.

        They wait for directories, five minutes in each process and at its end, also for those that could not be made;
        and what they still write must not come among the files of the next save.
        """
        # Of what is given up before it began, which is meant.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        writing = self._checkpointer._async_manager._commit_futures or ()
        for commit in writing:
            with contextlib.suppress(RuntimeError):  # it has just come to its end
                commit.cancel()
        # "Made", so that all look up.
        future.set_signals(
            [HandlerAwaitableSignal.STEP_DIRECTORY_CREATION, HandlerAwaitableSignal.ITEM_DIRECTORY_CREATION],
            operation_id=OperationIdGenerator.get_current_operation_id(),
        )
        for commit in writing:
            with contextlib.suppress(BaseException):  # of a save that has failed already
                commit.result(_TIMEOUT_S)
        with contextlib.suppress(BaseException):  # which the next save would be told of
            self._checkpointer.wait_until_finished()

    def _write_manifest(self, save: _Save, contents: Mapping[str, Any]) -> None:
        path = self._path / str(save.step)
        # Not every file system shows what process 0 has just made to all machines at once: it does the rest.
        files = files_below(path) if processes.is_primary() or path.is_dir() else {}
        sums = save.union({name: _checksum(path) for name, path in files.items() if _is_own(name)})
        if sums is None:
            return
        self._manifests.mkdir(exist_ok=True)
        sums |= {name: _checksum(path) for name, path in files.items() if name not in sums}
        text = json.dumps({**contents, "files": dict(sorted(sums.items()))}, indent=1)
        if _is_url(self._manifests):  # where it is there whole or not at all
            self._manifest(save.step).write_text(text)
            return
        write_durably(Path(self._manifest(save.step)), text)

    def _delete_old(self) -> None:
        if not processes.is_primary() or self._max_to_keep is None:
            return
        for step in _numbered(self._path)[: -self._max_to_keep]:
            path = self._path / str(step)
            try:
                if not _is_url(path):
                    # In one move: a half deleted one would look like a damaged one.
                    path = path.rename(self._path / f"{step}{_DELETED}")
                path.rmtree()
                self._manifest(step).unlink(missing_ok=True)
            except Exception as error:  # the new checkpoint is whole, and the next one tries again
                print(f"checkpoint {step} is not needed and could not be deleted: {_why(error)}", file=sys.stderr)

    def _read_manifest(self, step: int) -> dict[str, Any]:
        """The manifest of a checkpoint; empty if it has none."""
        path = self._manifest(step)
        if not path.exists():
            return {}
        try:
            manifest = json.loads(path.read_text())
        except ValueError as error:
            raise _DamagedError(f"its manifest is no JSON: {error}") from error
        return manifest if "files" in manifest else {"files": manifest}  # as they were before they said more

    def _check_files(self, step: int, manifest: Mapping[str, Any]) -> None:
        """Raises _DamagedError, naming a file, if this process's share of a checkpoint differs from its manifest."""
        files = files_below(self._path / str(step))
        for name, (size, crc) in manifest.get("files", {}).items():
            if not _is_own(name):
                continue
            if name not in files:
                raise _DamagedError(f"file {name} is missing")
            actual = _checksum(files[name])
            if actual[0] != size:
                raise _DamagedError(f"file {name} has {actual[0]} bytes instead of {size}")
            if actual[1] != crc:
                raise _DamagedError(f"the checksum of file {name} differs")

    def _check_arrays(self, step: int, manifest: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        """Raises CheckpointError, naming an array, if a checkpoint holds other arrays than expected."""
        for item, tree in expected.items():
            if item not in manifest:
                continue
            there, wanted = manifest[item], _arrays(tree)
            for name in [*wanted, *there]:
                if there.get(name) != wanted.get(name):
                    raise CheckpointError(
                        f"checkpoint {step} of {self._home} is of another model or optimizer: its {item}{name} is "
                        f"{there.get(name, 'missing')}, expected {wanted.get(name, 'none')}; use the code and config "
                        "that wrote it, or start again in another run directory"
                    )

    def restore_latest(
        self, state: TrainState, shardings: Any, warn: Callable[[str], None]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest state that can be read, placed by `shardings`.

        A newer checkpoint that cannot be read is moved to the folder `corrupt_checkpoints`: the run will come by its
        step again.

        Args:
          state: gives shapes and dtypes.
          warn: told of each checkpoint that was passed over.

        Returns:
          State and meta, or None if there is no checkpoint.

        Raises:
          CheckpointError: there were checkpoints, but none can be read, or they are of another model.
          RestoreError: one is intact by its manifest, and cannot be restored all the same.
        """

        def restore(step: int, manifest: Mapping[str, Any]) -> tuple[TrainState, dict[str, Any]]:
            restored = self._restored(
                step,
                params=ocp.args.StandardRestore(_abstract(state.params, shardings.params)),
                rest=ocp.args.StandardRestore(_abstract(_rest(state), _rest(shardings))),
                meta=ocp.args.JsonRestore(),
            )
            new = dataclasses.replace(state, params=restored["params"], **restored["rest"])
            if int(new.step) != step:
                raise _DamagedError(f"it holds step {int(new.step)}")
            meta = restored["meta"]
            if "data" not in meta:  # as it was saved before there were several processes
                meta["data"] = json.loads((self._path / str(step) / "data" / "process_0-of-1.json").read_text())
            for name in _IDENTITY:
                if name in manifest and manifest[name] != meta.get(name):
                    raise _DamagedError(
                        f"its manifest is of another run: {name} {manifest[name]}, not {meta.get(name)}"
                    )
            return new, meta

        complete = self.steps()
        incomplete = sorted(set(self._present()) - set(complete))
        if not complete and _of_primary(lambda: any(self._manifest(step).exists() for step in incomplete)):
            raise CheckpointError(
                f"the checkpoints {incomplete} in {self._path} were whole and have lost some of their files: bring one "
                "back from a copy, or start again in another run directory"
            )
        for step in incomplete:
            self._put_aside(step)
            warn(f"checkpoint {step} is incomplete; moved to {self._aside}")
        if not complete:
            return None
        found, step, unreadable = self._newest_readable(
            restore, {"params": state.params, "rest": _rest(state)}, complete
        )
        for bad, reason in unreadable.items():
            self._put_aside(bad)
            warn(f"checkpoint {bad} cannot be read ({reason}); moved to {self._aside}; going on from checkpoint {step}")
        if _of_primary(lambda: not self._manifest(step).exists()):  # its processes died before they could
            self._write_manifest(_Save(step), _contents(*found))
        return found

    def restore_params(
        self, params: Any, shardings: Any, warn: Callable[[str], None], step: int | None = None
    ) -> tuple[Any, int]:
        """The params of the newest checkpoint that can be read, or of that of `step`, placed by `shardings`.

        Args:
          params: gives shapes and dtypes.
          warn: told of each checkpoint that was passed over.

        Returns:
          The params and their step.

        Raises:
          CheckpointError: there is none, or none that can be read.
          RestoreError: as of `restore_latest`.
        """

        def restore(step: int, manifest: Mapping[str, Any]) -> Any:
            return self._restored(step, params=ocp.args.StandardRestore(_abstract(params, shardings)))["params"]

        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            wanted = "no checkpoints" if step is None else f"no checkpoint of step {step} (there are {steps})"
            raise CheckpointError(f"{self._home} has {wanted}: train it first, or give another run directory")
        found, chosen, unreadable = self._newest_readable(
            restore, {"params": params}, steps if step is None else [step]
        )
        for bad, reason in unreadable.items():
            warn(f"checkpoint {bad} of {self._home} cannot be read ({reason}); taking checkpoint {chosen}")
        return found, chosen

    def _newest_readable(
        self, restore: Callable[[int, Mapping[str, Any]], Any], expected: Mapping[str, Any], steps: Sequence[int]
    ) -> tuple[Any, int, dict[int, str]]:
        """What `restore` yields for the newest step it can read, that step, and why newer ones could not be read."""
        unreadable: dict[int, str] = {}
        for step in reversed(steps):
            read = functools.partial(self._checked_manifest, step)
            manifest, damage = self._read_by_all(step, read, _is_damage_of_files)
            if damage is None:
                read = functools.partial(self._checked_arrays, restore, expected, step, manifest)
                found, damage = self._read_by_all(
                    step, read, _is_damage_of_known if manifest else _is_damage_of_unknown
                )
            if damage is None:
                return found, step, unreadable
            unreadable[step] = damage
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in unreadable.items())
        raise CheckpointError(
            f"none of the checkpoints {sorted(unreadable)} in {self._path} can be read ({reasons}): bring one back "
            "from a copy, or start again in another run directory"
        )

    def _checked_manifest(self, step: int) -> dict[str, Any]:
        manifest = self._read_manifest(step)
        self._check_files(step, manifest)
        return manifest

    def _checked_arrays(
        self, restore: Callable[[int, Mapping[str, Any]], Any], expected: Mapping[str, Any], step: int, manifest: Any
    ) -> Any:
        self._check_arrays(step, manifest, expected)
        return restore(step, manifest)

    def _read_by_all(
        self, step: int, read: Callable[[], Any], is_damage: Callable[[Exception], bool]
    ) -> tuple[Any, str | None]:
        """What `read` returns, and how the checkpoint is damaged as some process found it; the latter is the same in
        all, so that none goes on to what another does not.

        Raises:
          RestoreError: in all, for an error of one that is no damage.
        """
        found, reason, damaged = None, None, False
        try:
            found = read()
        except CheckpointError:
            raise
        except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
            reason, damaged = _why(error), is_damage(error)
        reasons = collectives.gather([reason, damaged])
        other = _first([None if damaged else reason for reason, damaged in reasons])
        if other is not None:
            raise RestoreError(f"checkpoint {step} in {self._path} could not be restored, and is not damaged: {other}")
        return found, _first([reason for reason, _ in reasons])

    def _put_aside(self, step: int) -> None:
        if processes.is_primary():
            target = self._aside / str(step)
            if target.exists():
                target.rmtree()
            self._aside.mkdir(exist_ok=True)
            if _is_url(self._aside):  # where a folder is there as long as it holds something
                (self._aside / "README").write_text("Checkpoints that could not be read.\n")
            (self._path / str(step)).rename(target)
            self._manifest(step).unlink(missing_ok=True)

    def wait(self) -> None:
        """Returns when everything started has been written, its manifest too.

        Raises:
          SaveError: it could not be, in some process; raised in all.
        """
        sealing, self._sealing = self._sealing, None
        if sealing is None:
            return
        assert self._save is not None
        error = sealing.exception()
        reasons = collectives.gather([None if error is None else _why(error), isinstance(error, _FailedElsewhere)])
        own = [reason for reason, elsewhere in reasons if reason is not None and not elsewhere]
        reason = _first([None if elsewhere and own else reason for reason, elsewhere in reasons])
        if reason is not None:
            raise SaveError(self._save.step, reason) from error

    def close(self) -> None:
        """Waits for what this process does and releases threads; asks nothing of other processes, of which one may
        have failed.

        Raises:
          SaveError: what was started and not waited for could not be written, as far as this process knows.
        """
        sealing, self._sealing = self._sealing, None
        try:
            if sealing is not None and (error := sealing.exception()) is not None:
                assert self._save is not None
                raise SaveError(self._save.step, _why(error)) from error
        finally:
            self._executor.shutdown()
            self._checkpointer.close()
