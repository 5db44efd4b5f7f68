"""Checkpoints of the train state and of the data's position, by orbax."""

import concurrent.futures
import dataclasses
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from polyepo_jax.update import TrainState

_ITEMS = ("params", "rest", "data", "meta")


class CheckpointError(Exception):
    """No checkpoint can be restored; one line that says why."""


def _abstract(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _rest(state: TrainState) -> dict[str, Any]:
    """The state without the params: these are an item of their own, so that others can read them alone."""
    return {"step": state.step, "opt_state": state.opt_state, "nonfinite_in_a_row": state.nonfinite_in_a_row}


def _checksums(directory: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file below a directory, by its relative path."""
    sums = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        crc = 0
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                crc = zlib.crc32(block, crc)
        sums[path.relative_to(directory).as_posix()] = [path.stat().st_size, crc]
    return sums


class Checkpoints:
    """The checkpoints of one run directory: written asynchronously, complete or absent, the newest ones kept.

    Beside each complete checkpoint lies a manifest of its files, `manifests/<step>.json`: orbax reads some damaged
    files without a word. A checkpoint whose process died before the manifest was written is trusted as orbax trusts
    it.

    Args:
      directory: of the run; checkpoints lie in its folder `checkpoints`.
      max_to_keep: older ones are deleted.
      read_only: never creates anything.
    """

    def __init__(self, directory: Path, max_to_keep: int | None = None, read_only: bool = False):
        self._path = (directory / "checkpoints").absolute()
        self._aside = directory / "corrupt_checkpoints"
        self._manifests = directory / "manifests"
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._sealing: concurrent.futures.Future | None = None
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=None if max_to_keep is None else preservation_policy.LatestN(max_to_keep),
            enable_async_checkpointing=not read_only,
            create=not read_only,
        )
        self._open()

    def _open(self) -> None:
        self._manager = ocp.CheckpointManager(self._path, item_names=_ITEMS, options=self._options)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first; a bare directory named like a step is none."""
        self.wait()
        return sorted(step for step in self._manager.all_steps() if (self._path / str(step) / "params").is_dir())

    def save(self, state: TrainState, data: grain.DatasetIterator, meta: dict[str, Any]) -> None:
        """Starts to write the state; returns as soon as it is copied off the devices.

        Raises:
          RuntimeError: that step has a checkpoint already (orbax would skip it without a word).
        """
        self.wait()
        step = int(state.step)
        if (self._path / str(step)).exists():
            raise RuntimeError(f"checkpoint {step} was not written: {self._path} has one already")
        self._manifest(step).unlink(missing_ok=True)  # of a checkpoint of the same step that is gone
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                rest=ocp.args.StandardSave(_rest(state)),
                data=grain.checkpoint.CheckpointSave(data),
                meta=ocp.args.JsonSave(meta),
            ),
        )
        self._sealing = self._executor.submit(self._seal, step)

    def _manifest(self, step: int) -> Path:
        return self._manifests / f"{step}.json"

    def _seal(self, step: int) -> None:
        """Writes the manifest of a checkpoint once it is complete; drops those of deleted checkpoints.

        Runs beside the training loop, which joins it before it touches the manager again.
        """
        self._manager.wait_until_finished()
        self._manifests.mkdir(exist_ok=True)
        temporary = self._manifest(step).with_suffix(".tmp")
        temporary.write_text(json.dumps(_checksums(self._path / str(step))))
        os.replace(temporary, self._manifest(step))
        kept = {str(step) for step in self._manager.all_steps()}
        for manifest in self._manifests.glob("*.json"):
            if manifest.stem not in kept:
                manifest.unlink()

    def _verify(self, step: int) -> None:
        """Raises ValueError, naming a file, if a checkpoint differs from its manifest."""
        path = self._manifest(step)
        if not path.exists():
            return
        expected, actual = json.loads(path.read_text()), _checksums(self._path / str(step))
        for name, (size, crc) in expected.items():
            if name not in actual:
                raise ValueError(f"file {name} is missing")
            if actual[name][0] != size:
                raise ValueError(f"file {name} has {actual[name][0]} bytes instead of {size}")
            if actual[name][1] != crc:
                raise ValueError(f"the checksum of file {name} differs")

    def restore_latest(
        self, state: TrainState, shardings: Any, data: grain.DatasetIterator, warn: Callable[[str], None]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest state that can be read, placed by `shardings`; sets the position of `data`.

        A newer checkpoint that cannot be read is moved to the folder `corrupt_checkpoints`: the run will come by its
        step again.

        Args:
          state: gives shapes and dtypes.
          warn: told of each checkpoint that was passed over.

        Returns:
          State and meta, or None if there is no checkpoint.

        Raises:
          CheckpointError: there were checkpoints, but none can be read.
        """

        def restore(step: int) -> tuple[TrainState, dict[str, Any]]:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(_abstract(state.params, shardings.params)),
                    rest=ocp.args.StandardRestore(_abstract(_rest(state), _rest(shardings))),
                    data=grain.checkpoint.CheckpointRestore(data),
                    meta=ocp.args.JsonRestore(),
                ),
            )
            new = dataclasses.replace(state, params=restored["params"], **restored["rest"])
            if int(new.step) != step:
                raise ValueError(f"it holds step {int(new.step)}")
            return new, restored["meta"]

        complete = self.steps()
        for step in set(self._manager.all_steps()) - set(complete):
            self._put_aside(step)
            warn(f"checkpoint {step} is incomplete; moved to {self._aside}")
        if not complete:
            return None
        found, step, unreadable = self._newest_readable(restore)
        for bad, reason in unreadable.items():
            self._put_aside(bad)
            warn(f"checkpoint {bad} cannot be read ({reason}); moved to {self._aside}; going on from checkpoint {step}")
        self._manager.reload()
        if not self._manifest(step).exists():
            self._seal(step)  # its process died before it could
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
        """

        def restore(step: int) -> Any:
            args = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(params, shardings)))
            return self._manager.restore(step, args=args)["params"]

        found, chosen, unreadable = self._newest_readable(restore, step)
        for bad, reason in unreadable.items():
            warn(f"checkpoint {bad} of {self._path.parent} cannot be read ({reason}); taking checkpoint {chosen}")
        return found, chosen

    def _newest_readable(
        self, restore: Callable[[int], Any], only: int | None = None
    ) -> tuple[Any, int, dict[int, str]]:
        """What `restore` yields for the newest step it can read, that step, and why newer ones could not be read."""
        steps = self.steps()
        if not steps or (only is not None and only not in steps):
            wanted = "no checkpoints" if only is None else f"no checkpoint of step {only} (there are {steps})"
            raise CheckpointError(f"{self._path.parent} has {wanted}: train it first, or give another run directory")
        unreadable: dict[int, str] = {}
        for step in reversed(steps if only is None else [only]):
            try:
                self._verify(step)
                return restore(step), step, unreadable
            except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                unreadable[step] = f"{type(error).__name__}: {reason:.200}"
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in unreadable.items())
        raise CheckpointError(
            f"none of the checkpoints {sorted(unreadable)} in {self._path} can be read ({reasons}): bring one back "
            "from a copy, or start again in another run directory"
        )

    def _put_aside(self, step: int) -> None:
        target = self._aside / str(step)
        if target.exists():
            shutil.rmtree(target)
        self._aside.mkdir(exist_ok=True)
        shutil.move(self._path / str(step), target)
        self._manifest(step).unlink(missing_ok=True)

    def wait(self) -> None:
        """Returns when everything started has been written, its manifest too; raises what prevented that."""
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            sealing.result()
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases threads."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            self._manager.close()
