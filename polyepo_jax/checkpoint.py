"""Checkpoints of the train state and of the data's position, by orbax."""

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
        self._unsealed: int | None = None
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=None if max_to_keep is None else preservation_policy.LatestN(max_to_keep),
            enable_async_checkpointing=not read_only,
            create=not read_only,
        )
        self._open()

    def _open(self) -> None:
        self._manager = ocp.CheckpointManager(self._path, item_names=_ITEMS, options=self._options)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, data: grain.DatasetIterator, meta: dict[str, Any]) -> None:
        """Starts to write the state; returns as soon as it is copied off the devices.

        Raises:
          RuntimeError: that step has a checkpoint already (orbax would skip it without a word).
        """
        self._seal()
        step = int(state.step)
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                rest=ocp.args.StandardSave(_rest(state)),
                data=grain.checkpoint.CheckpointSave(data),
                meta=ocp.args.JsonSave(meta),
            ),
        )
        if not saved:
            raise RuntimeError(f"checkpoint {step} was not written: {self._path} has one already")
        self._unsealed = step

    def _seal(self) -> None:
        """Waits for the save under way and writes its manifest; drops the manifests of deleted checkpoints."""
        self._manager.wait_until_finished()
        if self._unsealed is None:
            return
        self._manifests.mkdir(exist_ok=True)
        path = self._manifests / f"{self._unsealed}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(_checksums(self._path / str(self._unsealed))))
        os.replace(temporary, path)
        self._unsealed = None
        kept = {str(step) for step in self.steps()}
        for manifest in self._manifests.glob("*.json"):
            if manifest.stem not in kept:
                manifest.unlink()

    def _verify(self, step: int) -> None:
        """Raises ValueError, naming a file, if a checkpoint differs from its manifest."""
        path = self._manifests / f"{step}.json"
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

        A checkpoint that cannot be read is moved to the folder `corrupt_checkpoints`, and the one before it used.

        Args:
          state: gives shapes and dtypes.
          warn: told of each checkpoint that was passed over.

        Returns:
          State and meta, or None if there is no checkpoint.

        Raises:
          CheckpointError: there were checkpoints, but none can be read.
        """
        passed_over = []
        for step in reversed(self.steps()):
            try:
                self._verify(step)
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
            except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
                passed_over.append(step)
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                warn(
                    f"checkpoint {step} cannot be read ({type(error).__name__}: {reason:.200}); moved to {self._aside}"
                )
                continue
            for bad in passed_over:
                self._put_aside(bad)
            if passed_over:
                self._manager.close()
                self._open()
                warn(f"going on from checkpoint {step}")
            return new, restored["meta"]
        if passed_over:
            raise CheckpointError(
                f"none of the checkpoints {sorted(passed_over)} in {self._path} can be read: restore one from a "
                "backup, or start again in another run directory"
            )
        return None

    def _put_aside(self, step: int) -> None:
        target = self._aside / str(step)
        if target.exists():
            shutil.rmtree(target)
        self._aside.mkdir(exist_ok=True)
        shutil.move(self._path / str(step), target)

    def restore_params(self, step: int, params: Any, shardings: Any) -> Any:
        """The params of one checkpoint, placed by `shardings`; `params` gives shapes and dtypes.

        Raises:
          ValueError: a file differs from the manifest; and what orbax raises for other damage.
        """
        self._verify(step)
        args = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(params, shardings)))
        return self._manager.restore(step, args=args)["params"]

    def wait(self) -> None:
        """Returns when everything started has been written."""
        self._seal()

    def close(self) -> None:
        """Waits and releases threads."""
        self._seal()
        self._manager.close()
