"""Directories that hold a model: Hugging Face's, and our own for a quick start of many hosts.

Ours is what orbax writes: `model.json` with the shape, `params/` in pieces that every process reads for its own
devices, `checksums.json` of these, and the companions (tokenizer, generation settings) as they came.
"""

import dataclasses
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from polyepo_jax.config.files import from_json
from polyepo_jax.errors import InputError
from polyepo_jax.model import ModelConfig, copy_companions, init, load_hf, logical_axes
from polyepo_jax.model.config import ROPE_SCALINGS
from polyepo_jax.model.hf import read_config as read_hf_config
from polyepo_jax.sharding import Mesh, param_shardings

_MODEL, _PARAMS, _CHECKSUMS = "model.json", "params", "checksums.json"

# How a model is computed may differ from run to run, its arrays may not.
_FREE = {"dtype", "remat", "attention"}


def check_same(what: str, theirs: ModelConfig, wanted: ModelConfig) -> None:
    """Raises InputError, naming every field, unless the arrays of `what` fit the config's model."""
    differing = [
        f"{f.name} {getattr(theirs, f.name)!r}, not {getattr(wanted, f.name)!r}"
        for f in dataclasses.fields(theirs)
        if f.name not in _FREE and getattr(theirs, f.name) != getattr(wanted, f.name)
    ]
    if differing:
        raise InputError(f"{what} is of another model: it has {'; '.join(differing)}; set model.* to match")


def check_new(directory: Path) -> None:
    """Raises InputError unless a directory can be made there: it must not exist, or be empty."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory} exists and is not an empty directory: choose another")
    parent = directory.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{directory} cannot be made: {parent} is no directory that can be written to")


def is_imported(directory: Path) -> bool:
    """Whether it is one of ours."""
    return (directory / _MODEL).is_file()


def read_shape(directory: Path) -> ModelConfig:
    """The model in a directory of either kind, without its arrays.

    Raises:
      InputError: it holds none, or one that is damaged or not implemented.
    """
    if not is_imported(directory):
        try:
            return read_hf_config(directory)
        except ValueError as error:
            raise InputError(str(error)) from error
    path = directory / _MODEL
    try:
        value = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}: import the model again")
    scaling = value.pop("rope_scaling", None)
    model = _plain(value, ModelConfig, str(path))
    return model if scaling is None else dataclasses.replace(model, rope_scaling=_scaling(scaling, path))


def _scaling(value: Any, path: Path) -> Any:
    kind = "llama3"  # what older versions wrote, which did not name it
    if isinstance(value, dict):
        kind = value.pop("rope_type", kind)
    if not isinstance(kind, str) or kind not in ROPE_SCALINGS:
        raise InputError(
            f"{path}: rope_scaling is {kind!r}, expected {', '.join(ROPE_SCALINGS)}: import the model again"
        )
    return _plain(value, ROPE_SCALINGS[kind], f"{path}: rope_scaling")


def _plain(value: Any, cls: Any, where: str) -> Any:
    """A dataclass of numbers, texts and switches. A config may name classes to import; a downloaded model may not."""
    if not isinstance(value, dict) or any(isinstance(item, (dict, list)) for item in value.values()):
        raise InputError(f"{where}: expected plain values of a {cls.__name__}: import the model again")
    if {"class", "function"} & value.keys():
        raise InputError(f"{where}: names a class or function to run, which no import does: do not use this directory")
    return from_json(value, cls, where)


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return crc


def _check_files(directory: Path) -> None:
    """Raises ValueError, naming a file, unless params/ is as it was written: orbax reads flipped bits without a word.

    Of the contents every process checks its share, for reading all of them would undo a quick start.
    """
    expected = json.loads((directory / _CHECKSUMS).read_text())
    for number, (name, (size, checksum)) in enumerate(expected.items()):
        path = directory / _PARAMS / name
        if not path.is_file():
            raise ValueError(f"file {name} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"file {name} has {path.stat().st_size} bytes instead of {size}")
        if number % jax.process_count() == jax.process_index() and _checksum(path) != checksum:
            raise ValueError(f"the checksum of file {name} differs")


def _restore(directory: Path, config: ModelConfig, mesh: Mesh | None) -> Any:
    abstract = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    # Said also for one device: else orbax takes that of the machine which wrote the files.
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: device, abstract)
    if mesh is not None:
        shardings = param_shardings(mesh, logical_axes(config))
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    try:
        _check_files(directory)
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore((directory / _PARAMS).absolute(), abstract)
    except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{directory / _PARAMS} cannot be read ({reason:.200}): import the model again") from error


def check_finite(where: str, params: Any) -> None:
    """Raises InputError, naming the arrays, where parameters hold NaN or an infinity: such a model answers nothing."""
    finite = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree))(params)
    bad = [jax.tree_util.keystr(path) for path, ok in jax.tree_util.tree_leaves_with_path(finite) if not bool(ok)]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise InputError(
            f"{where}: expected finite weights, got NaN or infinity in {', '.join(bad[:3])}{more}: import or train the "
            "model anew"
        )


def read(directory: Path, mesh: Mesh | None = None, dtype: Any = None) -> tuple[ModelConfig, Any]:
    """The model in a directory of either kind; `dtype` converts the parameters, None keeps theirs.

    Raises:
      InputError: it holds none, or one that is damaged, not finite or not implemented.
    """
    if not is_imported(directory):
        try:
            return load_hf(directory, dtype=dtype, mesh=mesh)
        except ValueError as error:
            raise InputError(str(error)) from error
    stored = config = read_shape(directory)
    if dtype is not None:
        config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    params = _restore(directory, config, mesh)
    try:
        check_finite(str(directory), params)
    except InputError:
        del params
        if config.param_dtype != stored.param_dtype:
            check_finite(str(directory), _restore(directory, stored, mesh))
            raise InputError(
                f"{directory} holds numbers too large for {config.param_dtype}: take another dtype, such as "
                f"{stored.param_dtype}"
            ) from None
        raise
    return config, params


def load(directory: Path, model: ModelConfig, mesh: Mesh) -> Any:
    """The parameters in a directory of either kind, as `model` has them, on the mesh.

    Raises:
      InputError: as of `read`; or they are another model's, which is found before they are read.
    """
    theirs = read_shape(directory)
    check_same(str(directory), dataclasses.replace(theirs, param_dtype=model.param_dtype), model)
    return read(directory, mesh, model.param_dtype)[1]


def write(directory: Path, config: ModelConfig, params: Any, companions: Path | None = None) -> None:
    """Writes a directory of our kind, whole or not at all.

    Raises:
      InputError: as of `check_new`.
    """
    check_new(directory)
    directory = directory.absolute()
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(unfinished / _PARAMS, params)
    files = sorted(path for path in (unfinished / _PARAMS).rglob("*") if path.is_file())
    sums = {f.relative_to(unfinished / _PARAMS).as_posix(): [f.stat().st_size, _checksum(f)] for f in files}
    (unfinished / _CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")
    if companions is not None:
        copy_companions(companions, unfinished)
        # Has end tokens that a tokenizer asks for, and keys that an export takes along.
        if (companions / "config.json").is_file():
            shutil.copyfile(companions / "config.json", unfinished / "config.json")
    model = dataclasses.asdict(config)
    del model["lora"]  # which is of training
    if config.rope_scaling is not None:
        model["rope_scaling"]["rope_type"] = config.rope_scaling.rope_type
    (unfinished / _MODEL).write_text(json.dumps(model, indent=2) + "\n")
    if directory.exists():
        directory.rmdir()
    unfinished.rename(directory)
