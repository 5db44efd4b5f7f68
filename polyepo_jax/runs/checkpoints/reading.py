"""Reading checkpoints: all processes take the same one, or none does."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from polyepo_jax.pods import collectives, processes
from polyepo_jax.runs.checkpoints.errors import (
    CheckpointError,
    RestoreError,
    first,
    is_damage_of_files,
    is_damage_of_known,
    is_damage_of_unknown,
    why,
)
from polyepo_jax.runs.checkpoints.manifests import Manifests


def of_primary(read: Callable[[], Any]) -> Any:
    """What process 0 reads, in all processes.

    Raises:
      RestoreError: in all, where it cannot.
    """
    value, reason = None, None
    if processes.is_primary():
        try:
            value = read()
        except Exception as error:  # object storage has errors of its own
            reason = why(error)
    value, reason = collectives.gather([value, reason])[0]
    if reason is not None:
        raise RestoreError(f"the checkpoints cannot be read: {reason}")
    return value


def newest_readable(
    path: epath.Path,
    manifests: Manifests,
    restore: Callable[[int, Mapping[str, Any]], Any],
    expected: Mapping[str, Any],
    steps: Sequence[int],
) -> tuple[Any, int, dict[int, str]]:
    """What `restore` yields for the newest step it can read, that step, and why newer ones could not be read.

    Args:
      path: where the checkpoints lie.
      restore: from a step and its manifest.
      expected: item -> arrays that it must have by its manifest.
      steps: that have a checkpoint, oldest first.

    Raises:
      CheckpointError: none can be read, or one is of another model.
      RestoreError: in all processes, for an error of one that is no damage.
    """

    def checked(step: int, manifest: Mapping[str, Any]) -> Any:
        manifests.check_arrays(step, manifest, expected)
        return restore(step, manifest)

    unreadable: dict[int, str] = {}
    for step in reversed(steps):
        where = f"checkpoint {step} in {path}"
        manifest, damage = _read_by_all(where, functools.partial(manifests.checked, step), is_damage_of_files)
        if damage is None:
            is_damage = is_damage_of_known if manifest else is_damage_of_unknown
            found, damage = _read_by_all(where, functools.partial(checked, step, manifest), is_damage)
        if damage is None:
            return found, step, unreadable
        unreadable[step] = damage
    reasons = "; ".join(f"step {step}: {reason}" for step, reason in unreadable.items())
    raise CheckpointError(
        f"none of the checkpoints {sorted(unreadable)} in {path} can be read ({reasons}): bring one back from a copy, "
        "or start again in another run directory"
    )


def _read_by_all(where: str, read: Callable[[], Any], is_damage: Callable[[Exception], bool]) -> tuple[Any, str | None]:
    """What `read` returns, and how the checkpoint is damaged as some process found it; the latter is the same in all,
    so that none goes on to what another does not.

    Raises:
      RestoreError: in all, for an error of one that is no damage.
    """
    found, reason, damaged = None, None, False
    try:
        found = read()
    except CheckpointError:
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
        reason, damaged = why(error), is_damage(error)
    reasons = collectives.gather([reason, damaged])
    other = first([None if damaged else reason for reason, damaged in reasons])
    if other is not None:
        raise RestoreError(f"{where} could not be restored, and is not damaged: {other}")
    return found, first([reason for reason, _ in reasons])
