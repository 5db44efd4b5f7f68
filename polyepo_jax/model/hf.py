"""Models in the format of Hugging Face: config.json and safetensors files, read and written by one table of names.

Only safetensors files are opened; nothing that is pickled is ever loaded. A directory is checked whole, from the
headers of its files, before its first tensor is read.
"""

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from polyepo_jax.model.config import Dtype, Llama3RopeScaling, ModelConfig
from polyepo_jax.model.transformer import Params, init, logical_axes
from polyepo_jax.sharding import Mesh, param_sharding, param_shardings

# model_type -> class, and the switches of ModelConfig that make the family.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", {"qk_norm": True, "qkv_bias": False}),
    "qwen2": ("Qwen2ForCausalLM", {"qk_norm": False, "qkv_bias": True}),
    "llama": ("LlamaForCausalLM", {"qk_norm": False, "qkv_bias": False}),
}

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


@dataclasses.dataclass(frozen=True)
class _Weight:
    """One line of the table.

    ours: path in the params, or in those of a layer.
    theirs: name in the file, with the layer's number for {}.
    num_inputs: leading axes of ours that the matrix product contracts; PyTorch stores a linear map as
      [outputs, inputs], so that ours is the transpose, cut into axes. 0 for what is no linear map: same order there.
    present: whether a model has it.
    """

    ours: str
    theirs: str
    num_inputs: int = 0
    present: Callable[[ModelConfig], bool] = lambda config: True

    def to_ours(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return (array.T if self.num_inputs else array).reshape(shape)

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.num_inputs:
            return math.prod(shape[self.num_inputs :]), math.prod(shape[: self.num_inputs])
        return shape if self.ours == "embed_tokens" else (math.prod(shape),)

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        shape = self.their_shape(array.shape)
        return np.ascontiguousarray(array.reshape(shape[::-1]).T if self.num_inputs else array.reshape(shape))


_OUTER = (
    _Weight("embed_tokens", "model.embed_tokens.weight"),
    _Weight("norm.scale", "model.norm.weight"),
    _Weight("lm_head", "lm_head.weight", 1, lambda config: not config.tie_word_embeddings),
)
_LAYER = (
    _Weight("input_layernorm.scale", "model.layers.{}.input_layernorm.weight"),
    _Weight("post_attention_layernorm.scale", "model.layers.{}.post_attention_layernorm.weight"),
    *(_Weight(f"self_attn.{x}_proj", f"model.layers.{{}}.self_attn.{x}_proj.weight", 1) for x in "qkv"),
    _Weight("self_attn.o_proj", "model.layers.{}.self_attn.o_proj.weight", 2),
    *(
        _Weight(f"self_attn.{x}_bias", f"model.layers.{{}}.self_attn.{x}_proj.bias", 0, lambda config: config.qkv_bias)
        for x in "qkv"
    ),
    *(
        _Weight(
            f"self_attn.{x}_norm.scale",
            f"model.layers.{{}}.self_attn.{x}_norm.weight",
            0,
            lambda config: config.qk_norm,
        )
        for x in "qk"
    ),
    *(_Weight(f"mlp.{x}_proj", f"model.layers.{{}}.mlp.{x}_proj.weight", 1) for x in ("gate", "up", "down")),
)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A tensor of a file. path: keys in the params. layer: its index on the leading axis there, None outside."""

    name: str
    weight: _Weight
    path: tuple[str, ...]
    layer: int | None


def _entries(config: ModelConfig) -> Iterator[_Entry]:
    for weight in _OUTER:
        if weight.present(config):
            yield _Entry(weight.theirs, weight, tuple(weight.ours.split(".")), None)
    for layer in range(config.num_hidden_layers):
        for weight in _LAYER:
            if weight.present(config):
                path = ("layers", *weight.ours.split("."))
                yield _Entry(weight.theirs.format(layer), weight, path, layer)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    return functools.reduce(lambda node, key: node[key], path, tree)


def _put(tree: Any, path: tuple[str, ...], value: Any) -> None:
    _at(tree, path[:-1])[path[-1]] = value


# --- config.json ---


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist: a Hugging Face model is a directory with config.json and safetensors")
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _rope(path: Path, raw: dict[str, Any]) -> tuple[float, Llama3RopeScaling | None]:
    """Theta and scaling, from `rope_parameters` (new layout) or `rope_theta` and `rope_scaling` (old)."""
    new, old = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    if not isinstance(new, dict) or not isinstance(old, dict):
        raise ValueError(f"{path}: rope_parameters and rope_scaling must be objects")
    theta = new.get("rope_theta", raw.get("rope_theta"))
    if not isinstance(theta, (int, float)):
        raise ValueError(f"{path}: no rope_theta, neither at the top nor in rope_parameters; the rotations need it")

    def type_of(values: dict[str, Any]) -> str:
        return values.get("rope_type") or values.get("type") or "default"

    # A scaling wins over rope_parameters in transformers, and was put there by hand where the two disagree.
    values = new or old
    kind = type_of(values)
    if new and old and (type_of(old) != kind or any(new.get(name, value) != value for name, value in old.items())):
        raise ValueError(f"{path}: rope_scaling says {old}, rope_parameters {new}: remove the one that is wrong")
    for part in (raw, values):
        if part.get("partial_rotary_factor") not in (1, None):
            raise ValueError(
                f"{path}: partial_rotary_factor {part['partial_rotary_factor']} is not implemented, only 1"
            )
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise ValueError(f"{path}: rope type {kind!r} is not implemented; implemented are 'default' and 'llama3'")
    names = [field.name for field in dataclasses.fields(Llama3RopeScaling)]
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"{path}: rope type 'llama3' without {', '.join(missing)}")
    try:
        return float(theta), Llama3RopeScaling(**{name: values[name] for name in names})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _refuse_what_is_not_implemented(path: Path, raw: dict[str, Any]) -> None:
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{path}: model_type {family!r} is not implemented; implemented are {', '.join(FAMILIES)}")
    if raw.get("quantization_config"):
        raise ValueError(f"{path}: quantised weights are not implemented: take the model's unquantised files")
    if raw.get("use_sliding_window") and raw.get("sliding_window"):
        raise ValueError(f"{path}: an active sliding window is not implemented (use_sliding_window is true)")
    kinds = set(raw.get("layer_types") or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"{path}: layer types {', '.join(sorted(kinds))}: only full_attention is implemented")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{path}: hidden_act {raw['hidden_act']!r} is not implemented, only 'silu'")
    # In qwen2 the biases belong to the family and no key names them.
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key):
            raise ValueError(f"{path}: {key} in a {family} is not implemented")


_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_OPTIONAL_SIZES = ("num_key_value_heads", "head_dim", "max_position_embeddings")
_SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
_ROPE_NUMBERS = ("rope_theta", "factor", "low_freq_factor", "high_freq_factor")


def _check_types(path: Path, raw: dict[str, Any]) -> None:
    """Raises ValueError, naming the key, where a value is not of its type: a text is no number, nor a switch.

    What is missing, or null, is another's to judge.
    """
    parts = [raw, *(raw[name] for name in ("rope_parameters", "rope_scaling") if isinstance(raw.get(name), dict))]
    checks: list[tuple[str, Any, bool, str]] = []
    for name in (*_SIZES, *_OPTIONAL_SIZES):
        checks.append((name, raw.get(name), _is_size(raw.get(name)), "at least 1, a whole number"))
    checks.append(("rms_norm_eps", raw.get("rms_norm_eps"), _is_positive(raw.get("rms_norm_eps")), _POSITIVE))
    for part in parts:
        checks += [(name, part.get(name), _is_positive(part.get(name)), _POSITIVE) for name in _ROPE_NUMBERS]
        positions = part.get("original_max_position_embeddings")
        checks.append(
            ("original_max_position_embeddings", positions, _is_size(positions), "a whole number, at least 1")
        )
    window = raw.get("sliding_window")  # 0 where it is off
    checks.append(("sliding_window", window, type(window) is int and window >= 0, "a whole number"))
    for name in _SWITCHES:
        checks.append((name, raw.get(name), type(raw.get(name)) is bool, "true or false"))
    for name in ("model_type", "hidden_act"):
        checks.append((name, raw.get(name), isinstance(raw.get(name), str), "a text"))
    layers = raw.get("layer_types")
    are_texts = isinstance(layers, list) and all(isinstance(kind, str) for kind in layers)
    checks.append(("layer_types", layers, are_texts, "a list of texts"))
    for name, value, is_right, expected in checks:
        if value is not None and not is_right:
            raise ValueError(f"{path}: {name} must be {expected}, got {value!r}")


_POSITIVE = "a number above 0"


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def read_config(directory: str | Path) -> ModelConfig:
    """The shape of the model in a Hugging Face directory; dtypes are those of ModelConfig's defaults.

    Raises:
      ValueError: no config.json, one that lacks what a model needs, or a model that is not implemented.
    """
    path = Path(directory) / "config.json"
    raw = _read_json(path)
    _check_types(path, raw)
    _refuse_what_is_not_implemented(path, raw)
    theta, scaling = _rope(path, raw)
    missing = [name for name in (*_SIZES, "rms_norm_eps") if raw.get(name) is None]
    if missing:
        raise ValueError(f"{path}: missing {', '.join(missing)}")
    heads = raw["num_attention_heads"]
    # What transformers supposes where a file says nothing.
    head_dim = raw.get("head_dim") or (128 if raw["model_type"] == "qwen3" else raw["hidden_size"] // heads)
    optional = {"max_position_embeddings"} & raw.keys()
    try:
        return ModelConfig(
            **{name: raw[name] for name in (*_SIZES, "rms_norm_eps", *optional)},
            num_key_value_heads=raw.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=bool(raw.get("tie_word_embeddings")),
            **FAMILIES[raw["model_type"]][1],
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _config_json(config: ModelConfig, dtype: str, base: dict[str, Any]) -> dict[str, Any]:
    """config.json of a model, in the old and the new layout; keys that only `base` has stay."""
    family = next(
        (name for name, (_, switches) in FAMILIES.items() if switches.items() <= dataclasses.asdict(config).items()),
        None,
    )
    if family is None:
        raise ValueError("no Hugging Face family has both qk_norm and qkv_bias")
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        rope = {"rope_type": "llama3"} | dataclasses.asdict(config.rope_scaling)
    ours = {
        "architectures": [FAMILIES[family][0]],
        "model_type": family,
        "hidden_act": "silu",
        "dtype": dtype,
        "torch_dtype": dtype,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else rope,
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
    }
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "tie_word_embeddings",
        "max_position_embeddings",
    )
    return base | ours | {name: getattr(config, name) for name in same}


# --- reading ---


@dataclasses.dataclass(frozen=True)
class _Header:
    """What a file says of a tensor. dtype: a NumPy name."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def _open(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, "np")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): fetch it again") from error


def _files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The weight files, and the index's tensor -> file if there is one."""
    if (directory / _INDEX).is_file():
        index = _read_json(directory / _INDEX).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise ValueError(f"{directory / _INDEX} has no weight_map")
        for tensor, name in index.items():
            if not isinstance(name, str):
                raise ValueError(f"{directory / _INDEX} puts tensor {tensor} in {name!r}, which is no file's name")
        names = sorted(set(index.values()))
        if (directory / _SINGLE).is_file() and _SINGLE not in names:
            raise ValueError(
                f"{directory} has both {_SINGLE} and {_INDEX}, which names other files, so that it is not clear which "
                "weights are meant: remove the one that is not"
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


def _headers(directory: Path) -> dict[str, _Header]:
    files, index = _files(directory)
    headers: dict[str, _Header] = {}
    for path in files:
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                if name in headers:
                    raise ValueError(f"tensor {name} is in {headers[name].file.name} and in {path.name}")
                part = file.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise ValueError(f"tensor {name} of {path} is {part.get_dtype()}: quantised weights are not read")
                headers[name] = _Header(path, tuple(part.get_shape()), dtype)
    for name, stated in index.items():
        if name not in headers or headers[name].file.name != stated:
            raise ValueError(f"{directory / _INDEX} puts tensor {name} in {stated}, which does not hold it")
    return headers


def _names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check(directory: Path, config: ModelConfig, headers: dict[str, _Header], shapes: Any) -> None:
    """Raises ValueError unless the files hold the tensors of `config` and no others."""
    expected = {entry.name: entry for entry in _entries(config)}
    missing = [name for name in expected if name not in headers]
    if missing:
        raise ValueError(f"{directory} lacks tensor {_names(missing)}, which its config.json calls for")
    extra = sorted(headers.keys() - expected.keys())
    if extra:
        raise ValueError(f"{directory} holds tensor {_names(extra)}, for which its config.json has no place")
    for name, entry in expected.items():
        shape = _at(shapes, entry.path).shape
        wanted = entry.weight.their_shape(shape if entry.layer is None else shape[1:])
        if headers[name].shape != wanted:
            raise ValueError(
                f"tensor {name} of {headers[name].file} has the shape {list(headers[name].shape)}; its config.json "
                f"calls for {list(wanted)}"
            )


def _drop_copies(config: ModelConfig, headers: dict[str, _Header]) -> None:
    """Leaves out what some files hold beside the parameters: tables of rotary frequencies, a tied output layer."""
    for name in [name for name in headers if name.endswith(".rotary_emb.inv_freq")]:
        del headers[name]
    table, head = headers.get("model.embed_tokens.weight"), headers.get("lm_head.weight")
    if not (config.tie_word_embeddings and table and head):
        return
    with _open(table.file) as one, _open(head.file) as other:
        if not np.array_equal(one.get_tensor("model.embed_tokens.weight"), other.get_tensor("lm_head.weight")):
            raise ValueError(f"{head.file}: lm_head.weight differs from the embedding, though config.json ties them")
    del headers["lm_head.weight"]


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stack, x, layer):
    return jax.lax.dynamic_update_index_in_dim(stack, x, layer, 0)


def load_hf(
    directory: str | Path, *, dtype: Dtype | None = None, mesh: Mesh | None = None
) -> tuple[ModelConfig, Params]:
    """A model of the families qwen3, qwen2 and llama, read tensor by tensor straight onto the devices.

    Args:
      directory: with config.json and model.safetensors, or several safetensors files and their index.
      dtype: of the parameters; None keeps the files'.
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
    _drop_copies(config, headers)
    abstract = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    _check(directory, config, headers, abstract)
    dtypes = {header.dtype: name for name, header in headers.items()}
    if dtype is None:
        if len(dtypes) > 1 or dtypes.keys() == {"float16"}:
            found = ", ".join(f"{name} {kind}" for kind, name in dtypes.items())
            raise ValueError(f"{directory} holds {found}: give the dtype to load them as (float32 or bfloat16)")
        dtype = cast(Dtype, next(iter(dtypes)))
    if dtype == "float64" and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"{directory} as float64 needs jax_enable_x64: switch it on, or give dtype='float32'")
    config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    return config, _load(config, headers, abstract, jnp.dtype(dtype), mesh)


def _finite(name: str, path: Path, tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A tensor in `dtype`; raises ValueError where it holds NaN or infinity: such a model answers nothing."""
    with np.errstate(over="ignore"):
        converted = tensor.astype(dtype, copy=False)
    if np.all(np.isfinite(converted)):
        return converted
    if np.all(np.isfinite(tensor)):
        raise ValueError(f"tensor {name} of {path} holds numbers too large for {dtype}: load it in another dtype")
    raise ValueError(f"tensor {name} of {path}: expected finite weights, got NaN or infinity: fetch the model again")


def _load(config: ModelConfig, headers: dict[str, _Header], abstract: Params, dtype: np.dtype, mesh: Mesh | None):
    """The parameters, placed."""
    axes = logical_axes(config)
    shardings = None if mesh is None else param_shardings(mesh, axes)
    params = jax.tree.map(lambda x: None, abstract)
    by_file: dict[Path, list[_Entry]] = {}
    for entry in _entries(config):
        by_file.setdefault(headers[entry.name].file, []).append(entry)

    for path, entries in by_file.items():
        with _open(path) as file:
            for entry in entries:
                shape = _at(abstract, entry.path).shape
                names = _at(axes, entry.path)
                if entry.layer is not None:
                    shape, names = shape[1:], names[1:]
                host = _finite(entry.name, path, file.get_tensor(entry.name), dtype)
                host = entry.weight.to_ours(host, shape)
                if mesh is None:
                    x = jnp.asarray(host)
                else:
                    # A process copies only the parts that its own devices hold.
                    x = jax.make_array_from_callback(shape, param_sharding(mesh, names), host.__getitem__)
                if entry.layer is not None:
                    stack = _at(params, entry.path)
                    if stack is None:
                        make = functools.partial(jnp.zeros, _at(abstract, entry.path).shape, dtype)
                        sharding = None if shardings is None else _at(shardings, entry.path)
                        stack = jax.jit(make, out_shardings=sharding)()
                    x = _set_layer(stack, x, entry.layer)
                _put(params, entry.path, x)
                # The device's copy is complete before the next tensor is read, or the host would hold several.
                jax.block_until_ready(x)
    return params


# --- writing ---


def copy_companions(source: str | Path, target: str | Path) -> None:
    """Copies the tokenizer and generation files of one directory to another."""
    for name in _COMPANIONS:
        if (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, Path(target) / name)


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
      ValueError: the directory holds something, the companions are not there, or Hugging Face has no such family.
    """
    directory = Path(directory).absolute()
    if companions is not None and not Path(companions).is_dir():
        raise ValueError(f"companions: {companions} is no directory")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} exists and is not an empty directory: choose another")
    base = {}
    if companions is not None and (Path(companions) / "config.json").is_file():
        base = _read_json(Path(companions) / "config.json")
        if len(base.get("layer_types") or ()) != config.num_hidden_layers:
            base.pop("layer_types", None)  # one for each layer; without it all are full attention
    target = jnp.dtype(dtype or config.param_dtype)
    written = _config_json(config, target.name, base)

    files: list[list[_Entry]] = [[]]
    room = max_file_bytes
    total = 0
    for entry in _entries(config):
        leaf = _at(params, entry.path)
        size = math.prod(leaf.shape if entry.layer is None else leaf.shape[1:]) * target.itemsize
        total += size
        if files[-1] and size > room:
            files.append([])
            room = max_file_bytes
        files[-1].append(entry)
        room -= size

    unfinished = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    index = {}
    for number, entries in enumerate(files, 1):
        name = _SINGLE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {}
        for entry in entries:
            leaf = _at(params, entry.path)
            host = np.asarray(jax.device_get(leaf if entry.layer is None else leaf[entry.layer]))
            tensors[entry.name] = entry.weight.to_theirs(host.astype(target))
            index[entry.name] = name
        # The format's key is what transformers looks for before it reads a file.
        safetensors.numpy.save_file(tensors, unfinished / name, metadata={"format": "pt"})
    if len(files) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (unfinished / _INDEX).write_text(json.dumps(content, indent=2) + "\n")
    (unfinished / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    if companions is not None:
        copy_companions(companions, unfinished)
    if directory.exists():
        directory.rmdir()
    unfinished.rename(directory)
