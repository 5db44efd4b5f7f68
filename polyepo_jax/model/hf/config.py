"""config.json of a Hugging Face model: read, checked by type, and written."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from polyepo_jax.model.config import Llama3RopeScaling, ModelConfig

# model_type -> class, and the switches of ModelConfig that make the family.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", {"qk_norm": True, "qkv_bias": False}),
    "qwen2": ("Qwen2ForCausalLM", {"qk_norm": False, "qkv_bias": True}),
    "llama": ("LlamaForCausalLM", {"qk_norm": False, "qkv_bias": False}),
}


def read_json(path: Path) -> dict[str, Any]:
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
    raw = read_json(path)
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


def config_json(config: ModelConfig, dtype: str, base: dict[str, Any]) -> dict[str, Any]:
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
