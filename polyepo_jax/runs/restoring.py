"""Where a run goes on: from its newest checkpoint, else from its initial parameters."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from polyepo_jax.config.files import to_json
from polyepo_jax.config.static_arguments import keeps_reference, stream
from polyepo_jax.errors import InputError, warn_on_stderr
from polyepo_jax.model import init
from polyepo_jax.pods import collectives, object_storage, processes
from polyepo_jax.runs import model_directory, run_directory
from polyepo_jax.runs.checkpoints import CheckpointError, Checkpoints
from polyepo_jax.runs.metric_writers import read_lines
from polyepo_jax.runs.preparation import Prepared, load_params
from polyepo_jax.training.update import TrainState, UpdateSpec, init_state


@dataclasses.dataclass(frozen=True)
class Initial:
    """Parameters that a run starts from. step: of the checkpoint they are of, if they are of one."""

    params: Any
    step: int | None


@dataclasses.dataclass(frozen=True)
class Restored:
    """The state that a run goes on from.

    reference_params: the initial policy if it is kept, else ().
    init_step: as of `Initial`.
    unevaluated: the metrics of the last step, where the evaluation after it was interrupted.
    notes: lines for the user.
    """

    state: TrainState
    reference_params: Any
    init_step: int | None
    unevaluated: dict[str, float] | None
    notes: tuple[str, ...]


def make_initial(prepared: Prepared, param_shardings: Any, init_step: int | None = None) -> Initial:
    """The initial parameters, placed on the mesh.

    Args:
      init_step: the checkpoint of init.run_dir that was taken when the run began; None for a new run.

    Raises:
      InputError: they cannot be read, or are of a run that is not finished.
    """
    config = prepared.config
    if config.init.run_dir is not None:
        source = object_storage.working_copy(Path(config.init.run_dir))
        params, step = load_params(source, config, prepared.mesh, init_step or config.init.step)
        wanted = run_directory.read_config(source).max_steps
        if config.init.step is None and init_step is None and step < wanted:
            raise InputError(
                f"init.run_dir {config.init.run_dir} is at step {step} of {wanted}: finish that run first, or set "
                f"init.step = {step} to start from there"
            )
        return Initial(params, step)
    if config.init.model_dir is not None:
        return Initial(model_directory.load(Path(config.init.model_dir), config.model, prepared.mesh), None)
    make = jax.jit(init, static_argnums=0, out_shardings=param_shardings)
    return Initial(make(config.model, stream(config.seed, "init")), None)


def restore(
    prepared: Prepared, spec: UpdateSpec, shardings: Any, checkpoints: Checkpoints, initial: Initial | None
) -> Restored:
    """The state of the newest checkpoint, with the data where it stood then; the initial state where there is none.

    Args:
      shardings: of the state.
      initial: as of `make_initial`, if it is there already.

    Raises:
      InputError: the checkpoints cannot be read, or are of a run that differs from this one.
    """
    config = prepared.config
    abstract = jax.eval_shape(lambda: init_state(spec, init(config.model, jax.random.key(0))))
    try:
        warn = warn_on_stderr if processes.is_primary() else lambda line: None
        found = checkpoints.restore_latest(abstract, shardings, warn)
    except CheckpointError as error:
        raise InputError(str(error)) from error
    if found is None:
        initial = initial or make_initial(prepared, shardings.params)
        # A copy: updates donate the state, and the initial params may serve as the reference.
        make = jax.jit(init_state, static_argnums=0, out_shardings=shardings, donate_argnums=1)
        state = make(spec, jax.tree.map(lambda x: x.copy(), initial.params))
        return Restored(state, initial.params if keeps_reference(config) else (), initial.step, None, ())
    state, meta = found
    _check_same_run(prepared, meta)
    prepared.data.set_state(meta["data"])
    notes: tuple[str, ...] = ()
    if meta.get("machines", machines()) != machines():
        notes = (f"resumed on {machines()}, was saved by {meta['machines']}",)
    unevaluated = meta.get("unevaluated")
    if unevaluated is not None and _has_metrics_of(prepared.directory, int(state.step)):
        unevaluated = None  # it was evaluated since
    reference = _reference(prepared, spec, shardings.params, meta["init_step"]) if keeps_reference(config) else ()
    return Restored(state, reference, meta["init_step"], unevaluated, notes)


def _reference(prepared: Prepared, spec: UpdateSpec, param_shardings: Any, init_step: int | None) -> Any:
    """The parameters that a run which goes on has started from."""
    try:
        return make_initial(prepared, param_shardings, init_step).params
    except InputError as error:
        if spec.loss.needs_reference:
            raise
        raise InputError(
            f"kl/start compares with what the run started from: {error}; or go on without, by "
            "--logging.kl-interval-steps 0"
        ) from error


def run_meta(prepared: Prepared, init_step: int | None, unevaluated: dict[str, float] | None) -> dict[str, Any]:
    """What a checkpoint says of its run beside the state, for `restore` to go by."""
    return {
        "fingerprint": prepared.fingerprint,
        "prompts_fingerprint": prepared.prompts_fingerprint,
        "rubric": prepared.rubric,
        "init_step": init_step,
        "unevaluated": unevaluated,
        "machines": machines(),
        "data": prepared.data.get_state(),
        "config": to_json(prepared.config),
        "config_hash": run_directory.config_hash(prepared.config),
    }


def _check_same_run(prepared: Prepared, meta: dict[str, Any]) -> None:
    """Raises InputError where a checkpoint is of a run with another config, other prompts or another rubric."""
    config, where = prepared.config, object_storage.name_of(prepared.directory)
    if meta.get("config_hash", "") != run_directory.config_hash(config):
        run_directory.compare(prepared.directory, meta.get("config", to_json(config)), config)
    if meta["fingerprint"] != prepared.fingerprint and meta.get("prompts_fingerprint") == prepared.prompts_fingerprint:
        raise InputError(
            f"the answers to the training prompts differ from those of {where}, the prompts are the same: a resumed "
            "run would be graded otherwise; restore the answers, or choose another --run-dir"
        )
    if meta["fingerprint"] != prepared.fingerprint:
        raise InputError(
            f"the training prompts differ from those of {where}: a resumed run would see another order; restore the "
            "data, or choose another --run-dir"
        )
    if meta.get("rubric", prepared.rubric) != prepared.rubric:
        raise InputError(
            f"the judge's rubric is not what it was for {where}: restore its file, or choose another --run-dir"
        )


def _has_metrics_of(directory: Path, step: int) -> bool:
    """Whether the log has them already, the same in all processes."""
    lines = read_lines(directory / "metrics.jsonl") if processes.is_primary() else []
    return any(collectives.gather(any(line["step"] == step for line in lines)))


def machines() -> str:
    """What a run is on, for the user."""
    return f"{jax.process_count()} processes with {jax.device_count()} devices"
