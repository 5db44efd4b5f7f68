"""Parameters that a run starts from, and those of its checkpoints.

Of a run with adapters a checkpoint holds these alone. The rest is what the run started from: it is read again from
where the run's config says, and its checksum is compared with what the checkpoint says.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from polyepo_jax.config import RunConfig
from polyepo_jax.config.meshes import abstract_params
from polyepo_jax.config.static_arguments import stream
from polyepo_jax.errors import InputError, warn_on_stderr
from polyepo_jax.evaluation import checksum
from polyepo_jax.model import ModelConfig, init, joined, load_adapters, logical_axes, merged, split, without_adapters
from polyepo_jax.model.config import Dtype
from polyepo_jax.pods import object_storage, processes
from polyepo_jax.runs import model_directory, run_directory
from polyepo_jax.runs.checkpoints import CheckpointError, Checkpoints
from polyepo_jax.sharding import Mesh, param_shardings

# What the checkpoint of a run with adapters says of what it has started from.
FROZEN, FIRST_ADAPTERS = "frozen", "first_adapters"
INIT_STEP = "init_step"


@dataclasses.dataclass(frozen=True)
class Initial:
    """Parameters that a run starts from. step: of the checkpoint they are of, if they are of one."""

    params: Any
    step: int | None


def make_initial(config: RunConfig, mesh: Mesh, init_step: int | None = None) -> Initial:
    """The initial parameters, placed on the mesh.

    Args:
      init_step: the checkpoint of init.run_dir that was taken when the run began; None for a new run.

    Raises:
      InputError: they cannot be read, are not those of the config's model, or are of a run that is not finished.
    """
    params, step = _start(config, mesh, init_step)
    return Initial(with_adapters(config, mesh, params), step)


def with_adapters(config: RunConfig, mesh: Mesh, start: Any) -> Any:
    """Initial parameters, of what `init` names: with adapters, where the config trains some and there are none yet."""
    if config.model.lora is None or _has_adapters(start):
        return start
    return joined(_first_adapters(config, mesh, start), start)


def with_the_same_adapters(config: RunConfig, mesh: Mesh, start: Any, meta: Mapping[str, Any]) -> Any:
    """`with_adapters`, for a run that goes on.

    New adapters may differ from those that it began with, in rounding on another machine: their product is 0.

    Args:
      meta: what a checkpoint of the run says of it.

    Raises:
      InputError: init.adapter_dir has others than when the run began.
    """
    params = with_adapters(config, mesh, start)
    if config.init.adapter_dir is None and not _has_adapters(start):
        return params
    found, wanted = checksum(split(params)[0]), meta.get(FIRST_ADAPTERS)
    if found != wanted:
        place = config.init.adapter_dir or config.init.run_dir
        raise InputError(
            f"the run has started from adapters with the fingerprint {wanted}, and those of {place} have {found}: "
            "bring the former back"
        )
    return params


def _has_adapters(params: Any) -> bool:
    return isinstance(split(params)[1], dict)


def _start(config: RunConfig, mesh: Mesh, init_step: int | None) -> tuple[Any, int | None]:
    """What `init` names, and its step: parameters of the config's model, without adapters unless a run has some."""
    wanted = config.model
    if config.init.run_dir is not None:
        source = object_storage.working_copy(Path(config.init.run_dir))
        run = run_directory.read_config(source)
        _check_fits(f"the checkpoint in {source}", run.model, wanted)
        params, step = load_params(source, run, mesh, init_step or config.init.step)
        if config.init.step is None and init_step is None and step < run.max_steps:
            raise InputError(
                f"init.run_dir {config.init.run_dir} is at step {step} of {run.max_steps}: finish that run first, or "
                f"set init.step = {step} to start from there"
            )
        return _converted(run.model, params, wanted, mesh), step
    if config.init.model_dir is not None:
        return model_directory.load(Path(config.init.model_dir), without_adapters(wanted), mesh), None
    make = jax.jit(init, static_argnums=0, out_shardings=param_shardings(mesh, logical_axes(wanted)))
    return make(wanted, stream(config.seed, "init")), None


def _check_fits(what: str, model: ModelConfig, wanted: ModelConfig) -> None:
    """Raises InputError unless a run of `wanted` can start from parameters of `model`: with adapters to train it adds
    its own, or goes on with the same; without it has them merged."""
    if wanted.lora is None or model.lora is None:
        model = dataclasses.replace(model, lora=wanted.lora)
    model_directory.check_same(what, model, wanted)


def _converted(model: ModelConfig, params: Any, wanted: ModelConfig, mesh: Mesh) -> Any:
    """Parameters of a run's model as one of `wanted` starts from them."""
    if wanted.lora is None and model.lora is None:
        return params
    if wanted.lora is None:
        whole = _merged(model, wanted.param_dtype, params)
        return jax.device_put(whole, param_shardings(mesh, logical_axes(wanted)))
    trained, frozen = split(params) if model.lora is not None else ({}, params)
    return joined(trained, _cast(wanted.weights_dtype, frozen))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _merged(model: ModelConfig, dtype: Dtype, params: Any) -> Any:
    return _cast(dtype, merged(model, params, dtype)[1])


@functools.partial(jax.jit, static_argnums=0)
def _cast(dtype: Dtype, params: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), params)


def _first_adapters(config: RunConfig, mesh: Mesh, frozen: Any) -> Any:
    """Those of init.adapter_dir, or new ones, whose product is 0."""
    if config.init.adapter_dir is not None:
        directory = Path(config.init.adapter_dir)
        try:
            adapters, fingerprint = load_adapters(directory, config.model, mesh)
        except ValueError as error:
            raise InputError(f"init.adapter_dir: {error}") from error
        if fingerprint is not None and fingerprint != adapters_fingerprint(frozen):
            raise InputError(
                f"init.adapter_dir {directory} has adapters to a model with the fingerprint {fingerprint}, and that in "
                f"init.model_dir {config.init.model_dir} has {adapters_fingerprint(frozen)}: set the one they go with"
            )
        return adapters
    shardings, _ = split(param_shardings(mesh, logical_axes(config.model)))
    make = jax.jit(lambda key: split(init(config.model, key))[0], out_shardings=shardings)
    return make(stream(config.seed, "init"))


def fingerprints(params: Any) -> dict[str, str]:
    """Of what a run with adapters starts from, for its checkpoints; none of a run without."""
    if not _has_adapters(params):
        return {}
    adapters, frozen = split(params)
    return {FROZEN: checksum(frozen), FIRST_ADAPTERS: checksum(adapters)}


def adapters_fingerprint(frozen: Any) -> str:
    """Of what adapters go with, for their directory: the same in whatever dtype it is kept."""
    return checksum(jax.tree.map(lambda x: x.astype("bfloat16"), frozen))


def load_params(directory: Path, config: RunConfig, mesh: Mesh, step: int | None = None) -> tuple[Any, int]:
    """The params of a run directory's newest readable checkpoint (or that of `step`).

    Args:
      config: that of the run; or one with another model, that has the same arrays.

    Returns:
      All parameters of the model, also what was frozen, placed on the mesh, and their step.

    Raises:
      InputError: no such checkpoint, one of another model, one that is not finite, or only damaged ones; what was
        frozen is not there, or is another.
    """
    directory = object_storage.working_copy(directory)
    run = run_directory.read_config(directory)
    if not (object_storage.home(directory) / "checkpoints").is_dir():
        raise InputError(f"{directory} has no checkpoints: train it first, or give another run directory")
    model_directory.check_same(f"the checkpoint in {directory}", run.model, config.model)
    abstract, _ = split(abstract_params(config.model))
    shardings, _ = split(param_shardings(mesh, logical_axes(config.model)))
    checkpoints = Checkpoints(object_storage.home(directory), read_only=True)
    try:
        warn = warn_on_stderr if processes.is_primary() else lambda line: None
        params, meta, found = checkpoints.restore_params(abstract, shardings, warn, step)
    except CheckpointError as error:
        raise InputError(str(error)) from error
    finally:
        checkpoints.close()
    where = f"checkpoint {found} of {directory}"
    if config.model.lora is not None:
        params = joined(params, frozen_of(start_again(where, config, mesh, meta)))
    model_directory.check_finite(where, params)
    return params, found


def frozen_of(start: Any) -> Any:
    """Of what a run with adapters started from, that which is not trained."""
    return split(start)[1] if _has_adapters(start) else start


def start_again(where: str, config: RunConfig, mesh: Mesh, meta: Mapping[str, Any]) -> Any:
    """What a run with adapters started from, as `init` names it: what is frozen, and the adapters if there were some.

    Args:
      where: a checkpoint of the run, as said to the user. meta: what that says of the run.

    Raises:
      InputError: it is not there, or is another.
    """
    place = config.init.model_dir or config.init.run_dir
    try:
        start, _ = _start(config, mesh, meta[INIT_STEP])
    except InputError as error:
        raise InputError(
            f"{where} holds adapters alone, and needs the model that they were trained for, of {place}: {error}; bring "
            "it back to where it was"
        ) from error
    found, wanted = checksum(frozen_of(start)), meta.get(FROZEN)
    if found != wanted:
        raise InputError(
            f"{where} has adapters to a model with the fingerprint {wanted}, and that of {place} has {found}: bring "
            "the one back that the run started from"
        )
    return start
