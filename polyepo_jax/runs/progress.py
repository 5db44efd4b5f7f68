"""What a run shows in the terminal while it goes on."""

import contextlib
import os
from collections.abc import Iterator, Mapping

import rich.console
import rich.progress

from polyepo_jax.runs.metric_writers import Metrics


class _Console(rich.console.Console):
    """On stderr, which may go away, with a terminal for one: the run goes on without it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # What others write there fails no more, and neither does Python's own flush at the end.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)

    @contextlib.contextmanager
    def unheard(self) -> Iterator[None]:
        """For each use: a terminal that is gone says so in another way than a pipe."""
        try:
            yield
        except OSError:
            self.on_broken_pipe()


class Progress:
    """One live line in a terminal; elsewhere a plain line now and then.

    Args:
      first_step, max_steps: the range that this process covers.
      shown: metric name -> label and format, in order.
      quiet: shows nothing: another process does.
      unit: what a step is called.
    """

    def __init__(
        self,
        first_step: int,
        max_steps: int,
        shown: Mapping[str, tuple[str, str]],
        quiet: bool = False,
        unit: str = "step",
    ):
        self._console = _Console(stderr=True, quiet=quiet)
        self._shown, self._unit = shown, unit
        self._first, self._last = first_step, max_steps
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description} {task.completed}/{task.total}", markup=False),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.TextColumn("{task.fields[values]}"),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._progress.add_task(unit, total=max_steps, completed=first_step, values="compiling ...")
        self._progress.start()

    def write(self, step: int, metrics: Metrics) -> None:
        values = "  ".join(f"{label} {metrics[name]:{spec}}" for name, (label, spec) in self._shown.items())
        if skipped := metrics.get("loss/nonfinite_updates"):
            values += f"  not finite, updates skipped {skipped:.0f}"
        with self._console.unheard():
            self._progress.update(self._task, completed=step, values=values)
        every = max((self._last - self._first) // 20, 1)
        if not self._console.is_terminal and (step % every == 0 or step == self._last):
            self.say(f"{self._unit} {step}/{self._last}  {values}")

    def say(self, line: str) -> None:
        """A line that stays, above the live one."""
        with self._console.unheard():
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        with self._console.unheard():
            self._progress.stop()
