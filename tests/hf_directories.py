"""Golden Hugging Face directories, and ways to edit and spoil copies of them; shared by the tests of model.hf."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from polyepo_jax.model import ModelConfig, forward
from polyepo_jax.model.hf import load_hf
from tests.make_hf_golden import (
    GOLDEN,
    SETTINGS,
)

FAMILIES = sorted(SETTINGS)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ABSENT = object()

jitted_forward = jax.jit(forward, static_argnums=0)


def our_logits(config: ModelConfig, params, tokens) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(jitted_forward(config, params, jnp.asarray(tokens, jnp.int32))[0])


def assert_same_bits(one, other) -> None:
    """Equal trees of equal dtypes; NaN and the sign of 0 count too."""
    ours, theirs = jax.tree.leaves_with_path(one), jax.tree.leaves_with_path(other)
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, x), (_, y) in zip(ours, theirs, strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.shape, x.dtype) == (y.shape, y.dtype), path
        assert x.tobytes() == y.tobytes(), path


# --- directories ---


@functools.cache
def golden(family: str):
    """Config and params of a golden directory, and what transformers computed. Made once: not to be changed."""
    directory = GOLDEN / f"hf_{family}"
    with np.load(directory / "expected.npz") as file:
        return *load_hf(directory), dict(file)


def copy_of(family: str, directory: Path) -> Path:
    """A copy of a golden directory."""
    shutil.copytree(GOLDEN / f"hf_{family}", directory)
    return directory


def edit_json(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ABSENT}))


def edit_tensors(path: Path, edit: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = safetensors.numpy.load_file(path)
    edit(tensors)
    safetensors.numpy.save_file(tensors, path)


def renamed(body: str, head: str = "") -> Callable[[Path], None]:
    """Gives the tensors another prefix than `model.`, and the output layer one."""

    def edit(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            is_body = name.startswith("model.")
            tensors[body + name.removeprefix("model.") if is_body else head + name] = tensors.pop(name)

    return tensors_with(edit)


def split(directory: Path) -> tuple[str, str]:
    """Puts the tensors into two files with an index; returns the files' names."""
    tensors = safetensors.numpy.load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    names = sorted(tensors)
    files = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    for file, part in zip(files, (names[:9], names[9:]), strict=True):
        safetensors.numpy.save_file({name: tensors[name] for name in part}, directory / file)
    index = {name: files[position >= 9] for position, name in enumerate(names)}
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return files


def as_of_transformers_4(directory: Path, kind: str = "rope_type") -> None:
    """Rewrites config.json as transformers 4 wrote it. kind: the key of the rope type, once plain "type"."""
    raw = json.loads((directory / "config.json").read_text())
    rope = raw.pop("rope_parameters")
    raw["rope_theta"] = rope.pop("rope_theta")
    rope_type = rope.pop("rope_type")
    raw["rope_scaling"] = None if rope_type == "default" else {kind: rope_type} | rope
    raw["torch_dtype"] = raw.pop("dtype")
    raw.pop("layer_types", None)
    if (
        raw["model_type"] in ("llama", "mistral")
        and raw["head_dim"] == raw["hidden_size"] // raw["num_attention_heads"]
    ):
        del raw["head_dim"]
    raw["transformers_version"] = "4.46.0"
    (directory / "config.json").write_text(json.dumps(raw))


def values_of(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of a directory."""
    return {
        name: tensor
        for path in directory.glob("*.safetensors")
        for name, tensor in safetensors.numpy.load_file(path).items()
    }


def tree_of(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }


# --- ways to spoil one ---


def config_with(**changes) -> Callable[[Path], None]:
    return lambda directory: edit_json(directory / "config.json", **changes)


def tensors_with(edit: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    return lambda directory: edit_tensors(directory / WEIGHTS, edit)


def file_with(name: str, edit: Callable[[bytes], bytes | None]) -> Callable[[Path], None]:
    """Edits the bytes of a file; None removes it."""

    def spoil(directory: Path) -> None:
        content = edit((directory / name).read_bytes())
        (directory / name).unlink()
        if content is not None:
            (directory / name).write_bytes(content)

    return spoil


def index_with(edit: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    """Splits the weights and edits the index's weight_map."""

    def spoil(directory: Path) -> None:
        split(directory)
        content = json.loads((directory / INDEX).read_text())
        edit(content["weight_map"])
        (directory / INDEX).write_text(json.dumps(content))

    return spoil


def second_file_with(edit: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Splits the weights and edits the second file."""
    return lambda directory: edit(directory / split(directory)[1])


def retyped(dtype, name: str | None = None) -> Callable[[Path], None]:
    """Tensors of another dtype: all, or one."""
    return tensors_with(lambda x: x.update({key: x[key].astype(dtype) for key in ([name] if name else list(x))}))


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LAST = "model.layers.1.self_attn.q_proj.weight"  # of the second file
NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"  # of the second file, and of the first
