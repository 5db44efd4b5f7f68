"""Directories of low-rank adapters: what is written, and what is refused."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

from polyepo_jax.model import LoRA, init, load_adapters, save_adapters, split
from polyepo_jax.model.config import TARGETS
from tests.hf_directories import assert_same_bits, edit_json, edit_tensors, golden

LAST = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
SPOILED = {
    "rank": (lambda d: edit_json(d / "adapter_config.json", r=4), "rank 4, not 2; set model.lora"),
    "alpha": (lambda d: edit_json(d / "adapter_config.json", lora_alpha=16), "alpha 16, not 3.0"),
    "scale": (lambda d: edit_json(d / "adapter_config.json", use_rslora=True), "rank_stabilized True, not False"),
    "targets": (
        lambda d: edit_json(d / "adapter_config.json", target_modules=["q_proj"]),
        r"targets \['q_proj'\], not",
    ),
    "unknown": (
        lambda d: edit_json(d / "adapter_config.json", target_modules=["lm_head"]),
        "'lm_head'.* q_proj, k_proj",
    ),
    "dora": (lambda d: edit_json(d / "adapter_config.json", use_dora=True), "use_dora True is not implemented"),
    "pattern": (lambda d: edit_json(d / "adapter_config.json", rank_pattern={"q_proj": 3}), "rank_pattern .* not impl"),
    "bias": (lambda d: edit_json(d / "adapter_config.json", bias="all"), "bias 'all' is not implemented"),
    "kind": (lambda d: edit_json(d / "adapter_config.json", peft_type="IA3"), "peft_type 'IA3' is not implemented"),
    "pissa": (lambda d: edit_json(d / "adapter_config.json", init_lora_weights="pissa"), "'pissa' are not impl"),
    "number": (lambda d: edit_json(d / "adapter_config.json", r="2"), "r must be a whole number"),
    "no config": (lambda d: (d / "adapter_config.json").unlink(), "adapter_config.json does not exist"),
    "no weights": (lambda d: (d / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "damaged": (
        lambda d: (d / "adapter_model.safetensors").write_bytes(b"no tensors"),
        "adapter_model.safetensors is not a whole safetensors file",
    ),
    "missing": (lambda d: edit_tensors(d / "adapter_model.safetensors", lambda x: x.pop(LAST)), f"lacks tensor {LAST}"),
    "extra": (
        lambda d: edit_tensors(d / "adapter_model.safetensors", lambda x: x.update(other=x[LAST])),
        "holds tensor other, for which",
    ),
    "shape": (
        lambda d: edit_tensors(d / "adapter_model.safetensors", lambda x: x.update({LAST: x[LAST][:8]})),
        rf"{re.escape(LAST)} .* \[8, 2\]; the config's model with model.lora calls for \[32, 2\]",
    ),
    "infinite": (
        lambda d: edit_tensors(d / "adapter_model.safetensors", lambda x: x.update({LAST: x[LAST] + np.inf})),
        "expected finite weights",
    ),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A config, and its adapters in a directory that we write as peft does."""
    config = dataclasses.replace(golden("qwen3")[0], lora=LoRA(2, 3.0))
    adapters, _ = split(jax.jit(init, static_argnums=0)(config, jax.random.key(0)))
    directory = tmp_path_factory.mktemp("adapters") / "whole"
    save_adapters(directory, config, adapters, base="models/qwen3")
    return config, adapters, directory


@pytest.mark.parametrize("name", SPOILED)
def test_adapters_that_do_not_fit_are_refused(written, tmp_path, name):
    config, _, directory = written
    spoil, message = SPOILED[name]
    shutil.copytree(directory, tmp_path / "spoiled")
    spoil(tmp_path / "spoiled")
    with pytest.raises(ValueError, match=message):
        load_adapters(tmp_path / "spoiled", config)


def test_what_is_written(written, tmp_path):
    config, adapters, directory = written
    raw = json.loads((directory / "adapter_config.json").read_text())
    assert raw["base_model_name_or_path"] == "models/qwen3"
    assert (raw["r"], raw["lora_alpha"], raw["target_modules"]) == (2, 3.0, list(TARGETS))
    assert_same_bits(load_adapters(directory, config)[0], adapters)
    with pytest.raises(ValueError, match="exists and is not an empty directory"):
        save_adapters(directory, config, adapters)
    large = jax.tree.map(lambda x: x + 1e5, adapters)
    with pytest.raises(ValueError, match="too large for float16"):
        save_adapters(tmp_path / "half", config, large, dtype="float16")
    assert not list(tmp_path.iterdir())
