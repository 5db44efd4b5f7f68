"""Samples a run's newest checkpoint on held-out problems: python -m polyepo_jax.evaluate --run-dir DIR

Writes DIR/eval.json: pass@k, majority@k, how many different (correct) answers there are among the samples, and where
they part, with intervals; the same of every problem to eval_problems.jsonl, and every generation to eval_samples.jsonl
(with .gz behind it where that is large). An evaluation that was interrupted goes on with the same command. A Hugging
Face (or imported) model is sampled on published sets, or on a config's task, by

python -m polyepo_jax.evaluate --model DIR --benchmark math500 aime25 --num-samples 16
python -m polyepo_jax.evaluate --model DIR --config FILE --out DIR

where --adapter DIR adds low-rank adapters to the model.

Several processes share the work where --coordinator-address, --num-processes and --process-id, or the environment, say
so.
"""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import rich.box
import rich.console
import rich.table
import rich.text

from polyepo_jax import __version__
from polyepo_jax.command_line import parse_command_line
from polyepo_jax.config import InitConfig, RunConfig
from polyepo_jax.config.files import load, to_json
from polyepo_jax.config.meshes import mesh_to_sample
from polyepo_jax.config.static_arguments import evaluation_spec, stream
from polyepo_jax.errors import InputError, RunError, run_command, warn_on_stderr
from polyepo_jax.evaluation import Outcome, Results, Unfinished, checksum, sample, summarize
from polyepo_jax.evaluation.sampling import Sampled
from polyepo_jax.evaluation.unfinished import FOLDER
from polyepo_jax.model import read_lora, without_adapters
from polyepo_jax.pods import collectives, object_storage, peers, processes
from polyepo_jax.runs import run_directory
from polyepo_jax.runs.initial import load_params, make_initial
from polyepo_jax.runs.model_shape import resolve
from polyepo_jax.runs.preparation import admitted
from polyepo_jax.runs.progress import Progress
from polyepo_jax.sampling import GenerationSpec
from polyepo_jax.sharding import Mesh
from polyepo_jax.shared_by_commands.benchmark_config import benchmark_config
from polyepo_jax.shared_by_commands.start import PROCESS_FLAGS, keep_compilations, keep_memory, take
from polyepo_jax.tasks import Problem
from polyepo_jax.training import data


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Sample a checkpoint on held-out problems and write eval.json.

    Attributes:
      run_dir: run directory; its newest checkpoint is evaluated.
      checkpoint_step: another checkpoint than the newest.
      model: instead of a run, a directory as of `init.model_dir`.
      adapter: with --model, a directory as of `init.adapter_dir` with adapters to that model.
      config: with --model, the config file whose task, model and lengths are used.
      benchmark: with --model, in place of a config: names of published sets (math500, aime25, ...), each from the
        Hugging Face hub or, as math500=FILE, from a file; or any FILE with the fields problem and answer.
      max_completion_length: with --benchmark, tokens of an answer at most; 4096 if not given, or what the model allows.
      dtype: with --benchmark, of the weights and of computing; if not given, float32 on a CPU and bfloat16 elsewhere.
      out: with --model, the directory that eval.json goes to; with --benchmark runs/evaluate/MODEL if not given, and
        runs/evaluate/MODEL-ADAPTER with --adapter.
      split: problems to sample; "test" writes eval.json, "validation" eval_validation.json.
      num_samples: generations of each problem; if not given as the config says, or 16 with --benchmark.
      max_rows: generations sampled at a time; as the config says if not given.
      num_prompts: problems of the split; as the run's config says if not given.
      temperature: as in training if not given; 0 is greedy.
      top_k: as in training if not given; 0 keeps all tokens.
      top_p: as in training if not given; 1 keeps all tokens.
      seed: of the samples; the run's if not given.
    """

    run_dir: Path | None = None
    checkpoint_step: int | None = None
    model: Path | None = None
    adapter: Path | None = None
    config: Path | None = None
    benchmark: tuple[str, ...] = ()
    max_completion_length: int | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    out: Path | None = None
    split: Literal["test", "validation"] = "test"
    num_samples: int | None = None
    max_rows: int | None = None
    num_prompts: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class _Job:
    """What to evaluate, checked as far as the host can.

    config: of the run. directory: for the result. spec: of the samples. max_rows: sampled at a time. seed: of the
    samples. problems: of each task, in their order.
    """

    config: RunConfig
    directory: Path
    spec: GenerationSpec
    max_rows: int
    mesh: Mesh
    seed: int
    problems: tuple[tuple[Any, tuple[Problem, ...]], ...]


def _job(options: Arguments) -> _Job:
    config, directory = _what(options)
    defaults = config.evaluation
    default_prompts = defaults.num_prompts if options.split == "test" else defaults.num_validation_prompts
    num_samples = defaults.num_samples if options.num_samples is None else options.num_samples
    num_prompts = default_prompts if options.num_prompts is None else options.num_prompts
    try:
        evaluation = dataclasses.replace(
            defaults,
            num_samples=num_samples,
            num_prompts=num_prompts,
            max_rows=max(defaults.max_rows, num_samples) if options.max_rows is None else options.max_rows,
        )
        given = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p")}
        sampler = dataclasses.replace(config.sampler(), **{k: v for k, v in given.items() if v is not None})
        spec = evaluation_spec(config, num_samples, sampler)
    except ValueError as error:
        raise InputError(str(error)) from error
    if processes.is_primary():
        _check_writable(directory)
    tasks = (config.task, *(getattr(config.task, "benchmark_tasks", ()) if options.split == "test" else ()))
    problems = tuple(
        (task, admitted(dataclasses.replace(config, task=task), options.split)[:num_prompts]) for task in tasks
    )
    if not any(chosen for _, chosen in problems):
        raise InputError(f"the {options.split} split of {config.task.name} is empty: choose another --split")
    seed = config.seed if options.seed is None else options.seed
    return _Job(config, directory, spec, evaluation.max_rows, mesh_to_sample(config), seed, problems)


def _check_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory} cannot be made: {error.strerror}") from error
    if not os.access(directory, os.W_OK):
        raise InputError(f"{directory} cannot be written: no permission")


def main(arguments: Sequence[str]) -> None:
    """The command."""
    rest = list(arguments)
    places = {flag: take(rest, flag) for flag in PROCESS_FLAGS}
    options = parse_command_line(Arguments, rest, "python -m polyepo_jax.evaluate")
    keep_compilations()
    keep_memory()
    peers.start(places)
    with collectives.agreed():
        job = _job(options)
    collectives.check_same(
        arguments=[str(getattr(options, field.name)) for field in dataclasses.fields(options)],
        config=to_json(job.config),
        problems=[data.fingerprint(chosen, 0, 0) for _, chosen in job.problems],
    )
    step: int | None = None
    if options.model is None:
        params, step = load_params(job.directory, job.config, job.mesh, options.checkpoint_step)
    else:
        try:
            params = make_initial(job.config, job.mesh).params
        except InputError as error:
            if options.adapter is None:
                raise
            raise InputError(f"--model and --adapter: {error}") from error
    stem = "eval" if options.split == "test" else "eval_validation"
    try:
        summaries = _evaluate(job, params, step, stem)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on with the problems that were sampled") from None
    if not processes.is_primary():
        return
    where = object_storage.name_of(job.directory)
    what = f"{where}, step {step}" if options.model is None else str(options.model)
    if options.adapter is not None:
        what += f" with {options.adapter}"
    _print(what, job.spec.num_generations, summaries)
    print(f"the result is in {where}/{stem}.json, every generation beside it")


def _evaluate(job: _Job, params: Any, step: int | None, stem: str) -> dict[str, dict]:
    """Entries of eval.json, which is written with the other files; of use in process 0 alone.

    Args:
      step: of the checkpoint. stem: of the files' names.

    Raises:
      InputError: the same evaluation is under way. RunError: a file cannot be written, or nothing could be graded.
    """
    summaries: dict[str, dict] = {}
    identity = _identity(job, params)  # computed by all processes together
    with contextlib.ExitStack() as stack:
        with collectives.agreed():
            unfinished = stack.enter_context(Unfinished(job.directory, identity))
        results = stack.enter_context(Results(job.directory, stem)) if processes.is_primary() else None
        if unfinished.others and results is not None:
            warn_on_stderr(f"{job.directory}/{FOLDER} holds samples of other evaluations, unfinished: left alone")
        for task, chosen in job.problems:
            if not chosen:
                if processes.is_primary():
                    warn_on_stderr(f"{task.name} has no problems to evaluate")
                continue
            described, failures = [], []
            for problem, outcome in zip(chosen, _outcomes(job, params, task, chosen, unfinished), strict=True):
                if results is not None:
                    results.add(task.name, problem, outcome)
                described += [] if outcome.description is None else [outcome.description]
                failures += outcome.failures
            num_failed = len(chosen) - len(described)
            if failures and processes.is_primary():
                _warn(task.name, failures, num_failed)
            summaries[task.name] = (summarize(described) if described else {"num_prompts": 0}) | {
                "num_failed": num_failed
            }
        if not any(summary["num_prompts"] for summary in summaries.values()):
            raise RunError("no problem could be graded, so nothing was written")
        if results is not None:
            _finish(job, results, step, stem, summaries)
        collectives.gather(None)  # what all have sampled is kept until the result is there
        unfinished.remove()
    return summaries


def _identity(job: _Job, params: Any) -> dict[str, Any]:
    """All that the generations depend on."""
    return {
        "version": __version__,
        "parameters": checksum(params),
        "spec": repr(job.spec),
        "seed": job.seed,
        # As the model is given them: chat templates change without their problems.
        "prompts": [[task.name, data.tokens_fingerprint(chosen, task.tokenizer)] for task, chosen in job.problems],
    }


def _finish(job: _Job, results: Results, step: int | None, stem: str, summaries: dict[str, dict]) -> None:
    num_samples = job.spec.num_generations
    removed = results.finish(
        {
            "checkpoint_step": step,
            "num_samples": num_samples,
            "high_variance_above_k": num_samples // 2,
            "sampling": dataclasses.asdict(job.spec.sampling) | {"seed": job.seed},
            "benchmarks": summaries,
        }
    )
    try:
        # The logs may be a run's, which goes on elsewhere.
        pusher = object_storage.Pusher(job.directory)
        pusher.push(f"{stem}*")
        pusher.remove(removed)
    except OSError as error:
        raise RunError(f"{error.strerror}; the result is in {job.directory / f'{stem}.json'}") from error


def _outcomes(
    job: _Job, params: Any, task: Any, chosen: Sequence[Problem], unfinished: Unfinished
) -> Iterator[Outcome]:
    """Samples and grades the problems of a task, and says how far it is."""
    kept = unfinished.kept.get(task.name, [])
    kept_by_process = collectives.gather(len(kept))
    num_kept, num_processes = sum(kept_by_process), len(kept_by_process)
    shown = {"throughput/rollout_tokens_per_s": ("tokens/s", ",.0f")}
    progress = Progress(num_kept, len(chosen), shown, not processes.is_primary(), f"{task.name}: problem")
    began = time.perf_counter()
    num_done = num_tokens = 0

    def on_sampled(sampled: Sampled) -> None:
        nonlocal num_done, num_tokens
        unfinished.add(task.name, sampled)
        # Of several processes each has its share, and they keep pace.
        num_done, num_tokens = num_done + num_processes, num_tokens + num_processes * sum(sampled.lengths)
        speed = num_tokens / (time.perf_counter() - began)
        progress.write(min(num_kept + num_done, len(chosen)), {"throughput/rollout_tokens_per_s": speed})

    with contextlib.closing(progress):
        if num_kept:
            progress.say(f"{task.name}: {num_kept} of {len(chosen)} problems were sampled before, going on")
        samples = sample(
            job.spec,
            params,
            task,
            chosen,
            job.config.max_prompt_length,
            job.max_rows,
            stream(job.seed, "evaluation"),
            job.mesh,
            kept=kept,
            on_sampled=on_sampled,
        )
    yield from samples.outcomes()


def _warn(name: str, failures: Sequence[str], num_left_out: int) -> None:
    warn_on_stderr(
        f"{name}: {len(failures)} grading calls failed (first: {failures[0]}): {num_left_out} problems are left out"
    )


def _what(options: Arguments) -> tuple[RunConfig, Path]:
    """The config to evaluate by, and the directory for the result."""
    if not options.benchmark and (options.max_completion_length is not None or options.dtype is not None):
        raise InputError("--max-completion-length and --dtype go with --benchmark; else the config says what they are")
    if options.run_dir is not None:
        if any((options.model, options.adapter, options.config, options.out, options.benchmark)):
            raise InputError("--run-dir brings its own model, config and place for the result: leave the others out")
        directory = object_storage.working_copy(options.run_dir)
        return run_directory.read_config(directory), directory
    if options.model is None:
        raise InputError("give --run-dir DIR, or --model DIR with --benchmark NAME or with --config FILE and --out DIR")
    if options.checkpoint_step is not None:
        raise InputError("--checkpoint-step is one of a --run-dir; a --model has none")
    if options.benchmark:
        if options.config is not None or options.split != "test":
            raise InputError("--benchmark takes the place of --config, and has a test split only: leave the other out")
        chosen = options.benchmark, options.max_completion_length, options.dtype
        names = [directory.resolve().name for directory in (options.model, options.adapter) if directory is not None]
        out = options.out or Path("runs") / "evaluate" / "-".join(names)
        return _of_model(benchmark_config(options.model, *chosen), options), out
    if options.config is None or options.out is None:
        raise InputError("--model DIR goes with --benchmark NAME, or with --config FILE and --out DIR")
    config = load(options.config, RunConfig)
    # What the config leaves open is the model's that is evaluated, not of that which the run starts from.
    config = resolve(dataclasses.replace(config, init=InitConfig(model_dir=str(options.model))))
    return _of_model(config, options), options.out


def _of_model(config: RunConfig, options: Arguments) -> RunConfig:
    """The config with the model that --model and --adapter name, whatever adapters it would train."""
    model, init = without_adapters(config.model), InitConfig(model_dir=str(options.model))
    if options.adapter is not None:
        try:
            model = dataclasses.replace(config.model, lora=read_lora(options.adapter))
        except ValueError as error:
            raise InputError(f"--adapter: {error}") from error
        init = dataclasses.replace(init, adapter_dir=str(options.adapter))
    return dataclasses.replace(config, model=model, init=init)


# Characters of a name that stands beside its numbers in 80 columns.
_WIDE = 20


def _print(what: str, num_samples: int, summaries: dict[str, dict]) -> None:
    table = rich.table.Table(
        title=f"{what}, {num_samples} samples of each problem",
        caption="below: 95 % intervals over problems; *: more than half of the samples, unsteady",
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    graded = {name: summary for name, summary in summaries.items() if summary["num_prompts"]}
    first = next(iter(graded.values()))
    ks = dict.fromkeys(k for k in ("1", "8", str(num_samples)) if k in first["pass_at_k"])
    paths: list[tuple[str, tuple[str, ...]]]
    paths = [(f"pass@{k}{'*' if 2 * int(k) > num_samples else ''}", ("pass_at_k", k)) for k in ks]
    paths += [(f"majority\n@{num_samples}*", ("majority_at_k", str(num_samples)))]
    paths += [("distinct\ncorrect", ("distinct_correct",))]
    table.add_column(overflow="fold")  # names give way to numbers
    for heading, _ in paths:
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    for name, summary in graded.items():
        cells = []
        for heading, path in paths:
            value, ends = (functools.reduce(lambda x, key: x[key], path, x) for x in (summary, summary["intervals"]))
            digits = 2 if "@" in heading else 1
            cells.append(
                f"{value:.{digits + 1}f}" + ("" if ends is None else f"\n{ends[0]:.{digits}f}-{ends[1]:.{digits}f}")
            )
        lines = name.replace("/", "/\n") if len(name) > _WIDE else name
        table.add_row(*map(rich.text.Text, (f"{lines}\n{summary['num_prompts']} problems", *cells)))
    rich.console.Console().print(table)


if __name__ == "__main__":
    run_command(main)
