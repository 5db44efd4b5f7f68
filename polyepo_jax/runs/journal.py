"""What a run writes of its steps, and where: metrics and generations, kept until they are where the run lives."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from polyepo_jax.config import RunConfig
from polyepo_jax.config.files import to_json
from polyepo_jax.errors import RunError
from polyepo_jax.pods import object_storage, processes
from polyepo_jax.runs.metric_writers import JsonLines, Metrics, TensorBoard, WeightsAndBiases, Writer
from polyepo_jax.runs.progress import Progress

AnyWriter = TypeVar("AnyWriter", bound=Writer)


class Journal:
    """metrics.jsonl, samples.jsonl, TensorBoard, Weights & Biases and the line of progress. Process 0 writes them.

    Args:
      config, directory: of the run.
      resume_command: what a user types to go on.
      first_step: the step that the run goes on from; what the logs have of later ones is cut off.
      last_written: that of metrics, which are written again for a step whose evaluation was interrupted.
      shown: metrics of the line of progress, name -> (label, format).
      pusher: copies the logs to where the run lives.

    Raises:
      RunError: Weights & Biases does not start.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: Path,
        resume_command: str,
        first_step: int,
        last_written: int,
        shown: Mapping[str, tuple[str, str]],
        pusher: object_storage.Pusher,
    ):
        self._config, self._pusher = config, pusher
        self._where, self._resume_command = object_storage.name_of(directory), resume_command
        quiet = not processes.is_primary()
        with contextlib.ExitStack() as stack:

            def opened(writer: AnyWriter) -> AnyWriter:
                return stack.enter_context(contextlib.closing(writer))

            self._progress = opened(Progress(first_step, config.max_steps, shown, quiet))
            self._writers: list[Writer] = [self._progress]
            self._logs: list[JsonLines] = []
            if not quiet:
                metrics = opened(JsonLines(directory / "metrics.jsonl", last_written))
                self._samples = opened(JsonLines(directory / "samples.jsonl", first_step))
                self._logs += [metrics, self._samples]
                self._writers.insert(0, metrics)  # before it is shown
                if config.logging.tensorboard:
                    self._writers.append(opened(TensorBoard(directory / "tensorboard", last_written)))
                if config.logging.wandb_project is not None:
                    self._writers.append(opened(_weights_and_biases(config, directory)))
            self._stack = stack.pop_all()

    def say(self, line: str) -> None:
        """A line for the user."""
        self._progress.say(line)

    def write(self, step: int, metrics: Metrics) -> None:
        """The metrics of a step."""
        with self._errors():
            for writer in self._writers:
                writer.write(step, metrics)

    def write_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Appends generations to samples.jsonl."""
        if processes.is_primary():
            with self._errors():
                for row in rows:
                    self._samples.write(step, row)

    def keep(self, needed: bool) -> None:
        """Returns when all that was logged is on the disk, and where the run lives."""
        with self._errors():
            for log in self._logs:
                log.sync()
        self.push(needed)

    def push(self, needed: bool) -> None:
        """Copies the logs to where the run lives; tried again at the next save, if the run can do without."""
        if not processes.is_primary():
            return
        with self._errors():
            try:
                self._pusher.push()
            except OSError as error:
                if needed or self._config.on_save_failure == "stop":
                    raise
                self.say(f"the logs could not be copied, as on_save_failure says the run goes on: {error.strerror}")

    def close(self) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """A log that cannot be written ends the run: what it does not say is lost."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"the log in {self._where} cannot be written ({error.strerror}): make room or restore access, then "
                f"go on with: {self._resume_command}"
            ) from error


def _weights_and_biases(config: RunConfig, directory: Path) -> WeightsAndBiases:
    try:
        return WeightsAndBiases(str(config.logging.wandb_project), directory, to_json(config))
    except Exception as error:  # wandb's own: no network, no key, ...
        raise RunError(f"logging.wandb_project: {type(error).__name__}: {error}") from error
