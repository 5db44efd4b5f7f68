"""Where a run goes on: from its newest checkpoint, else from its initial parameters."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from polyepo_jax.config import Config
from polyepo_jax.config.files import to_json
from polyepo_jax.config.meshes import abstract_params
from polyepo_jax.config.static_arguments import keeps_reference, rollouts_on
from polyepo_jax.errors import InputError, warn_on_stderr
from polyepo_jax.model import split
from polyepo_jax.pods import collectives, object_storage, processes
from polyepo_jax.runs import run_directory
from polyepo_jax.runs.checkpoints import IN_FLIGHT, CheckpointError, Checkpoints
from polyepo_jax.runs.initial import (
    FIRST_ADAPTERS,
    FROZEN,
    INIT_STEP,
    Initial,
    fingerprints,
    frozen_of,
    make_initial,
    start_again,
    with_the_same_adapters,
)
from polyepo_jax.runs.metric_writers import read_lines
from polyepo_jax.runs.preparation import Prepared
from polyepo_jax.training.rollouts import Sampled
from polyepo_jax.training.update import TrainState, UpdateSpec, init_state
from polyepo_jax.types import Rollouts


@dataclasses.dataclass(frozen=True)
class ToCome:
    """What a run goes on with after a step, beside its state.

    position: of the data, before the prompts of what was sampled ahead; where nothing was, of the next step.
    sampled: rollouts of the next steps, in their order.
    """

    position: Any
    sampled: tuple[Sampled, ...]

    @property
    def rollouts(self) -> list[Rollouts]:
        """Their arrays."""
        return [each.rollouts for each in self.sampled]


@dataclasses.dataclass(frozen=True)
class Restored:
    """The state that a run goes on from.

    frozen: the parameters that are not trained, or ().
    reference_params: those of the initial policy that are trained, if they are kept, else ().
    init_step: as of `Initial`.
    fingerprints: as of `initial.fingerprints`.
    unevaluated: the metrics of the last step, where the evaluation after it was interrupted.
    in_flight: rollouts that were sampled ahead, with what else `Sampled` says of them; the data stand before their
      prompts.
    notes: lines for the user.
    """

    state: TrainState
    frozen: Any
    reference_params: Any
    init_step: int | None
    fingerprints: dict[str, str]
    unevaluated: dict[str, float] | None
    in_flight: tuple[tuple[Rollouts, int, dict[str, float]], ...]
    notes: tuple[str, ...]


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
    abstract = jax.eval_shape(lambda: init_state(spec, split(abstract_params(config.model))[0]))
    try:
        warn = warn_on_stderr if processes.is_primary() else lambda line: None
        rollouts = rollouts_on(config, prepared.mesh) if isinstance(config, Config) else ()
        found = checkpoints.restore_latest(abstract, shardings, warn, rollouts)
    except CheckpointError as error:
        raise InputError(str(error)) from error
    if found is None:
        initial = initial or make_initial(config, prepared.mesh)
        trained, frozen = split(initial.params)
        # A copy: updates donate the state, and the initial params may serve as the reference.
        make = jax.jit(init_state, static_argnums=0, out_shardings=shardings, donate_argnums=1)
        state = make(spec, jax.tree.map(lambda x: x.copy(), trained))
        reference = trained if keeps_reference(config) else ()
        return Restored(state, frozen, reference, initial.step, fingerprints(initial.params), None, (), ())
    state, meta, in_flight = found
    _check_same_run(prepared, meta)
    prepared.data.set_state(meta["data"])
    notes: tuple[str, ...] = ()
    if meta.get("machines", machines()) != machines():
        notes = (f"resumed on {machines()}, was saved by {meta['machines']}",)
    unevaluated = meta.get("unevaluated")
    if unevaluated is not None and _has_metrics_of(prepared.directory, int(state.step)):
        unevaluated = None  # it was evaluated since
    frozen, reference = _started_from(prepared, spec, meta)
    of_start = {name: meta[name] for name in (FROZEN, FIRST_ADAPTERS) if name in meta}
    said = [(each["num_steps"], each["times"]) for each in meta.get(IN_FLIGHT, ())]
    ahead = tuple((arrays, *rest) for arrays, rest in zip(in_flight, said, strict=True))
    return Restored(state, frozen, reference, meta[INIT_STEP], of_start, unevaluated, ahead, notes)


def _started_from(prepared: Prepared, spec: UpdateSpec, meta: Mapping[str, Any]) -> tuple[Any, Any]:
    """What a run that goes on keeps of what it has started from: what is frozen, and the reference."""
    config, mesh, start = prepared.config, prepared.mesh, None
    if config.model.lora is not None:
        start = start_again(f"the checkpoint in {object_storage.name_of(prepared.directory)}", config, mesh, meta)
    if not keeps_reference(config):
        return () if start is None else frozen_of(start), ()
    try:
        if start is None:
            return (), make_initial(config, mesh, meta[INIT_STEP]).params
        trained, frozen = split(with_the_same_adapters(config, mesh, start, meta))
        return frozen, trained
    except InputError as error:
        if spec.loss.needs_reference:
            raise
        raise InputError(
            f"kl/start compares with what the run started from: {error}; or go on without, by "
            "--logging.kl-interval-steps 0"
        ) from error


def run_meta(
    prepared: Prepared,
    to_come: ToCome,
    init_step: int | None,
    of_start: Mapping[str, str],
    unevaluated: dict[str, float] | None,
) -> dict[str, Any]:
    """What a checkpoint says of its run beside the state, for `restore` to go by.

    Args:
      init_step, of_start: as `init_step` and `fingerprints` of `Restored`. unevaluated: as there.
    """
    in_flight = [{"num_steps": each.num_steps, "times": each.times} for each in to_come.sampled]
    return {
        "fingerprint": prepared.fingerprint,
        "prompts_fingerprint": prepared.prompts_fingerprint,
        "rubric": prepared.rubric,
        INIT_STEP: init_step,
        **of_start,
        "unevaluated": unevaluated,
        "machines": machines(),
        "data": to_come.position,
        **({IN_FLIGHT: in_flight} if in_flight else {}),
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
