"""config.json of a Hugging Face model: read, checked by type, and written."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyepo_jax.model.config import ROPE_SCALINGS, ModelConfig, RopeScaling


@dataclasses.dataclass(frozen=True)
class Family:
    """What a model_type says of the architecture.

    architecture: the class.
    qk_norm, qkv_bias: as in ModelConfig.
    has_bias_key: `attention_bias` in config.json gives the four projections of the attention a bias each.
    """

    architecture: str
    qk_norm: bool = False
    qkv_bias: bool = False
    has_bias_key: bool = False

    def switches(self, attention_bias: bool) -> dict[str, Any]:
        """Those of ModelConfig. attention_bias: as config.json has it."""
        return {"qk_norm": self.qk_norm, "qkv_bias": self.qkv_bias or attention_bias, "o_bias": attention_bias}

    def has(self, config: ModelConfig) -> bool:
        """Whether the model is one of this family."""
        switches = self.switches(attention_bias=self.has_bias_key and config.o_bias)
        return all(getattr(config, name) == value for name, value in switches.items())


FAMILIES = {
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, has_bias_key=True),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True),
    "llama": Family("LlamaForCausalLM", has_bias_key=True),
    "mistral": Family("MistralForCausalLM"),
}
# What transformers supposes where config.json does not say `sliding_window`; null is none.
_WINDOW = 4096
_ORIGINAL = "original_max_position_embeddings"


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


def _rope(path: Path, raw: dict[str, Any]) -> tuple[float, RopeScaling | None]:
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
    return float(theta), None if kind == "default" else _scaling(path, kind, raw, values)


def _scaling(path: Path, kind: str, raw: dict[str, Any], values: dict[str, Any]) -> RopeScaling:
    if kind not in ROPE_SCALINGS:
        raise ValueError(
            f"{path}: rope type {kind!r} is not implemented; implemented are default, {', '.join(ROPE_SCALINGS)}"
        )
    # Where transformers looks for the original length, in this order.
    places = (raw.get(_ORIGINAL), values.get(_ORIGINAL), raw.get("max_position_embeddings"))
    values = values | {_ORIGINAL: next((x for x in places if x is not None), None)}
    fields = dataclasses.fields(ROPE_SCALINGS[kind])
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and values.get(f.name) is None]
    if missing:
        raise ValueError(f"{path}: rope type {kind!r} without {', '.join(missing)}")
    try:
        return ROPE_SCALINGS[kind](**{f.name: values[f.name] for f in fields if values.get(f.name) is not None})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _refuse_a_window(path: Path, raw: dict[str, Any]) -> None:
    """Raises ValueError where some token would not look at all before it."""
    family, window = raw["model_type"], raw.get("sliding_window", _WINDOW)
    if window is None:
        return
    if family in ("qwen2", "qwen3") and raw.get("use_sliding_window"):
        raise ValueError(f"{path}: an active sliding window is not implemented (use_sliding_window is true)")
    # W tokens are all tokens of a text that is no longer.
    positions = raw.get("max_position_embeddings")
    if family == "mistral" and (positions is None or window < positions):
        raise ValueError(
            f"{path}: a sliding window of {window} tokens is not implemented, where max_position_embeddings is "
            f"{positions}: it must be null, or hold them all"
        )


def _refuse_what_is_not_implemented(path: Path, raw: dict[str, Any]) -> None:
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{path}: model_type {family!r} is not implemented; implemented are {', '.join(FAMILIES)}")
    if raw.get("quantization_config"):
        raise ValueError(f"{path}: quantised weights are not implemented: take the model's unquantised files")
    if raw.get("transformers_weights"):
        raise ValueError(f"{path}: transformers_weights names other weight files than usual: not implemented")
    _refuse_a_window(path, raw)
    kinds = set(raw.get("layer_types") or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"{path}: layer types {', '.join(sorted(kinds))}: only full_attention is implemented")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{path}: hidden_act {raw['hidden_act']!r} is not implemented, only 'silu'")
    # In qwen2 the biases belong to the family and no key names them.
    for key in ("mlp_bias",) if FAMILIES[family].has_bias_key else ("attention_bias", "mlp_bias"):
        if raw.get(key):
            raise ValueError(f"{path}: {key} in a {family} is not implemented")


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _is_whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_switch(value: Any) -> bool:
    return type(value) is bool


def _is_text(value: Any) -> bool:
    return type(value) is str


def _are_texts(value: Any) -> bool:
    return type(value) is list and all(map(_is_text, value))


_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Keys, what they must be, and how that is said: of config.json, and of what it says about rotations.
_Checks = tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...]
_TYPES: _Checks = (
    (
        (*_SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings"),
        _is_size,
        "at least 1, a whole number",
    ),
    (("rms_norm_eps", "rope_theta"), _is_positive, "a number above 0"),
    ((_ORIGINAL,), _is_size, "a whole number, at least 1"),
    (("sliding_window",), _is_whole, "a whole number"),
    (("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"), _is_switch, "true or false"),
    (("model_type", "hidden_act"), _is_text, "a text"),
    (("layer_types",), _are_texts, "a list of texts"),
)
_ROPE_TYPES: _Checks = (
    (
        ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor"),
        _is_positive,
        "a number above 0",
    ),
    (("mscale", "mscale_all_dim"), lambda value: value == 0 or _is_positive(value), "a number, 0 or above"),
    ((_ORIGINAL,), _is_size, "a whole number, at least 1"),
    (("truncate",), _is_switch, "true or false"),
    (("rope_type", "type"), _is_text, "a text"),
)


def _check_types(path: Path, raw: dict[str, Any]) -> None:
    """Raises ValueError, naming the key, where a value is not of its type: a text is no number, nor a switch.

    What is missing, or null, is another's to judge.
    """
    ropes = [raw[name] for name in ("rope_parameters", "rope_scaling") if isinstance(raw.get(name), dict)]
    for part, checks in ((raw, _TYPES), *((rope, _ROPE_TYPES) for rope in ropes)):
        for names, is_right, expected in checks:
            for name in names:
                if part.get(name) is not None and not is_right(part[name]):
                    raise ValueError(f"{path}: {name} must be {expected}, got {part[name]!r}")


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
            **FAMILIES[raw["model_type"]].switches(bool(raw.get("attention_bias"))),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _rope_json(scaling: RopeScaling | None) -> dict[str, Any]:
    """Type and values, but for those that everybody supposes."""
    if scaling is None:
        return {"rope_type": "default"}
    stated = {f.name: getattr(scaling, f.name) for f in dataclasses.fields(scaling)}
    defaults = {f.name: f.default for f in dataclasses.fields(scaling)}
    return {"rope_type": scaling.rope_type} | {k: v for k, v in stated.items() if v != defaults[k]}


def config_json(config: ModelConfig, dtype: str, base: dict[str, Any]) -> dict[str, Any]:
    """config.json of a model, in the old and the new layout; keys that only `base` has stay."""
    # A llama and a mistral differ in the name alone: a model keeps its own.
    names = [base.get("model_type"), *FAMILIES]
    family = next((name for name in names if name in FAMILIES and FAMILIES[name].has(config)), None)
    if family is None:
        found = " and ".join(name for name in ("qk_norm", "qkv_bias", "o_bias") if getattr(config, name))
        raise ValueError(f"no Hugging Face family has {found} alone")
    rope = _rope_json(config.rope_scaling)
    ours = {
        "architectures": [FAMILIES[family].architecture],
        "model_type": family,
        "hidden_act": "silu",
        "dtype": dtype,
        "torch_dtype": dtype,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else rope,
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
    }
    if FAMILIES[family].has_bias_key or "attention_bias" in base:
        ours["attention_bias"] = config.o_bias
    if family == "mistral":
        ours["sliding_window"] = None
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
    # At the top it would overrule the scaling's.
    base = {name: value for name, value in base.items() if name != _ORIGINAL}
    return base | ours | {name: getattr(config, name) for name in same}
