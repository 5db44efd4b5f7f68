"""What all training commands share around their step: restore, log, evaluate, save, stop.

A session turns a config and a run directory into a stream of steps. The same command on the same directory goes on
where the last complete checkpoint left off, with the same random numbers and the same data order.

Of several processes all go through the same code at the same point, and process 0 writes what is written once: logs,
lines for the user.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import math
import os
import resource
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from polyepo_jax.config import Config, RunConfig
from polyepo_jax.config.files import to_json
from polyepo_jax.config.meshes import mesh_of, prompts_to_tokenize
from polyepo_jax.config.specs import evaluation_spec, stream
from polyepo_jax.errors import InputError, Interrupted, RunError, warn_on_stderr
from polyepo_jax.evaluation import sample
from polyepo_jax.judges import Rubric
from polyepo_jax.model import init
from polyepo_jax.pods import collectives, object_storage, peers, processes
from polyepo_jax.runs import model_directory, run_directory, signals
from polyepo_jax.runs.checkpoint import CheckpointError, Checkpoints, SaveError, any_checkpoint
from polyepo_jax.runs.metrics import JsonLines, Progress, TensorBoard, WeightsAndBiases, Writer, read_lines
from polyepo_jax.runs.startup import admitted, load_params
from polyepo_jax.runs.watchdog import Watchdog
from polyepo_jax.sharding import any_process
from polyepo_jax.training import data
from polyepo_jax.training.update import TrainState, UpdateSpec, init_state, state_shardings

AnyWriter = TypeVar("AnyWriter", bound=Writer)

# Steps traced by --profile, counted from the first of the process: compilation is over by then.
PROFILED_STEPS = range(2, 5)


@dataclasses.dataclass(frozen=True)
class _Deferred:
    """A dispatched step whose numbers are still on the devices."""

    step: int
    stats: Mapping[str, jax.Array]
    metrics: dict[str, float]
    dispatched_at: float


class Session:
    """A run in progress. Use as a context manager, and iterate `steps()`.

    Attributes:
      state: the train state; the loop replaces it.
      mesh: of all devices.
      reference_params: the initial policy if the loss needs it, else ().
      settled_at: time.perf_counter() when the latest settled step was complete.
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
        with collectives.agreed():
            self._check(config, directory)
        collectives.check_same(
            training_problems=self._fingerprint,
            validation_problems=data.fingerprint(self._validation, 0, 0),
            rubric_of_the_judge=self._rubric,
        )
        self._shardings = state_shardings(spec, self.mesh)
        # A run that has checkpoints goes on from them, also when what it started from is gone by now.
        self._initial: tuple[Any, int | None] | None = None
        if not any_checkpoint(object_storage.home(directory)):
            self._initial = self._make_initial_params(None)
        self._stop_signal: int | None = None
        self._news: jax.Array | None = None
        self._deferred: _Deferred | None = None
        self._unevaluated: dict[str, float] | None = None  # metrics of the last step, whose evaluation was interrupted
        self._pusher = object_storage.Pusher(directory)
        self._stack = contextlib.ExitStack()
        self._profiling = False
        self._step = 0
        self.complete = False
        self.settled_at = time.perf_counter()
        self._aside_s = 0.0  # evaluating and saving since then, which is no part of a step

    def _check(self, config: RunConfig, directory: Path) -> None:
        """All that can be checked on the host, by each process for itself."""
        changes = run_directory.check(directory, config)
        self._notes = [f"resumed with a changed {change}" for change in changes]
        self._problems = admitted(config, "train")
        self._validation = admitted(config, "validation")[: config.evaluation.num_validation_prompts]
        if config.eval_interval_steps and not self._validation:
            raise InputError(
                f"eval_interval_steps = {config.eval_interval_steps}, but the task has no validation problems: set it "
                "to 0"
            )
        num_dropped = len(config.task.problems("train")) - len(self._problems)
        if num_dropped:
            self._notes.append(f"{num_dropped} training prompts longer than max_prompt_length are left out")
        self._notes += getattr(config.task, "notes", ())
        self.mesh = mesh_of(config)
        try:
            dataset = data.prompt_dataset(
                self._problems,
                config.task.tokenizer,
                config.prompts_per_step,
                config.max_prompt_length,
                config.seed,
                prompts_to_tokenize(config, self.mesh),
            )
        except ValueError as error:
            raise InputError(str(error)) from error
        self._data: Any = iter(dataset)
        self._fingerprint = data.fingerprint(self._problems, config.prompts_per_step, config.seed)
        self._rubric = _rubric_of(config)
        if config.logging.wandb_project is not None and importlib.util.find_spec("wandb") is None:
            raise InputError(
                "logging.wandb_project needs the package wandb: pip install -e '.[wandb]', or leave it out"
            )

    def _make_initial_params(self, init_step: int | None) -> tuple[Any, int | None]:
        config = self._config
        if config.init.run_dir is not None:
            source = object_storage.working_copy(Path(config.init.run_dir))
            params, step = load_params(source, config, self.mesh, init_step or config.init.step)
            wanted = run_directory.read_config(source).max_steps
            if config.init.step is None and init_step is None and step < wanted:
                raise InputError(
                    f"init.run_dir {config.init.run_dir} is at step {step} of {wanted}: finish that run first, or set "
                    f"init.step = {step} to start from there"
                )
            return params, step
        if config.init.model_dir is not None:
            return model_directory.load(Path(config.init.model_dir), config.model, self.mesh), None
        make = jax.jit(init, static_argnums=0, out_shardings=self._shardings.params)
        return make(config.model, stream(config.seed, "init")), None

    # --- entering and leaving ---

    def __enter__(self) -> "Session":
        with contextlib.ExitStack() as stack:
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
            self._checkpoints = Checkpoints(object_storage.home(self._directory), self._config.max_to_keep)
            stack.callback(self._close_checkpoints)
            first_step = self._restore()
            self._open_writers(stack, first_step)
            for note in self._notes:
                self._progress.say(note)
            if first_step:
                self._progress.say(f"going on from step {first_step} of {self._config.max_steps}")
            self._watchdog = Watchdog(
                self._config.logging.slow_step_factor,
                self._progress.say,
                jax.process_index(),
                jax.process_count(),
                processes.key_values(),
            )
            self._watchdog.start()
            stack.callback(self._watchdog.close)
            self._catch_signals(stack)
            stack.enter_context(jax.set_mesh(self.mesh))
            self._stack = stack.pop_all()
        return self

    def _open_writers(self, stack: contextlib.ExitStack, first_step: int) -> None:
        quiet = not processes.is_primary()
        self._progress = Progress(first_step, self._config.max_steps, self._shown, quiet)
        stack.enter_context(contextlib.closing(self._progress))
        self._writers: list[Writer] = [self._progress]
        self._logs: list[JsonLines] = []
        if quiet:
            return

        def opened(writer: AnyWriter) -> AnyWriter:
            return stack.enter_context(contextlib.closing(writer))

        directory, logging = self._directory, self._config.logging
        # A step that is still to be evaluated has its metrics written after that, again if need be.
        last_written = first_step if self._unevaluated is None else first_step - 1
        metrics = opened(JsonLines(directory / "metrics.jsonl", last_written))
        self._samples = opened(JsonLines(directory / "samples.jsonl", first_step))
        self._logs += [metrics, self._samples]
        self._writers.insert(0, metrics)  # before it is shown
        if logging.tensorboard:
            self._writers.append(opened(TensorBoard(directory / "tensorboard", last_written)))
        if logging.wandb_project is not None:
            try:
                wandb = WeightsAndBiases(logging.wandb_project, directory, to_json(self._config))
            except Exception as error:  # wandb's own: no network, no key, ...
                raise RunError(f"logging.wandb_project: {type(error).__name__}: {error}") from error
            self._writers.append(opened(wandb))

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def _restore(self) -> int:
        """Sets the state, from the newest checkpoint if there is one; returns its step."""
        config, spec = self._config, self._spec
        abstract = jax.eval_shape(lambda: init_state(spec, init(config.model, jax.random.key(0))))
        try:
            warn = warn_on_stderr if processes.is_primary() else lambda line: None
            restored = self._checkpoints.restore_latest(abstract, self._shardings, warn)
        except CheckpointError as error:
            raise InputError(str(error)) from error
        if restored is None:
            params, self._init_step = self._initial or self._make_initial_params(None)
            # A copy: updates donate the state, and the initial params may serve as the reference.
            make = jax.jit(init_state, static_argnums=0, out_shardings=self._shardings, donate_argnums=1)
            self.state: TrainState = make(spec, jax.tree.map(lambda x: x.copy(), params))
        else:
            self.state, meta = restored
            if meta.get("config_hash", "") != run_directory.config_hash(config):
                run_directory.compare(self._directory, meta.get("config", to_json(config)), config)
            if meta["fingerprint"] != self._fingerprint:
                raise InputError(
                    f"the training prompts differ from those of {self._where}: a resumed run would see another "
                    "order; restore the data, or choose another --run-dir"
                )
            if meta.get("rubric", self._rubric) != self._rubric:
                raise InputError(
                    f"the judge's rubric is not what it was for {self._where}: restore its file, or choose another "
                    "--run-dir"
                )
            self._data.set_state(meta["data"])
            if meta.get("machines", _machines()) != _machines():
                self._notes.append(f"resumed on {_machines()}, was saved by {meta['machines']}")
            self._init_step = meta["init_step"]
            self._unevaluated = meta.get("unevaluated")
            if self._unevaluated is not None and self._has_metrics_of(int(self.state.step)):
                self._unevaluated = None  # it was evaluated since
            params = self._make_initial_params(self._init_step)[0] if spec.loss.needs_reference else ()
        self.reference_params = params if spec.loss.needs_reference else ()
        self._initial = None
        return int(self.state.step)

    def _has_metrics_of(self, step: int) -> bool:
        """Whether the log has them already, the same in all processes."""
        lines = read_lines(self._directory / "metrics.jsonl") if processes.is_primary() else []
        return any(collectives.gather(any(line["step"] == step for line in lines)))

    def _catch_signals(self, stack: contextlib.ExitStack) -> None:
        def request_stop(number: int) -> None:
            self._stop_signal = number
            peers.request_stop()
            line = f"{signal.Signals(number).name}: saving, then ending (again: ending at once)\n"
            with contextlib.suppress(OSError):  # a terminal that is gone
                os.write(2, line.encode())

        stack.enter_context(signals.heeded(request_stop))

    # --- the steps ---

    def steps(self) -> Iterator[tuple[int, data.PromptBatch]]:
        """Yields (step, prompts), step counting from 0; the loop body must `defer` its numbers.

        After the body it saves, evaluates and stops as the config and signals say.
        """
        config, first_step = self._config, int(self.state.step)
        is_to_evaluate = self._unevaluated is not None
        if self._unevaluated is not None:
            self._record(first_step, self._unevaluated)
            if self._unevaluated is not None:  # a signal again: the checkpoint is as it was
                self._say_stopped(first_step, "its evaluation not done")
                return
            self._keep_logs(needed=True)  # there may be no further save
        if first_step >= config.max_steps:
            self.complete = True
            what = "evaluated" if is_to_evaluate else "nothing to do"
            self._progress.say(f"{what}: {self._where} is at step {first_step} of {config.max_steps}")
            return
        self.settled_at, self._aside_s = time.perf_counter(), 0.0
        for step in range(first_step, config.max_steps):
            self._step = step
            self._switch_profiler(step - first_step)
            self._data_before_step = self._data.get_state()
            yield step, self.next_prompts()
            done = step + 1
            # Saving and evaluating read the state: the step is settled first, nothing else being under way.
            save = done % config.save_interval_steps == 0 or done == config.max_steps
            stop = False
            if save or self._evaluates_after(done) or self._is_to_pause():
                self.settle()
                # Asked once, by all at this point: it may come at any moment, and in the evaluation too.
                told = collectives.gather([self.stop_requested, self._checkpoints.failed])
                stop = any(stop for stop, _ in told)
                if any(failed for _, failed in told):
                    with self._save_errors():
                        self._checkpoints.wait()
            if save or stop:
                self._save(needed=stop or done == config.max_steps)
            if stop and (done < config.max_steps or self._unevaluated is not None):
                self._finish_saving()
                self._say_stopped(done, "" if self._unevaluated is None else "its evaluation not done")
                return
        self._finish_saving()
        self.complete = True
        self._progress.say(f"done: step {config.max_steps}, in {self._where}")

    def _say_stopped(self, done: int, remark: str) -> None:
        remark = f" ({remark})" if remark else ""
        self._progress.say(
            f"stopped at step {done} of {self._config.max_steps}{remark}; go on with: {self._resume_command}"
        )

    def _evaluates_after(self, done: int) -> bool:
        every = self._config.eval_interval_steps
        return every > 0 and done % every == 0

    def _switch_profiler(self, index: int) -> None:
        if not self._profile:
            return
        if index == PROFILED_STEPS.start:
            self.settle()
            jax.profiler.start_trace(str(self._directory / "profile"))
            self._stack.callback(self._stop_profiler)
            self._profiling = True
        if index == PROFILED_STEPS.stop:
            self._stop_profiler()

    def _stop_profiler(self) -> None:
        if self._profiling:
            self.settle()
            jax.profiler.stop_trace()
            self._profiling = False
            self._progress.say(f"profile in {self._directory / 'profile'}")

    def next_prompts(self) -> data.PromptBatch:
        """Another batch of prompts within a step; the next step goes on behind it."""
        return next(self._data)

    def defer(self, step: int, stats: Mapping[str, jax.Array], metrics: dict[str, float]) -> None:
        """Takes the numbers of a step whose update was just dispatched; they are read one step later.

        Args:
          step: updates done after this one.
          stats: from `train_step`, still being computed.
          metrics: known on the host already.
        """
        self._deferred = _Deferred(step, stats, metrics, time.perf_counter())

    def settle(self) -> None:
        """Waits for the deferred step, and writes its metrics; does nothing when there is none.

        Called after the next rollout was dispatched, so that the devices have work while the host waits.

        Raises:
          RunError: too many updates in a row were not finite.
        """
        deferred, self._deferred = self._deferred, None
        if deferred is None:
            return
        waits = time.perf_counter()
        stats = {name: float(value) for name, value in jax.device_get(deferred.stats).items()}
        now = time.perf_counter()
        step_s = now - self.settled_at - self._aside_s
        times = {"time/step_s": step_s, "time/update_s": now - deferred.dispatched_at}
        # What the host spends on anything but waiting for the devices counts against them, even where they work on.
        waited = now - waits + deferred.metrics.get("time/rollout_wait_s", 0.0)
        times["time/rollout_update_frac"] = waited / step_s
        times["throughput/train_tokens_per_s"] = stats.pop("tokens") / times["time/update_s"]
        self.settled_at, self._aside_s = now, 0.0
        self._watchdog.step_done(step_s)
        nonfinite_in_a_row = stats.pop("nonfinite_in_a_row")
        self._record(deferred.step, deferred.metrics | _named(stats) | times | _memory())
        if nonfinite_in_a_row >= self._config.max_nonfinite_updates:
            with contextlib.suppress(SaveError):
                self._checkpoints.wait()
            raise RunError(
                f"stopped at step {deferred.step}: loss or gradient was not finite in {nonfinite_in_a_row:.0f} updates "
                f"in a row, all skipped; the newest checkpoints in {self._where} are of steps "
                f"{self._checkpoints.steps()}; lower learning_rate, or look for the first null in metrics.jsonl"
            )

    def _record(self, step: int, metrics: dict[str, float]) -> None:
        """Writes a step's metrics, with an evaluation where one is due.

        If a signal interrupts that, they are kept for the checkpoint: who resumes from it evaluates first.
        """
        self._unevaluated = None
        if self._evaluates_after(step):
            try:
                with self._watchdog.aside("evaluation"):
                    evaluation = self._evaluate()
            except Interrupted:
                self._unevaluated = metrics
                return
            metrics = metrics | evaluation
            self._aside_s += evaluation["time/eval_s"]
        with self._log_errors():
            for writer in self._writers:
                writer.write(step, metrics)

    @property
    def stop_requested(self) -> bool:
        """Whether a signal asks the run to end, here or, as far as this process has heard, in another process."""
        return self._stop_signal is not None or peers.stop_requested()

    def raise_if_stopped(self, reason: str) -> None:
        """Asks all processes, which all call this at the same point, once the devices have done what is dispatched.

        Raises:
          Interrupted: in all of them, as one is asked to end the run.
        """
        if any(collectives.gather(self.stop_requested)):
            raise Interrupted(reason)

    def _has_news(self) -> bool:
        """Whether all processes should talk after this step: about stopping, or about a save that failed."""
        return self.stop_requested or self._checkpoints.failed

    def ask_whether_to_stop(self) -> None:
        """Starts to ask all processes whether one of them was told to stop. The loop body calls this once, right before
        it dispatches the update, which every later question to the devices would wait for."""
        if jax.process_count() > 1:
            self._news = any_process(self.mesh, self._has_news())

    def _is_to_pause(self) -> bool:
        """Whether a process has news, the same in all of them."""
        return self._has_news() if self._news is None else bool(self._news)

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
        self._data.set_state(self._data_before_step)
        with self._save_errors():
            self._checkpoints.wait()
        step = int(self.state.step)
        if step and step not in self._checkpoints.steps():
            self._save(needed=True)
            self._finish_saving()
        return step

    def wants_samples(self) -> bool:
        """Whether generations of the present step go to samples.jsonl."""
        return self._step % self._config.logging.samples_interval_steps == 0

    def write_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Appends generations to samples.jsonl."""
        if processes.is_primary():
            with self._log_errors():
                for row in rows:
                    self._samples.write(step, row)

    def say(self, line: str) -> None:
        """A line for the user."""
        self._progress.say(line)

    def _evaluate(self) -> dict[str, float]:
        self.raise_if_stopped("an evaluation was due")
        start = time.perf_counter()
        evaluation = self._config.evaluation
        samples = sample(
            evaluation_spec(self._config, evaluation.num_samples, self._config.sampler()),
            self.state.params,
            self._config.task,
            self._validation,
            self._config.max_prompt_length,
            self._evaluation_rows(),
            stream(self._config.seed, "evaluation"),
            self.mesh,
            lambda: self.stop_requested,
        )
        if samples.failures:
            self.say(f"evaluation: {len(samples.failures)} grading calls failed; first: {samples.failures[0]}")
        summary = samples.summary()
        if summary is None:
            return {"time/eval_s": time.perf_counter() - start}
        flat = {f"eval/pass_at_{k}": value for k, value in summary["pass_at_k"].items()}
        for name in ("coverage", "distinct", "distinct_correct", "degenerate_frac", "truncated_frac"):
            flat[f"eval/{name}"] = summary[name]
        return flat | {"time/eval_s": time.perf_counter() - start}

    def _evaluation_rows(self) -> int:
        """Rows of a wave: no more than training samples, for the same state lies beside them."""
        config, evaluation = self._config, self._config.evaluation
        most = config.sampling.max_rows if isinstance(config, Config) else evaluation.max_rows
        return max(min(evaluation.max_rows, most), evaluation.num_samples)

    def _save(self, needed: bool) -> None:
        """Starts to save; `needed` where the run ends with it."""
        start = time.perf_counter()
        # The log first: what a checkpoint continues from must be on the disk before the checkpoint is.
        self._keep_logs(needed)
        meta = {
            "fingerprint": self._fingerprint,
            "rubric": self._rubric,
            "init_step": self._init_step,
            "unevaluated": self._unevaluated,
            "machines": _machines(),
            "data": self._data.get_state(),
            "config": to_json(self._config),
            "config_hash": run_directory.config_hash(self._config),
        }
        with self._watchdog.aside("save"):
            with self._save_errors():
                self._checkpoints.wait()
            with self._save_errors(needed):
                self._checkpoints.save(self.state, meta)
        self._aside_s += time.perf_counter() - start

    def _keep_logs(self, needed: bool) -> None:
        """Returns when all that was logged is on the disk, and where the run lives."""
        with self._log_errors():
            for log in self._logs:
                log.sync()
        self._push(needed)

    @contextlib.contextmanager
    def _save_errors(self, needed: bool = False) -> Iterator[None]:
        """Ends the run, unless it can do without the checkpoint and is configured to go on."""
        try:
            yield
        except SaveError as error:
            if error.alone:
                raise RunError(
                    f"{error}; the older ones are as they were, in {self._where}: make room or restore "
                    f"access, then go on with: {self._resume_command}"
                ) from error
            if needed or self._config.on_save_failure == "stop":
                raise self._unsaved(error) from error
            self.say(f"{error}; going on without it, as on_save_failure says; {self._kept()}")

    def _kept(self) -> str:
        """Which checkpoints there are, as far as that can be read where one could not be written."""
        kept: list[int] | None = None
        with contextlib.suppress(Exception):
            kept = self._checkpoints.steps()
        return "the older ones are as they were" if kept is None else f"there are those of steps {kept}"

    def _unsaved(self, error: SaveError) -> RunError:
        return RunError(
            f"{error}; {self._kept()}, in {self._where}: make room or restore access, then go on with: "
            f"{self._resume_command}"
        )

    def _finish_saving(self) -> None:
        # Until all is written, which a save by itself does not wait for.
        with self._watchdog.aside("wait for the last save"), self._save_errors(needed=True):
            self._checkpoints.wait()
        self._push(needed=True)

    def _close_checkpoints(self) -> None:
        try:
            self._checkpoints.close()
        except SaveError as error:  # beside the one that ends the run
            warn_on_stderr(str(error))

    def _push(self, needed: bool) -> None:
        """Copies the logs to where the run lives; tried again at the next save, if the run can do without."""
        if not processes.is_primary():
            return
        with self._log_errors():
            try:
                self._pusher.push()
            except OSError as error:
                if needed or self._config.on_save_failure == "stop":
                    raise
                self.say(f"the logs could not be copied, as on_save_failure says the run goes on: {error.strerror}")

    @contextlib.contextmanager
    def _log_errors(self) -> Iterator[None]:
        """A log that cannot be written ends the run: what it does not say is lost."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"the log in {self._where} cannot be written ({error.strerror}): make room or restore access, then "
                f"go on with: {self._resume_command}"
            ) from error


def _machines() -> str:
    return f"{jax.process_count()} processes with {jax.device_count()} devices"


def _rubric_of(config: RunConfig) -> str:
    """What identifies the text that a judge goes by, which may be in a file; empty where there is none."""
    rubric = getattr(config.judge.clusterer, "rubric", None) if isinstance(config, Config) else None
    return "" if not isinstance(rubric, Rubric) else hashlib.sha256(rubric.template.encode()).hexdigest()[:16]


def _named(stats: Mapping[str, float]) -> dict[str, float]:
    """The update's numbers under the names of metrics.jsonl."""
    names = {
        "loss": "loss/policy",
        "supervised": "loss/supervised",
        "grad_norm": "loss/grad_norm",
        "clip_frac": "loss/clip_frac",
        "kl": "loss/kl",
        "nonfinite": "loss/nonfinite_updates",
        "sampler_gap": "logprobs/sampler_gap",
    }
    return {names[name]: value for name, value in stats.items()}


def _memory() -> dict[str, float]:
    """Peaks of this process and of its first device, bytes."""
    host = {"memory/host_peak_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)}
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use", math.nan)
    return host if math.isnan(peak) else host | {"memory/device_peak_bytes": float(peak)}
