"""Low-rank adapters in PEFT's format: adapter_config.json and adapter_model.safetensors, in and out."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import safetensors.numpy

from polyepo_jax.model.config import TARGETS, Dtype, LoRA, ModelConfig
from polyepo_jax.model.hf.config import read_json
from polyepo_jax.model.hf.names import ADAPTER_PREFIX, adapter_entries_of, layout_of
from polyepo_jax.model.hf.tensors import (
    check_tensors,
    headers_of,
    load_tensors,
    open_file,
    tensor_of,
    written_whole,
)
from polyepo_jax.model.lora import split
from polyepo_jax.model.transformer import Params, init
from polyepo_jax.sharding import Mesh

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Of the weight file's metadata, which PEFT does not read: tells the model that the adapters go with.
_FINGERPRINT = "polyepo_jax.frozen"
# Keys of adapter_config.json that change what adapters compute, or what has some, where they hold something.
_NOT_IMPLEMENTED = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
# Ways to initialise that also change the model: what is in its own directory is not what the adapters go with.
_CHANGE_THE_MODEL = ("corda", "loftq", "lora_ga", "olora", "pissa")


def read_lora(directory: str | Path) -> LoRA:
    """What a directory in PEFT's format says of its adapters.

    Targets that it does not list one by one are taken for all.

    Raises:
      ValueError: naming the file, and the key that is not implemented or not what it should be.
    """
    path = Path(directory) / _CONFIG
    if not path.is_file():
        raise ValueError(f"{path} does not exist: adapters are a directory with {_CONFIG} and {_WEIGHTS}")
    raw = read_json(path)
    if raw.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type {raw.get('peft_type')!r} is not implemented, only 'LORA'")
    for key in _NOT_IMPLEMENTED:
        if raw.get(key):
            raise ValueError(f"{path}: {key} {raw[key]!r} is not implemented")
    if raw.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias {raw['bias']!r} is not implemented, only 'none'")
    if str(raw.get("init_lora_weights")).startswith(_CHANGE_THE_MODEL):
        raise ValueError(f"{path}: adapters by init_lora_weights {raw['init_lora_weights']!r} are not implemented")
    rank, alpha, targets = raw.get("r"), raw.get("lora_alpha"), raw.get("target_modules")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise ValueError(f"{path}: r must be a whole number and lora_alpha a number, got {rank!r} and {alpha!r}")
    if isinstance(targets, list):
        targets = tuple(sorted(targets, key=lambda name: TARGETS.index(name) if name in TARGETS else len(TARGETS)))
    try:
        return LoRA(rank, alpha, targets if isinstance(targets, tuple) else TARGETS, bool(raw.get("use_rslora")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _check_same(path: Path, theirs: LoRA, wanted: LoRA) -> None:
    """Raises ValueError, naming the fields of model.lora that do not fit."""
    pairs = {
        "rank": (theirs.rank, wanted.rank),
        "alpha": (theirs.alpha, wanted.alpha),
        "rank_stabilized": (theirs.rank_stabilized, wanted.rank_stabilized),
        "targets": (sorted(theirs.targets), sorted(wanted.targets)),
    }
    differing = [f"{name} {one!r}, not {other!r}" for name, (one, other) in pairs.items() if one != other]
    if differing:
        raise ValueError(f"{path} is of other adapters: it has {'; '.join(differing)}; set model.lora.* to match")


def load_adapters(directory: str | Path, config: ModelConfig, mesh: Mesh | None = None) -> tuple[Params, str | None]:
    """Adapters for a model, in its param_dtype, placed as `load_hf` places parameters.

    Args:
      directory: with adapter_config.json and adapter_model.safetensors.
      config: of the model, with `lora`.

    Returns:
      The adapters, as of `lora.split`, and the fingerprint of the model that they go with, None where it is not said.

    Raises:
      ValueError: naming the file, tensor or field: one that is missing, damaged, left over, not finite or of another
        shape; adapters that are not those of the config, or of a kind that is not implemented.
    """
    directory = Path(directory)
    assert config.lora is not None
    _check_same(directory / _CONFIG, read_lora(directory), config.lora)
    path = directory / _WEIGHTS
    if not path.is_file():
        raise ValueError(
            f"{directory} has no {_WEIGHTS}: adapters are read from that file alone, never from pickled ones"
        )
    headers = headers_of([path])
    layout = layout_of([name.removeprefix(ADAPTER_PREFIX) for name in headers])
    entries = list(adapter_entries_of(config, layout))
    abstract, _ = split(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    check_tensors(directory, entries, headers, abstract, "the config's model with model.lora")
    with open_file(path) as file:
        fingerprint = (file.metadata() or {}).get(_FINGERPRINT)
    return load_tensors(config, entries, headers, abstract, jnp.dtype(config.param_dtype), mesh), fingerprint


def _config_json(lora: LoRA, base: str | None) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "use_rslora": lora.rank_stabilized,
        "target_modules": list(lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }


def save_adapters(
    directory: str | Path,
    config: ModelConfig,
    adapters: Params,
    *,
    dtype: Dtype | None = None,
    base: str | None = None,
    fingerprint: str | None = None,
) -> None:
    """Writes adapters so that `peft` loads them, whole or not at all.

    Args:
      directory: made; must not exist, or be empty.
      config: of the model, with `lora`. adapters: as of `lora.split`.
      dtype: of the file; None keeps that of the adapters.
      base: where the model is that they go with, for who loads them. fingerprint: what tells it from others.

    Raises:
      ValueError: the directory holds something, or numbers are too large for the dtype.
    """
    assert config.lora is not None
    target = jnp.dtype(dtype or config.param_dtype)
    with written_whole(Path(directory).absolute()) as unfinished:
        tensors = {entry.name: tensor_of(entry, adapters, target) for entry in adapter_entries_of(config)}
        metadata = {"format": "pt"} | ({} if fingerprint is None else {_FINGERPRINT: fingerprint})
        safetensors.numpy.save_file(tensors, unfinished / _WEIGHTS, metadata=metadata)
        (unfinished / _CONFIG).write_text(json.dumps(_config_json(config.lora, base), indent=2) + "\n")
