"""Numbers of a step, and where they are written."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import rich.console
import rich.progress

from polyepo_jax.sets import SIGNAL_THRESHOLD, has_signal
from polyepo_jax.types import DEGENERATE, Grades, Rollouts

Metrics = Mapping[str, float]


def _mean(values: np.ndarray) -> float:
    """The mean, NaN (null in files) of nothing."""
    return float(np.mean(values)) if values.size else math.nan


def _num_distinct(clusters_N: np.ndarray) -> int:
    return len(set(clusters_N.tolist()) - {DEGENERATE})


def _effective_number(clusters_N: np.ndarray) -> float:
    """exp of the entropy of the shares of the non-degenerate clusters (Hill number of order 1); 0 if there is none."""
    _, counts = np.unique(clusters_N[clusters_N != DEGENERATE], return_counts=True)
    shares = counts / counts.sum()
    return float(np.exp(-np.sum(shares * np.log(shares)))) if counts.size else 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Completions:
    """What the metrics need to know of the generations of P prompts; NumPy arrays.

    lengths_PN: tokens, the end token included. logprobs_PN: of all of a generation's tokens together, as sampled, nats.
    truncated_PN: cut at the length limit.
    """

    lengths_PN: np.ndarray
    logprobs_PN: np.ndarray
    truncated_PN: np.ndarray


def completions_of(rollouts: Rollouts) -> Completions:
    """Of rollouts on the host."""
    mask_PNT = np.asarray(rollouts.completion_mask_PNT)
    logprobs_PNT = np.asarray(rollouts.sampler_logprobs_PNT, np.float64)
    return Completions(
        mask_PNT.sum(axis=2), np.sum(logprobs_PNT, axis=2, where=mask_PNT), np.asarray(rollouts.truncated_PN)
    )


def rollout_metrics(completions: Completions, grades: Grades, advantages_PN: np.ndarray) -> dict[str, float]:
    """What the rollouts of a step look like; arrays on the host. Invalid generations are left out.

    `clusters/*` count different non-degenerate clusters among a prompt's N generations, means over prompts;
    `clusters/effective` counts them by their shares: as many clusters of equal size have the same entropy.
    `advantages/nonzero_frac` is the share of groups that carry signal, `rewards/all_correct_frac` that of groups whose
    generations are all correct, `advantages/positive_frac_*` the share of positive ones among such generations.
    `completions/entropy` is the mean of -logprob of the sampled tokens, an unbiased estimate of the entropy of
    the sampled distribution, nats a token.
    """
    rewards_PN, clusters_PN, valid_PN = map(np.asarray, (grades.rewards_PN, grades.clusters_PN, grades.valid_PN))
    num_tokens = int(np.sum(completions.lengths_PN))
    correct_PN = (rewards_PN > 0) & valid_PN
    incorrect_PN = (rewards_PN <= 0) & valid_PN
    groups = list(zip(clusters_PN, valid_PN, correct_PN, strict=True))
    all_correct_P = np.all(correct_PN | ~valid_PN, axis=1) & valid_PN.any(axis=1)
    return {
        "rewards/mean": _mean(rewards_PN[valid_PN]),
        "rewards/all_correct_frac": _mean(all_correct_P),
        "coverage": _mean(correct_PN.any(axis=1)),
        "clusters/distinct": _mean(np.array([_num_distinct(c[v]) for c, v, _ in groups])),
        "clusters/distinct_correct": _mean(np.array([_num_distinct(c[r]) for c, _, r in groups])),
        "clusters/effective": _mean(np.array([_effective_number(c[v]) for c, v, _ in groups])),
        "clusters/degenerate_frac": _mean(clusters_PN[valid_PN] == DEGENERATE),
        "advantages/nonzero_frac": _mean(has_signal(advantages_PN)),
        "advantages/positive_frac_correct": _mean(advantages_PN[correct_PN] >= SIGNAL_THRESHOLD),
        "advantages/positive_frac_incorrect": _mean(advantages_PN[incorrect_PN] >= SIGNAL_THRESHOLD),
        "completions/mean_length": _mean(completions.lengths_PN),
        "completions/truncated_frac": _mean(completions.truncated_PN),
        "completions/entropy": -float(np.sum(completions.logprobs_PN)) / num_tokens if num_tokens else math.nan,
    }


class Writer(Protocol):
    """Takes the metrics of each step, in order."""

    def write(self, step: int, metrics: Metrics) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line, `step` first. Undefined numbers are null.

    Args:
      path: of the file; lines of steps after `keep_through` are cut off, a half-written last line too.
      keep_through: the step of the checkpoint that the run goes on from.
    """

    def __init__(self, path: Path, keep_through: int):
        kept = [line for line in read_lines(path) if line["step"] <= keep_through]
        # In place of the old file only when complete: a crash here must not lose the log.
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, path)
        self._file = path.open("a")

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Returns when all that was written is on the disk: a checkpoint must not be newer than its log."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        # Each line was flushed: what is left is one that could not be written, of which its writer has been told.
        with contextlib.suppress(OSError):
            self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON-lines file; an interrupted write may have left half a line at its end."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class TensorBoard:
    """Event files; steps after `keep_through` of an earlier process are purged."""

    def __init__(self, directory: Path, keep_through: int):
        # Where torch is installed this imports it, and takes seconds: only for whom wants it.
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=keep_through + 1)

    def write(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        # What a checkpoint continues from must not be lost with the process.
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases run (extra `wandb`). Its key comes from the environment.

    Raises:
      ValueError: wandb is not installed.
    """

    def __init__(self, project: str, directory: Path, config: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                f"logging.wandb_project = {project!r} needs the package wandb: pip install 'polyepo-jax[wandb]', "
                "or set logging.wandb_project to None"
            ) from error
        # The run's identity is its directory, so that a resumed run continues the same page.
        path = str(directory.absolute())
        identity = hashlib.sha256(path.encode()).hexdigest()[:16]
        name = "/".join(directory.absolute().parts[-2:])
        self._run = wandb.init(project=project, id=identity, name=name, dir=path, config=config, resume="allow")

    def write(self, step: int, metrics: Metrics) -> None:
        self._run.log({k: v for k, v in metrics.items() if math.isfinite(v)}, step=step)

    def close(self) -> None:
        self._run.finish()


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
    """

    def __init__(self, first_step: int, max_steps: int, shown: Mapping[str, tuple[str, str]], quiet: bool = False):
        self._console = _Console(stderr=True, quiet=quiet)
        self._shown = shown
        self._first, self._last = first_step, max_steps
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed}/{task.total}"),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.TextColumn("{task.fields[values]}"),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=max_steps, completed=first_step, values="compiling ...")
        self._progress.start()

    def write(self, step: int, metrics: Metrics) -> None:
        values = "  ".join(f"{label} {metrics[name]:{spec}}" for name, (label, spec) in self._shown.items())
        with self._console.unheard():
            self._progress.update(self._task, completed=step, values=values)
        every = max((self._last - self._first) // 20, 1)
        if not self._console.is_terminal and (step % every == 0 or step == self._last):
            self.say(f"step {step}/{self._last}  {values}")

    def say(self, line: str) -> None:
        """A line that stays, above the live one."""
        with self._console.unheard():
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        with self._console.unheard():
            self._progress.stop()
