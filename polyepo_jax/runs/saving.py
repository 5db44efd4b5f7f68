"""Saving in the course of a run: what is written before what, and what becomes of a checkpoint that cannot be."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polyepo_jax.config import RunConfig
from polyepo_jax.errors import RunError, warn_on_stderr
from polyepo_jax.runs.checkpoints import Checkpoints, SaveError
from polyepo_jax.runs.journal import Journal
from polyepo_jax.training.update import TrainState
from polyepo_jax.types import Rollouts


class Saving:
    """Saves a run's state behind its journal, as config.on_save_failure says.

    Args:
      where: what the user calls the run directory.
      resume_command: what a user types to go on.
    """

    def __init__(self, config: RunConfig, checkpoints: Checkpoints, journal: Journal, where: str, resume_command: str):
        self._config, self._checkpoints, self._journal = config, checkpoints, journal
        self._where, self._resume_command = where, resume_command

    @property
    def failed(self) -> bool:
        """Whether the save under way has failed, as far as this process knows by now."""
        return self._checkpoints.failed

    def steps(self) -> list[int]:
        """Steps that have a checkpoint."""
        return self._checkpoints.steps()

    def save(self, state: TrainState, meta: Mapping[str, Any], in_flight: Sequence[Rollouts], needed: bool) -> None:
        """Starts to save; `needed` where the run ends with it.

        Raises:
          RunError: the run cannot do without a checkpoint that could not be written.
        """
        with self._errors():
            self._checkpoints.wait()
        with self._errors(needed):
            self._checkpoints.save(state, meta, in_flight)

    def wait(self, needed: bool = False) -> None:
        """Returns when what was started is written; raises RunError as `save` does."""
        with self._errors(needed):
            self._checkpoints.wait()

    def wait_for_what_can_be(self) -> None:
        """As `wait`, where another error ends the run."""
        with contextlib.suppress(SaveError):
            self._checkpoints.wait()

    @contextlib.contextmanager
    def _errors(self, needed: bool = False) -> Iterator[None]:
        """Ends the run, unless it can do without the checkpoint and is configured to go on."""
        try:
            yield
        except SaveError as error:
            advice = f"in {self._where}: make room or restore access, then go on with: {self._resume_command}"
            if error.alone:
                raise RunError(f"{error}; the older ones are as they were, {advice}") from error
            if needed or self._config.on_save_failure == "stop":
                raise RunError(f"{error}; {self._kept()}, {advice}") from error
            self._journal.say(f"{error}; going on without it, as on_save_failure says; {self._kept()}")

    def _kept(self) -> str:
        """Which checkpoints there are, as far as that can be read where one could not be written."""
        kept: list[int] | None = None
        with contextlib.suppress(Exception):
            kept = self._checkpoints.steps()
        return "the older ones are as they were" if kept is None else f"there are those of steps {kept}"


def close(checkpoints: Checkpoints) -> None:
    """Closes them at the end of a run, whatever ends it."""
    try:
        checkpoints.close()
    except SaveError as error:  # beside the one that ends the run
        warn_on_stderr(str(error))
