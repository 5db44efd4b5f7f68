"""The checkpoints of a run directory: saved, restored, passed over where they are damaged."""

import concurrent.futures
import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from polyepo_jax.pods import collectives, processes
from polyepo_jax.runs.checkpoints import contents, files, orbax_threads
from polyepo_jax.runs.checkpoints.errors import (
    CheckpointError,
    DamagedError,
    FailedElsewhere,
    SaveError,
    first,
    why,
)
from polyepo_jax.runs.checkpoints.manifests import Manifests
from polyepo_jax.runs.checkpoints.reading import newest_readable, of_primary
from polyepo_jax.runs.checkpoints.save_in_progress import SaveInProgress
from polyepo_jax.training.update import TrainState
from polyepo_jax.types import Rollouts

_DELETED = ".deleted"
_TIMEOUT_S = 1200  # of a save, from its start to the last process's last file


def any_checkpoint(directory: Path | epath.Path | str) -> bool:
    """Whether a run directory has something like a checkpoint; the same in all processes.

    Raises:
      RestoreError: it cannot be read.
    """
    return of_primary(lambda: bool(files.numbered(epath.Path(directory) / "checkpoints")))


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
        self._home = home if files.is_url(home) else epath.Path(os.path.abspath(home))
        self._path = self._home / "checkpoints"
        self._aside = self._home / "corrupt_checkpoints"
        self._manifests = Manifests(self._home)
        self._max_to_keep = max_to_keep
        logging.getLogger("absl").addFilter(_in_one_line)
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._save: SaveInProgress | None = None
        self._sealing: concurrent.futures.Future | None = None
        self._handler = contents.handler()
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

    def _restored(self, step: int, items: Mapping[str, Any]) -> Any:
        """Items of a checkpoint, by the handler: orbax's own `restore` ends in a barrier that a failing one misses."""
        return self._handler.restore(self._path / str(step), args=ocp.args.Composite(**items))

    def _restored_state(
        self, state: TrainState, shardings: Any, rollouts: Rollouts, step: int, manifest: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, Any], list[Rollouts]]:
        meta = dict(self._restored(step, contents.meta_to_restore())["meta"])
        in_flight = [rollouts] * len(meta.get(contents.IN_FLIGHT, ()))
        self._manifests.check_arrays(step, manifest, {contents.IN_FLIGHT: contents.arrays_in_flight(in_flight)})
        restored = self._restored(step, contents.to_restore(state, shardings, in_flight))
        new = contents.restored_state(state, restored)
        if int(new.step) != step:
            raise DamagedError(f"it holds step {int(new.step)}")
        if "data" not in meta:  # as it was saved before there were several processes
            meta["data"] = json.loads((self._path / str(step) / "data" / "process_0-of-1.json").read_text())
        for name in contents.IDENTITY:
            if name in manifest and manifest[name] != meta.get(name):
                raise DamagedError(f"its manifest is of another run: {name} {manifest[name]}, not {meta.get(name)}")
        return new, meta, contents.restored_in_flight(restored, len(in_flight))

    def _clean(self) -> None:
        """Deletes what a process left unfinished when it died or failed, in writing or in deleting."""
        for path in files.children(self._path):
            unfinished = ".orbax-checkpoint-tmp" in path.name or path.name.endswith(_DELETED)
            if path.name.isdecimal() and files.is_url(path):  # where an unfinished one has its final name
                unfinished = not ocp.utils.is_checkpoint_finalized(path)
            if unfinished and path.is_dir():
                path.rmtree(missing_ok=True)

    def _present(self) -> list[int]:
        """Steps with a directory, as process 0 sees them: the same in all processes."""
        return of_primary(lambda: files.numbered(self._path))

    def _is_complete(self, step: int) -> bool:
        path = self._path / str(step)
        return of_primary(lambda: (path / "params").is_dir() and ocp.utils.is_checkpoint_finalized(path))

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first; a bare directory named like a step is none."""
        self.wait()
        return [step for step in self._present() if self._is_complete(step)]

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise, as far as this process knows by now."""
        return self._sealing is not None and self._sealing.done() and self._sealing.exception() is not None

    def save(self, state: TrainState, meta: Mapping[str, Any], in_flight: Sequence[Rollouts] = ()) -> None:
        """Starts to write the state; returns as soon as it is copied off the devices.

        Args:
          meta: of the run, what JSON can hold; `fingerprint` and `config_hash` go into the manifest too.
          in_flight: rollouts of the next steps; where there are any, `meta` has an entry of each under IN_FLIGHT.

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
        save = self._save = SaveInProgress(step)
        description = contents.described(state, meta, in_flight)
        writers = orbax_threads.writers()
        try:
            self._checkpointer.save(self._path / str(step), args=contents.to_save(state, meta, in_flight))
        except Exception as error:
            if not isinstance(error, FailedElsewhere):
                save.fail(error)
            if jax.process_count() > 1:
                raise SaveError(step, why(error), alone=True) from error
            orbax_threads.outlast(writers, _TIMEOUT_S)
            self._sealing = concurrent.futures.Future()
            self._sealing.set_exception(error)
        else:
            self._sealing = self._executor.submit(self._seal, save, description)

    def _prepare(self, step: int) -> None:
        """Finds out beforehand, for all processes, whether process 0 can write: it makes the directories."""
        reason = None
        if processes.is_primary():
            try:
                self._manifests.make_folder()
                self._clean()
                if not (self._path / str(step)).exists():
                    self._manifests.of(step).unlink(missing_ok=True)  # of a checkpoint that is gone
                probe = self._path / "probe"
                probe.write_text("can be written")
                probe.unlink()
            except Exception as error:  # object storage has errors of its own
                reason = why(error)
        reason = first(collectives.gather(reason))
        if reason is not None:
            raise SaveError(step, reason)

    def _seal(self, save: SaveInProgress, description: Mapping[str, Any]) -> None:
        """Writes the manifest of a checkpoint once it is complete, and deletes the oldest ones.

        Runs beside the training loop, which joins it before it touches the checkpoints again.
        """
        try:
            writer = orbax_threads.writer_of(self._checkpointer)
            while writer is not None and writer.is_alive():
                writer.join(0.25)
                save.check_others()  # what has failed there, this process may wait for
            self._checkpointer.wait_until_finished()
            self._manifests.write(save, description)
            self._delete_old()
        except BaseException as error:
            if not isinstance(error, FailedElsewhere):
                save.fail(error)
            orbax_threads.abandon(self._checkpointer, _TIMEOUT_S)
            raise

    def _delete_old(self) -> None:
        if not processes.is_primary() or self._max_to_keep is None:
            return
        for step in files.numbered(self._path)[: -self._max_to_keep]:
            path = self._path / str(step)
            try:
                if not files.is_url(path):
                    # In one move: a half deleted one would look like a damaged one.
                    path = path.rename(self._path / f"{step}{_DELETED}")
                path.rmtree()
                self._manifests.of(step).unlink(missing_ok=True)
            except Exception as error:  # the new checkpoint is whole, and the next one tries again
                print(f"checkpoint {step} is not needed and could not be deleted: {why(error)}", file=sys.stderr)

    def restore_latest(
        self, state: TrainState, shardings: Any, warn: Callable[[str], None], rollouts: Any = ()
    ) -> tuple[TrainState, dict[str, Any], list[Rollouts]] | None:
        """The newest state that can be read, placed by `shardings`.

        A newer checkpoint that cannot be read is moved to the folder `corrupt_checkpoints`: the run will come by its
        step again.

        Args:
          state: gives shapes and dtypes.
          warn: told of each checkpoint that was passed over.
          rollouts: of a step, gives shapes, dtypes and places; () where a run samples none.

        Returns:
          State, meta and the rollouts of the next steps that were sampled ahead, or None if there is no checkpoint.

        Raises:
          CheckpointError: there were checkpoints, but none can be read, or they are of another model.
          RestoreError: one is intact by its manifest, and cannot be restored all the same.
        """
        complete = self.steps()
        incomplete = sorted(set(self._present()) - set(complete))
        if not complete and of_primary(lambda: any(self._manifests.of(step).exists() for step in incomplete)):
            raise CheckpointError(
                f"the checkpoints {incomplete} in {self._path} were whole and have lost some of their files: bring one "
                "back from a copy, or start again in another run directory"
            )
        for step in incomplete:
            self._put_aside(step)
            warn(f"checkpoint {step} is incomplete; moved to {self._aside}")
        if not complete:
            return None
        restore = functools.partial(self._restored_state, state, shardings, rollouts)
        expected = {"params": state.params, "rest": contents.rest_of(state)}
        found, step, unreadable = newest_readable(self._path, self._manifests, restore, expected, complete)
        for bad, reason in unreadable.items():
            self._put_aside(bad)
            warn(f"checkpoint {bad} cannot be read ({reason}); moved to {self._aside}; going on from checkpoint {step}")
        if of_primary(lambda: not self._manifests.of(step).exists()):  # its processes died before they could
            self._manifests.write(SaveInProgress(step), contents.described(*found))
        return found

    def restore_params(
        self, params: Any, shardings: Any, warn: Callable[[str], None], step: int | None = None
    ) -> tuple[Any, dict[str, Any], int]:
        """The params of the newest checkpoint that can be read, or of that of `step`, placed by `shardings`.

        Args:
          params: gives shapes and dtypes.
          warn: told of each checkpoint that was passed over.

        Returns:
          The params, the meta, and their step.

        Raises:
          CheckpointError: there is none, or none that can be read.
          RestoreError: as of `restore_latest`.
        """

        def restore(step: int, manifest: Mapping[str, Any]) -> Any:
            restored = self._restored(step, contents.params_to_restore(params, shardings) | contents.meta_to_restore())
            return restored["params"], dict(restored["meta"])

        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            wanted = "no checkpoints" if step is None else f"no checkpoint of step {step} (there are {steps})"
            raise CheckpointError(f"{self._home} has {wanted}: train it first, or give another run directory")
        wanted_steps = steps if step is None else [step]
        (found, meta), chosen, unreadable = newest_readable(
            self._path, self._manifests, restore, {"params": params}, wanted_steps
        )
        for bad, reason in unreadable.items():
            warn(f"checkpoint {bad} of {self._home} cannot be read ({reason}); taking checkpoint {chosen}")
        return found, meta, chosen

    def _put_aside(self, step: int) -> None:
        if processes.is_primary():
            target = self._aside / str(step)
            if target.exists():
                target.rmtree()
            self._aside.mkdir(exist_ok=True)
            if files.is_url(self._aside):  # where a folder is there as long as it holds something
                (self._aside / "README").write_text("Checkpoints that could not be read.\n")
            (self._path / str(step)).rename(target)
            self._manifests.of(step).unlink(missing_ok=True)

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
        reasons = collectives.gather([None if error is None else why(error), isinstance(error, FailedElsewhere)])
        own = [reason for reason, elsewhere in reasons if reason is not None and not elsewhere]
        reason = first([None if elsewhere and own else reason for reason, elsewhere in reasons])
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
                raise SaveError(self._save.step, why(error)) from error
        finally:
            self._executor.shutdown()
            self._checkpointer.close()
