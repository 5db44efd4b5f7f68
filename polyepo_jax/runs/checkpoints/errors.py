"""What can go wrong with checkpoints, in one line each, and what of it is damage."""

from collections.abc import Sequence

import jax

from polyepo_jax.errors import RunError


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


class DamagedError(ValueError):
    """A checkpoint is not what its manifest says."""


class FailedElsewhere(RuntimeError):
    """Another process could not write its part."""


def why(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return reason if isinstance(error, DamagedError | FailedElsewhere) else f"{type(error).__name__}: {reason:.300}"


def first(reasons: Sequence[str | None]) -> str | None:
    """What went wrong in some process, with the process where there are several; None if nothing did."""
    found = [(process, reason) for process, reason in enumerate(reasons) if reason is not None]
    if not found:
        return None
    return found[0][1] if len(reasons) == 1 else f"process {found[0][0]}: {found[0][1]}"


def is_damage_of_files(error: Exception) -> bool:
    """Any other error, of access for one, says nothing of what is in the files."""
    return isinstance(error, DamagedError | FileNotFoundError)


def is_damage_of_known(error: Exception) -> bool:
    """Of a checkpoint whose files are what its manifest says."""
    return isinstance(error, DamagedError)


def is_damage_of_unknown(error: Exception) -> bool:
    """Of a checkpoint without a manifest."""
    return not isinstance(error, jax.errors.JaxRuntimeError)  # out of memory, for one
