"""What all training commands share around their step: restore, log, evaluate, save, stop.

A session turns a config and a run directory into a stream of steps. The same command on the same directory goes on
where the last complete checkpoint left off, with the same random numbers and the same data order.

Of several processes all go through the same code at the same point, and process 0 writes what is written once: logs,
lines for the user.
"""

import collections
import concurrent.futures
import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from polyepo_jax.config import RunConfig
from polyepo_jax.config.files import to_json
from polyepo_jax.errors import InputError, Interrupted, RunError
from polyepo_jax.model import joined
from polyepo_jax.pods import collectives, object_storage, processes
from polyepo_jax.runs import run_directory
from polyepo_jax.runs.checkpoints import Checkpoints, any_checkpoint
from polyepo_jax.runs.evaluating import evaluate, is_due
from polyepo_jax.runs.initial import Initial, make_initial
from polyepo_jax.runs.journal import Journal
from polyepo_jax.runs.preparation import prepare
from polyepo_jax.runs.profiling import Profiler
from polyepo_jax.runs.restoring import ToCome, restore, run_meta
from polyepo_jax.runs.saving import Saving, close
from polyepo_jax.runs.step_numbers import Deferred, settle
from polyepo_jax.runs.stopping import Stopping
from polyepo_jax.runs.watchdog import Watchdog
from polyepo_jax.training.data import PromptBatch
from polyepo_jax.training.rollouts import InFlight, Sampled
from polyepo_jax.training.update import UpdateSpec, state_shardings


class Session:
    """A run in progress. Use as a context manager, and iterate `steps()`.

    Attributes:
      state: the train state; the loop replaces it.
      step: the present one, counting from 0; so many are done.
      mesh: of all devices.
      frozen: the model's parameters that are not trained, or ().
      reference_params: as `state.params`, of the initial policy if the loss or kl/start needs it, else ().
      in_flight: rollouts that were sampled for steps to come, in their order; the loop adds and takes, checkpoints hold
        them.
      restored: those of the checkpoint that the run goes on from; the loop takes them there, to be graded again.
      stopping: who is asked to end the run.
      complete: whether the run is at its last step.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: Path,
        spec: UpdateSpec,
        resume_command: str,
        shown: Mapping[str, tuple[str, str]],
        profile: bool = False,
    ):
        """Checks all that can be checked before the directory is touched: an InputError here has written nothing.

        Args:
          config: of the run.
          directory: the run directory.
          spec: of the updates.
          resume_command: what a user types to go on.
          shown: metrics of the progress line, name -> (label, format).
          profile: trace a few steps with jax.profiler.
        """
        self._config, self._directory, self._spec = config, directory, spec
        self._where = object_storage.name_of(directory)
        self._resume_command, self._shown, self._profile = resume_command, shown, profile
        self._prepared = prepare(config, directory)
        self._data, self.mesh = self._prepared.data, self._prepared.mesh
        self._shardings = state_shardings(spec, self.mesh)
        # A run that has checkpoints goes on from them, also when what it started from is gone by now.
        self._initial: Initial | None = None
        if not any_checkpoint(object_storage.home(directory)):
            self._initial = make_initial(config, self.mesh)
        self.stopping = Stopping(self.mesh)
        self.in_flight: collections.deque[InFlight] = collections.deque()
        self.restored: list[Sampled] = []
        self._positions: list[Any] = []  # of the data, before the prompts of steps to come and of the present one
        self._deferred: Deferred | None = None
        self._pusher = object_storage.Pusher(directory)
        self._stack = contextlib.ExitStack()
        self.step = self._nonfinite_in_a_row = 0
        self.complete = False
        self._settled_at = time.perf_counter()
        self._aside_s = 0.0  # evaluating and saving since then, which is no part of a step

    # --- entering and leaving ---

    def __enter__(self) -> "Session":
        with contextlib.ExitStack() as stack:
            self._take_directory(stack)
            checkpoints = Checkpoints(object_storage.home(self._directory), self._config.max_to_keep)
            stack.callback(close, checkpoints)
            restored = restore(self._prepared, self._spec, self._shardings, checkpoints, self._initial)
            self._initial = None
            self.state, self.frozen, self.reference_params = restored.state, restored.frozen, restored.reference_params
            self._init_step, self._fingerprints = restored.init_step, restored.fingerprints
            self._unevaluated = restored.unevaluated
            first_step = int(self.state.step)
            if first_step < self._config.max_steps:  # else nothing is graded any more
                self.restored = [Sampled(self.next_prompts(), *kept) for kept in restored.in_flight]
            # A step that is still to be evaluated has its metrics written after that, again if need be.
            last_written = first_step if self._unevaluated is None else first_step - 1
            self._journal = stack.enter_context(
                contextlib.closing(
                    Journal(
                        self._config,
                        self._directory,
                        self._resume_command,
                        first_step,
                        last_written,
                        self._shown,
                        self._pusher,
                    )
                )
            )
            self._saving = Saving(self._config, checkpoints, self._journal, self._where, self._resume_command)
            for note in (*self._prepared.notes, *restored.notes):
                self.say(note)
            if first_step:
                self.say(f"going on from step {first_step} of {self._config.max_steps}")
            self._watch(stack)
            stack.enter_context(self.stopping.heeded())
            stack.enter_context(jax.set_mesh(self.mesh))
            self._profiler = Profiler(self._directory / "profile" if self._profile else None, self.settle, self.say)
            stack.callback(self._profiler.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def _take_directory(self, stack: contextlib.ExitStack) -> None:
        """Makes the run directory this run's, and keeps others out of it."""
        with collectives.agreed():
            if processes.is_primary():
                stack.enter_context(run_directory.hold(self._directory))
                # First of all: a directory without it is not taken for a run's.
                run_directory.write_json(self._directory / "config.json", to_json(self._config))
                try:
                    self._pusher.push()
                except OSError as error:
                    raise InputError(f"{error.strerror}; choose another --run-dir") from error
        run_directory.check_shared(self._directory)

    def _watch(self, stack: contextlib.ExitStack) -> None:
        self._watchdog = Watchdog(
            self._config.logging.slow_step_factor,
            self.say,
            jax.process_index(),
            jax.process_count(),
            processes.key_values(),
        )
        self._watchdog.start()
        stack.callback(self._watchdog.close)

    @property
    def params(self) -> Any:
        """All parameters of the policy, those that are frozen included."""
        return joined(self.state.params, self.frozen)

    # --- the steps ---

    def steps(self) -> Iterator[int]:
        """Yields steps, counting from 0; the loop body must `defer` its numbers.

        After the body it saves, evaluates and stops as the config and signals say.
        """
        config, first_step = self._config, int(self.state.step)
        is_to_evaluate = self._unevaluated is not None
        if self._unevaluated is not None:
            self._record(first_step, self._unevaluated)
            if self._unevaluated is not None:  # a signal again: the checkpoint is as it was
                self._say_stopped(first_step, "its evaluation not done")
                return
            self._journal.keep(needed=True)  # there may be no further save
        if first_step >= config.max_steps:
            self._check_last_updates(int(self.state.nonfinite_in_a_row))
            self.complete = True
            what = "evaluated" if is_to_evaluate else "nothing to do"
            self.say(f"{what}: {self._where} is at step {first_step} of {config.max_steps}")
            return
        self._settled_at, self._aside_s = time.perf_counter(), 0.0
        for step in range(first_step, config.max_steps):
            self.step = step
            self._profiler.before_step(step - first_step)
            del self._positions[: len(self._positions) - len(self.in_flight)]
            self._before_step = self._to_come()
            yield step
            done = step + 1
            # Saving and evaluating read the state: the step is settled first, nothing else being under way.
            save = done % config.save_interval_steps == 0 or done == config.max_steps
            stop = False
            if save or is_due(config, done) or self.stopping.answer(self._has_news()):
                stop = self._settle_and_ask()
            if save or stop:
                self._save(self._to_come(), needed=stop or done == config.max_steps)
            if stop and (done < config.max_steps or self._unevaluated is not None):
                self._finish_saving()
                self._say_stopped(done, "" if self._unevaluated is None else "its evaluation not done")
                return
        self._finish_saving()
        self._check_last_updates(self._nonfinite_in_a_row)
        self.complete = True
        self.say(f"done: step {config.max_steps}, in {self._where}")

    def _check_last_updates(self, nonfinite_in_a_row: int) -> None:
        """Raises RunError where a run that is at its end trained on nothing at last."""
        if nonfinite_in_a_row:
            raise RunError(
                f"{self._where} is at its last step, but loss or gradient was not finite in the last "
                f"{nonfinite_in_a_row} updates, all skipped: its parameters are those before them; lower learning_rate "
                "and choose another --run-dir, or look for the first null in metrics.jsonl"
            )

    def _settle_and_ask(self) -> bool:
        """Settles the step; returns whether the run is to end after it, the same in all processes."""
        self.settle()
        # Asked once, by all at this point: it may come at any moment, and in the evaluation too.
        told = collectives.gather([self.stopping.requested, self._saving.failed])
        if any(failed for _, failed in told):
            self._saving.wait()
        return any(stop for stop, _ in told)

    def _say_stopped(self, done: int, remark: str) -> None:
        remark = f" ({remark})" if remark else ""
        self.say(f"stopped at step {done} of {self._config.max_steps}{remark}; go on with: {self._resume_command}")

    def next_prompts(self) -> PromptBatch:
        """The next batch of prompts: of the present step, another one within it, or of a step to come."""
        self._positions.append(self._data.get_state())
        return next(self._data)

    def ask_whether_to_stop(self) -> None:
        """Starts to ask all processes whether one of them was told to stop. The loop body calls this once, right before
        it dispatches the update, which every later question to the devices would wait for."""
        self.stopping.ask(self._has_news())

    def _has_news(self) -> bool:
        """Whether all processes should talk after this step: about stopping, or about a save that failed."""
        return self.stopping.requested or self._saving.failed

    def defer(self, step: int, stats: Mapping[str, jax.Array], metrics: dict[str, float]) -> None:
        """Takes the numbers of a step whose update was just dispatched; they are read one step later. Settles the step
        before, where nothing was sampled meanwhile.

        Args:
          step: updates done after this one.
          stats: from `train_step` and `kl_to_start`, still being computed.
          metrics: known on the host already.
        """
        self.settle()
        self._deferred = Deferred(step, stats, metrics, time.perf_counter())

    def settle(self) -> float:
        """Waits for the deferred step, if there is one, and writes its metrics.

        Called after the next rollout was dispatched, so that the devices have work while the host waits.

        Returns:
          time.perf_counter() when the latest settled step was complete.

        Raises:
          RunError: too many updates in a row were not finite.
        """
        deferred, self._deferred = self._deferred, None
        if deferred is None:
            return self._settled_at
        settled = settle(deferred, self._settled_at, self._aside_s)
        self._settled_at, self._aside_s = settled.at, 0.0
        self._watchdog.step_done(settled.step_s)
        self._nonfinite_in_a_row = settled.nonfinite_in_a_row
        self._record(deferred.step, settled.metrics)
        if settled.nonfinite_in_a_row >= self._config.max_nonfinite_updates:
            self._saving.wait_for_what_can_be()
            raise RunError(
                f"stopped at step {deferred.step}: loss or gradient was not finite in {settled.nonfinite_in_a_row} "
                f"updates in a row, all skipped; the newest checkpoints in {self._where} are of steps "
                f"{self._saving.steps()}; lower learning_rate, or look for the first null in metrics.jsonl"
            )
        return self._settled_at

    def _record(self, step: int, metrics: dict[str, float]) -> None:
        """Writes a step's metrics, with an evaluation where one is due.

        If a signal interrupts that, they are kept for the checkpoint: who resumes from it evaluates first.
        """
        self._unevaluated = None
        if is_due(self._config, step):
            try:
                with self._watchdog.aside("evaluation"):
                    self._wait_for_task()
                    self.stopping.raise_if_requested("an evaluation was due")
                    evaluation = evaluate(self._prepared, self.params, lambda: self.stopping.requested, self.say)
            except Interrupted:
                self._unevaluated = metrics
                return
            metrics = metrics | evaluation
            self._aside_s += evaluation["time/eval_s"]
        self._journal.write(step, metrics)

    def _wait_for_task(self) -> None:
        """Until it has graded what is in flight: it need not bear an evaluation's calls beside those of training."""
        groups = [group for waiting in self.in_flight for group in waiting.own.submitted]
        calls = [call for group in groups for call in group.by_task]
        while concurrent.futures.wait(calls, timeout=1.0).not_done and not self.stopping.requested:
            pass

    # --- saving ---

    def give_up_step(self, reason: str) -> RunError:
        """Saves what was done before a step that cannot be finished.

        Returns:
          The error to end the run with: the same command takes up that step again, with the same prompts.
        """
        step = self._save_before_step()
        saved = f"its checkpoint is in {self._where}" if step else "there is nothing to save yet"
        return RunError(
            f"stopped after step {step} of {self._config.max_steps}, {saved}: {reason}; then go on with: "
            f"{self._resume_command}"
        )

    def stop_before_step(self, reason: str) -> None:
        """Saves what was done before a step that is given up, as the run is asked to end, and says so."""
        self._say_stopped(self._save_before_step(), f"the next one given up: {reason}")

    def _save_before_step(self) -> int:
        """Leaves a checkpoint to take the present step up again from, with the same prompts; returns the steps done."""
        self.settle()
        self._saving.wait()
        step = int(self.state.step)
        if step and step not in self._saving.steps():
            self._save(self._before_step, needed=True)
            self._finish_saving()
        return step

    def _to_come(self) -> ToCome:
        """What a checkpoint that is made now would go on with."""
        position = self._positions[-len(self.in_flight)] if self.in_flight else self._data.get_state()
        return ToCome(position, tuple(waiting.sampled for waiting in self.in_flight))

    def _save(self, to_come: ToCome, needed: bool) -> None:
        """Starts to save; `needed` where the run ends with it."""
        start = time.perf_counter()
        # The log first: what a checkpoint continues from must be on the disk before the checkpoint is.
        self._journal.keep(needed)
        with self._watchdog.aside("save"):
            meta = run_meta(self._prepared, to_come, self._init_step, self._fingerprints, self._unevaluated)
            self._saving.save(self.state, meta, to_come.rollouts, needed)
        self._aside_s += time.perf_counter() - start

    def _finish_saving(self) -> None:
        # Until all is written, which a save by itself does not wait for.
        with self._watchdog.aside("wait for the last save"):
            self._saving.wait(needed=True)
        self._journal.push(needed=True)

    # --- what is said and kept ---

    def wants_samples(self) -> bool:
        """Whether generations of the present step go to samples.jsonl."""
        return self.step % self._config.logging.samples_interval_steps == 0

    def wants_kl(self) -> bool:
        """Whether the present step says how far the policy has gone from the initial one."""
        interval = self._config.logging.kl_interval_steps
        return interval > 0 and (self.step + 1) % interval == 0

    def write_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Appends generations to samples.jsonl."""
        self._journal.write_samples(step, rows)

    def say(self, line: str) -> None:
        """A line for the user."""
        self._journal.say(line)
