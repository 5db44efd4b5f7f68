"""Weights in safetensors files, read and written by the table of names.

Only safetensors files are opened; nothing that is pickled is ever loaded. A directory is checked whole, from the
headers of its files, before its first tensor is read.
"""

import contextlib
import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from polyepo_jax.model.config import Dtype, ModelConfig
from polyepo_jax.model.hf.config import config_json, read_config, read_json
from polyepo_jax.model.hf.names import Entry, Layout, at, entries_of, layout_of, put
from polyepo_jax.model.transformer import Params, init, logical_axes
from polyepo_jax.sharding import Mesh, param_sharding, param_shardings

# What goes with the weights: tokenizer and generation settings.
_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F64": "float64", "F16": "float16"}
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


# --- reading ---


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of a tensor. dtype: a NumPy name."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def open_file(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, "np")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): fetch it again") from error


def _files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The weight files, and the index's tensor -> file if there is one."""
    if (directory / _INDEX).is_file():
        index = read_json(directory / _INDEX).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise ValueError(f"{directory / _INDEX} has no weight_map")
        for tensor, name in index.items():
            if not isinstance(name, str):
                raise ValueError(f"{directory / _INDEX} puts tensor {tensor} in {name!r}, which is no file's name")
        names = sorted(set(index.values()))
        # transformers takes the one file, and does not miss the tensors of the others.
        if (directory / _SINGLE).is_file() and names != [_SINGLE]:
            raise ValueError(
                f"{directory} has both {_SINGLE} and {_INDEX}, which names other files, so that it is not clear which "
                "weights are meant: remove the one that is not; if both are, rename the file, there and in the index"
            )
        for name in names:
            if Path(name).name != name:
                raise ValueError(f"{directory / _INDEX} names {name!r}, which is not a file beside it")
            if not (directory / name).is_file():
                raise ValueError(f"{directory / _INDEX} names {name}, which is not there: fetch it")
        return [directory / name for name in names], index
    if (directory / _SINGLE).is_file():
        return [directory / _SINGLE], {}
    pickled = sorted(p.name for p in directory.glob("*.bin"))
    if pickled:
        raise ValueError(
            f"{directory} has only pickled weights ({pickled[0]}), which can run code and are never loaded: convert "
            "them to safetensors, with save_pretrained of transformers"
        )
    raise ValueError(f"{directory} has neither {_SINGLE} nor {_INDEX}")


def headers_of(files: Sequence[Path]) -> dict[str, Header]:
    """What files say of their tensors.

    Raises:
      ValueError: a file is damaged, a tensor is in two of them, or of a dtype that is not read.
    """
    headers: dict[str, Header] = {}
    for path in files:
        with open_file(path) as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                if name in headers:
                    raise ValueError(f"tensor {name} is in {headers[name].file.name} and in {path.name}")
                part = file.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise ValueError(f"tensor {name} of {path} is {part.get_dtype()}: quantised weights are not read")
                headers[name] = Header(path, tuple(part.get_shape()), dtype)
    return headers


def _headers(directory: Path) -> dict[str, Header]:
    files, index = _files(directory)
    headers = headers_of(files)
    for name, stated in index.items():
        if name not in headers or headers[name].file.name != stated:
            raise ValueError(f"{directory / _INDEX} puts tensor {name} in {stated}, which does not hold it")
    return headers


def _names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_tensors(
    directory: Path, entries: list[Entry], headers: dict[str, Header], shapes: Any, caller: str = "its config.json"
) -> None:
    """Raises ValueError unless the files hold these tensors and no others, which `caller` calls for."""
    expected = {entry.name: entry for entry in entries}
    missing = [name for name in expected if name not in headers]
    if missing:
        raise ValueError(f"{directory} lacks tensor {_names(missing)}, which {caller} calls for")
    extra = sorted(headers.keys() - expected.keys())
    if extra:
        raise ValueError(f"{directory} holds tensor {_names(extra)}, for which {caller} has no place")
    for name, entry in expected.items():
        shape = at(shapes, entry.path).shape
        wanted = entry.weight.their_shape(shape if entry.layer is None else shape[1:])
        if headers[name].shape != wanted:
            raise ValueError(
                f"tensor {name} of {headers[name].file} has the shape {list(headers[name].shape)}; {caller} "
                f"calls for {list(wanted)}"
            )


def _drop_copies(config: ModelConfig, layout: Layout, headers: dict[str, Header]) -> None:
    """Leaves out what some files hold beside the parameters: tables of rotary frequencies, a tied output layer."""
    for name in [name for name in headers if name.endswith("rotary_emb.inv_freq")]:
        del headers[name]
    table, head = headers.get(layout.table), headers.get(layout.output)
    if not (config.tie_word_embeddings and table and head):
        return
    with open_file(table.file) as one, open_file(head.file) as other:
        if not np.array_equal(one.get_tensor(layout.table), other.get_tensor(layout.output)):
            raise ValueError(f"{head.file}: {layout.output} differs from the embedding, though config.json ties them")
    del headers[layout.output]


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stack, x, layer):
    return jax.lax.dynamic_update_index_in_dim(stack, x, layer, 0)


def load_hf(
    directory: str | Path, *, dtype: Dtype | None = None, mesh: Mesh | None = None
) -> tuple[ModelConfig, Params]:
    """A model of the families qwen3, qwen2, llama and mistral, read tensor by tensor straight onto the devices.

    Args:
      directory: with config.json and model.safetensors, or several safetensors files and their index.
      dtype: of the parameters; None keeps the files', and makes float32 of float16.
      mesh: parameters are cut over it by `sharding.RULES`; None puts them on the default device.

    Returns:
      The config, whose `dtype` and `param_dtype` are that of the parameters, and the parameters. The host holds
      about one tensor at a time.

    Raises:
      ValueError: naming the file or tensor: a file missing, damaged or pickled; a tensor missing, left over or of
        another shape or not finite; an architecture or dtype that is not implemented.
    """
    directory = Path(directory)
    config = read_config(directory)
    headers = _headers(directory)
    layout = layout_of(headers)
    _drop_copies(config, layout, headers)
    entries = list(entries_of(config, layout))
    abstract = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    check_tensors(directory, entries, headers, abstract)
    dtypes = {header.dtype: name for name, header in headers.items()}
    if dtype is None:
        if len(dtypes) > 1:
            found = ", ".join(f"{name} {kind}" for kind, name in dtypes.items())
            raise ValueError(f"{directory} holds {found}: give the dtype to load them as (float32 or bfloat16)")
        only = next(iter(dtypes))
        # Nothing computes in float16 here, and bfloat16 would round its numbers.
        dtype = "float32" if only == "float16" else cast(Dtype, only)
    if dtype == "float64" and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"{directory} as float64 needs jax_enable_x64: switch it on, or give dtype='float32'")
    config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    return config, load_tensors(config, entries, headers, abstract, jnp.dtype(dtype), mesh)


def converted(name: str, tensor: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, bool]:
    """A tensor in `dtype`, and whether it is finite; raises ValueError where only the conversion makes it infinite."""
    with np.errstate(over="ignore"):
        new = tensor.astype(dtype, copy=False)
    is_finite = bool(np.all(np.isfinite(new)))
    if not is_finite and np.all(np.isfinite(tensor)):
        raise ValueError(f"tensor {name} holds numbers too large for {dtype}: take another dtype, such as float32")
    return new, is_finite


def _read(file: Any, name: str, path: Path, dtype: np.dtype) -> np.ndarray:
    """A tensor of a file, in `dtype`; raises ValueError where it is not finite: such a model answers nothing."""
    tensor, is_finite = converted(f"{name} of {path}", file.get_tensor(name), dtype)
    if not is_finite:
        raise ValueError(f"tensor {name} of {path}: expected finite weights, got NaN or infinity: fetch it again")
    return tensor


def load_tensors(
    config: ModelConfig,
    entries: list[Entry],
    headers: dict[str, Header],
    abstract: Params,
    dtype: np.dtype,
    mesh: Mesh | None,
) -> Params:
    """The parameters of these entries, placed.

    Args:
      config: of the whole model. abstract: a tree of the parameters alone.
    """
    axes = logical_axes(config)
    shardings = None if mesh is None else param_shardings(mesh, axes)
    params: Params = jax.tree.map(lambda x: None, abstract)
    by_file: dict[Path, list[Entry]] = {}
    for entry in entries:
        by_file.setdefault(headers[entry.name].file, []).append(entry)

    for path, held in by_file.items():
        with open_file(path) as file:
            for entry in held:
                shape = at(abstract, entry.path).shape
                names = at(axes, entry.path)
                if entry.layer is not None:
                    shape, names = shape[1:], names[1:]
                host = _read(file, entry.name, path, dtype)
                host = entry.weight.to_ours(host, shape)
                if mesh is None:
                    x = jnp.asarray(host)
                else:
                    # A process copies only the parts that its own devices hold.
                    x = jax.make_array_from_callback(shape, param_sharding(mesh, names), host.__getitem__)
                if entry.layer is not None:
                    stack = at(params, entry.path)
                    if stack is None:
                        make = functools.partial(jnp.zeros, at(abstract, entry.path).shape, dtype)
                        sharding = None if shardings is None else at(shardings, entry.path)
                        stack = jax.jit(make, out_shardings=sharding)()
                    x = _set_layer(stack, x, entry.layer)
                put(params, entry.path, x)
                # The device's copy is complete before the next tensor is read, or the host would hold several.
                jax.block_until_ready(x)
    return params


# --- writing ---


def copy_companions(source: str | Path, target: str | Path) -> None:
    """Copies the tokenizer and generation files of one directory to another."""
    for name in _COMPANIONS:
        if (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, Path(target) / name)


def _bytes_of(entry: Entry, params: Params, dtype: np.dtype) -> int:
    leaf = at(params, entry.path)
    return math.prod(leaf.shape if entry.layer is None else leaf.shape[1:]) * dtype.itemsize


def _into_files(config: ModelConfig, params: Params, dtype: np.dtype, max_file_bytes: int) -> list[list[Entry]]:
    """The tensors of each weight file, in order; a larger tensor has a file of its own."""
    files: list[list[Entry]] = [[]]
    room = max_file_bytes
    for entry in entries_of(config):
        size = _bytes_of(entry, params, dtype)
        if files[-1] and size > room:
            files.append([])
            room = max_file_bytes
        files[-1].append(entry)
        room -= size
    return files


def tensor_of(entry: Entry, params: Params, dtype: np.dtype) -> np.ndarray:
    """What a file holds, on the host; raises ValueError as `converted` does."""
    leaf = at(params, entry.path)
    host = np.asarray(jax.device_get(leaf if entry.layer is None else leaf[entry.layer]))
    return entry.weight.to_theirs(converted(entry.name, host, dtype)[0])


@contextlib.contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """A directory to write to that takes this one's place at the end, or is removed where something fails.

    Raises:
      ValueError: `directory` holds something.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} exists and is not an empty directory: choose another")
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    except ValueError:
        shutil.rmtree(unfinished)
        raise
    for path in unfinished.glob("*.safetensors"):  # made for their owner alone: a server may be another user's
        path.chmod(unfinished.stat().st_mode & 0o666)
    if directory.exists():
        directory.rmdir()
    unfinished.rename(directory)


def _write_weights(directory: Path, files: list[list[Entry]], params: Params, dtype: np.dtype) -> None:
    """Writes the weight files and, for several, their index."""
    index, total = {}, 0
    for number, entries in enumerate(files, 1):
        name = _SINGLE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {}
        for entry in entries:
            tensors[entry.name] = tensor_of(entry, params, dtype)
            index[entry.name] = name
            total += tensors[entry.name].nbytes
        # The format's key is what transformers looks for before it reads a file.
        safetensors.numpy.save_file(tensors, directory / name, metadata={"format": "pt"})
    if len(files) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (directory / _INDEX).write_text(json.dumps(content, indent=2) + "\n")


def save_hf(
    directory: str | Path,
    config: ModelConfig,
    params: Params,
    *,
    dtype: Dtype | None = None,
    companions: str | Path | None = None,
    max_file_bytes: int = 2 * 10**9,
) -> None:
    """Writes a model so that `transformers` loads it, whole or not at all.

    Args:
      directory: made; must not exist, or be empty.
      config, params: as of `load_hf`.
      dtype: of the files; None keeps that of the parameters.
      companions: Hugging Face directory whose tokenizer and generation files, and further keys of config.json, are
        taken along.
      max_file_bytes: of a weight file, and so of the host's memory; a larger tensor has a file of its own.

    Raises:
      ValueError: the directory holds something, the companions are not there, Hugging Face has no such family, or
        numbers are too large for the dtype.
    """
    directory = Path(directory).absolute()
    if companions is not None and not Path(companions).is_dir():
        raise ValueError(f"companions: {companions} is no directory")
    base = {}
    if companions is not None and (Path(companions) / "config.json").is_file():
        base = read_json(Path(companions) / "config.json")
        if base.get("layer_types") != ["full_attention"] * config.num_hidden_layers:
            base.pop("layer_types", None)  # without it all are full attention
    target = jnp.dtype(dtype or config.param_dtype)
    written = config_json(config, target.name, base)

    with written_whole(directory) as unfinished:
        _write_weights(unfinished, _into_files(config, params, target, max_file_bytes), params, target)
        (unfinished / "config.json").write_text(json.dumps(written, indent=2) + "\n")
        if companions is not None:
            copy_companions(companions, unfinished)
