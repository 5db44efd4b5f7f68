"""Models in Hugging Face's format: all that is refused, and what is accepted all the same."""

import dataclasses
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from polyepo_jax.model.hf import load_hf, read_config, save_hf
from tests.hf_directories import (
    ABSENT,
    EMBEDDING,
    FAMILIES,
    INDEX,
    LAST,
    LLAMA3,
    NORM,
    WEIGHTS,
    YARN,
    assert_same_bits,
    config_with,
    copy_of,
    edit_json,
    edit_tensors,
    file_with,
    golden,
    index_with,
    renamed,
    retyped,
    second_file_with,
    split,
    tensors_with,
    values_of,
)
from tests.make_hf_golden import GOLDEN

# What is wrong -> how to make it of a golden qwen3, and what the message says: the file or tensor by name.
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    # Tensors.
    "tensor missing": (tensors_with(lambda x: x.pop(NORM)), rf"lacks tensor {NORM}"),
    "tensor of a layer missing": (
        tensors_with(lambda x: x.pop("model.layers.1.self_attn.q_norm.weight")),
        r"lacks tensor model\.layers\.1\.self_attn\.q_norm\.weight",
    ),
    "untied output missing": (tensors_with(lambda x: x.pop("lm_head.weight")), r"lacks tensor lm_head\.weight"),
    "many tensors missing": (config_with(num_hidden_layers=3), r"lacks tensor model\.layers\.2\..* and 8 more"),
    "tensor left over": (
        tensors_with(lambda x: x.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(40, np.float32)})),
        r"holds tensor model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    # The text model of one that sees is read, and nothing beside it.
    "vision tower": (
        lambda directory: (
            renamed("model.language_model.")(directory),
            tensors_with(lambda x: x.update({"model.visual.blocks.0.mlp.fc1.bias": np.zeros(4, "f4")}))(directory),
        ),
        r"holds tensor model\.visual\.blocks\.0\.mlp\.fc1\.bias, for which its config\.json has no place",
    ),
    "tensors under two prefixes": (
        tensors_with(lambda x: x.update({EMBEDDING.removeprefix("model."): x[EMBEDDING].copy()})),
        r"holds tensor embed_tokens\.weight,",
    ),
    "layers left over": (config_with(num_hidden_layers=1), r"holds tensor model\.layers\.1\."),
    "wrong shape": (
        tensors_with(lambda x: x.update({LAST: x[LAST][:, :-1].copy()})),
        rf"{LAST} of .*{WEIGHTS} has the shape \[40, 23\].*\[40, 24\]",
    ),
    "wrong orientation": (
        tensors_with(lambda x: x.update({"lm_head.weight": x["lm_head.weight"].T.copy()})),
        r"lm_head\.weight of .* has the shape \[24, 40\]",
    ),
    "sizes of another model": (config_with(vocab_size=41), r"embed_tokens\.weight of .* \[40, 24\].*\[41, 24\]"),
    "fp8": (retyped(ml_dtypes.float8_e4m3fn, LAST), rf"{LAST} of .*{WEIGHTS} is F8_E4M3"),
    "integers": (retyped(np.int8, LAST), rf"{LAST} of .*{WEIGHTS} is I8"),
    "mixed dtypes": (
        retyped(ml_dtypes.bfloat16, LAST),
        rf"model holds (?=.*{LAST} bfloat16)(?=.* float32).*give the dtype",
    ),
    "mixed dtypes of 16 bits": (
        lambda directory: (retyped(np.float16)(directory), retyped(ml_dtypes.bfloat16, LAST)(directory)),
        rf"model holds (?=.*{LAST} bfloat16)(?=.* float16).*give the dtype",
    ),
    # Files.
    "no config": (file_with("config.json", lambda _: None), r"config\.json does not exist"),
    "config not JSON": (file_with("config.json", lambda x: x[:-10]), r"config\.json is not readable JSON"),
    "config not text": (file_with("config.json", lambda _: b"\xff\xfe\x00"), r"config\.json is not readable JSON"),
    "config no object": (file_with("config.json", lambda _: b"[1]"), r"config\.json: expected a JSON object"),
    "no weights": (file_with(WEIGHTS, lambda _: None), rf"has neither {WEIGHTS} nor"),
    "truncated": (file_with(WEIGHTS, lambda x: x[:-100]), rf"{WEIGHTS} is not a whole safetensors file"),
    "header truncated": (file_with(WEIGHTS, lambda x: x[:50]), rf"{WEIGHTS} is not a whole safetensors file"),
    "empty": (file_with(WEIGHTS, lambda _: b""), rf"{WEIGHTS} is not a whole safetensors file"),
    "garbage": (file_with(WEIGHTS, lambda x: bytes(range(256)) * 99), rf"{WEIGHTS} is not a whole safetensors file"),
    "pointer of git-lfs": (
        file_with(WEIGHTS, lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n"),
        rf"{WEIGHTS} is not a whole safetensors file",
    ),
    "second file truncated": (
        second_file_with(lambda file: file.write_bytes(file.read_bytes()[:-100])),
        r"model-00002-of-00002\.safetensors is not a whole safetensors file",
    ),
    "second file absent": (
        second_file_with(Path.unlink),
        rf"{INDEX} names model-00002-of-00002\.safetensors.*not there",
    ),
    "index names an absent file": (
        index_with(lambda x: x.update({NORM: "model-00009.safetensors"})),
        rf"{INDEX} names model-00009\.safetensors, which is not there",
    ),
    "index names a file elsewhere": (
        index_with(lambda x: x.update({NORM: "../elsewhere/model.safetensors"})),
        rf"{INDEX} names '\.\./elsewhere/model\.safetensors'",
    ),
    "index names an absolute path": (
        index_with(lambda x: x.update({NORM: "/etc/passwd"})),
        rf"{INDEX} names '/etc/passwd'",
    ),
    "index names the parent": (index_with(lambda x: x.update({NORM: ".."})), rf"{INDEX} names"),
    "index names no text": (index_with(lambda x: x.update({NORM: 3})), rf"{INDEX}.*{NORM}"),
    "index names the wrong file": (
        index_with(lambda x: x.update({NORM: "model-00001-of-00002.safetensors"})),
        rf"{INDEX} puts tensor {NORM} in model-00001-of-00002\.safetensors, which does not hold it",
    ),
    "index names an absent tensor": (
        index_with(lambda x: x.update({"further": "model-00001-of-00002.safetensors"})),
        rf"{INDEX} puts tensor further",
    ),
    "index empty": (index_with(dict.clear), rf"{INDEX} has no weight_map"),
    "index not JSON": (
        lambda directory: (split(directory), (directory / INDEX).write_text("{")),
        rf"{INDEX} is not readable JSON",
    ),
    "tensor twice": (
        second_file_with(lambda file: edit_tensors(file, lambda x: x.update({EMBEDDING: np.zeros((40, 24), "f4")}))),
        rf"tensor {EMBEDDING} is in model-00001-of-00002\.safetensors and in model-00002-of-00002\.safetensors",
    ),
    # Settings.
    "no theta": (config_with(rope_parameters=ABSENT), r"config\.json: no rope_theta"),
    "no theta in rope_parameters": (
        config_with(rope_parameters={"rope_type": "default"}),
        r"config\.json: no rope_theta",
    ),
    "dynamic": (
        config_with(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        r"config\.json: rope type 'dynamic'",
    ),
    "dynamic by type": (
        config_with(rope_parameters={"type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        r"config\.json: rope type 'dynamic'",
    ),
    "longrope in the old layout": (
        config_with(rope_parameters=ABSENT, rope_theta=1e4, rope_scaling={"rope_type": "longrope", "factor": 2.0}),
        r"config\.json: rope type 'longrope'",
    ),
    "longrope in the old layout by type": (
        config_with(rope_parameters=ABSENT, rope_theta=1e4, rope_scaling={"type": "longrope", "factor": 2.0}),
        r"config\.json: rope type 'longrope'",
    ),
    "yarn without a factor": (
        config_with(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
        r"config\.json: rope type 'yarn' without factor",
    ),
    "yarn without the original length": (
        config_with(
            rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}, max_position_embeddings=ABSENT
        ),
        r"config\.json: rope type 'yarn' without original_max_position_embeddings",
    ),
    "yarn impossible": (
        config_with(rope_parameters=YARN | {"rope_theta": 1e4, "beta_fast": 1, "beta_slow": 2}),
        r"config\.json: rope scaling yarn needs factor >= 1 and 0 < beta_slow <= beta_fast",
    ),
    "yarn without a base": (
        config_with(rope_parameters=YARN | {"rope_theta": 1.0}),
        r"config\.json: model\.rope_theta must be above 1",
    ),
    "linear that speeds up": (
        config_with(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 0.5}),
        r"config\.json: rope scaling linear needs factor >= 1",
    ),
    "a switch of yarn that is a number": (
        config_with(rope_parameters=YARN | {"rope_theta": 1e4, "truncate": 1}),
        r"truncate must be true or false, got 1",
    ),
    "an mscale below 0": (
        config_with(rope_parameters=YARN | {"rope_theta": 1e4, "mscale": -1.0}),
        r"mscale must be a number, 0 or above, got -1\.0",
    ),
    "a rope type that is a list": (
        config_with(rope_scaling={"type": ["yarn"]}),
        r"type must be a text, got \['yarn'\]",
    ),
    # As Qwen's model cards say to extend the context: transformers lets this key have its way.
    "yarn added to the new layout": (
        config_with(rope_scaling=YARN),
        r"config\.json: .*rope_scaling",
    ),
    "llama3 without a factor": (
        config_with(rope_parameters={key: x for key, x in LLAMA3.items() if key != "low_freq_factor"}),
        r"config\.json: rope type 'llama3' without low_freq_factor",
    ),
    "llama3 impossible": (
        config_with(rope_parameters=LLAMA3 | {"high_freq_factor": 0.5}),
        r"config\.json: rope scaling llama3 needs",
    ),
    "part of a head rotated": (config_with(partial_rotary_factor=0.5), r"config\.json: partial_rotary_factor 0\.5"),
    "part of a head rotated, new layout": (
        config_with(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        r"config\.json: partial_rotary_factor 0\.5",
    ),
    "sliding window": (
        config_with(use_sliding_window=True, sliding_window=16),
        r"config\.json: an active sliding window",
    ),
    "sliding window of the default": (
        config_with(use_sliding_window=True, sliding_window=ABSENT),
        r"config\.json: an active sliding window",
    ),
    "biases of a mistral": (
        config_with(model_type="mistral", sliding_window=None, attention_bias=True),
        r"config\.json: attention_bias in a mistral",
    ),
    "sliding layers": (
        config_with(layer_types=["full_attention", "sliding_attention"]),
        r"config\.json: layer types .*sliding_attention",
    ),
    "mixture of experts": (config_with(model_type="qwen3_moe", num_experts=8), r"config\.json: model_type 'qwen3_moe'"),
    "no family": (config_with(model_type=ABSENT), r"config\.json: model_type None"),
    "quantised": (config_with(quantization_config={"quant_method": "fp8"}), r"config\.json: quantised weights"),
    "weights elsewhere": (
        config_with(transformers_weights="adapter.safetensors"),
        r"config\.json: transformers_weights names other weight files",
    ),
    "gelu": (config_with(hidden_act="gelu"), r"config\.json: hidden_act 'gelu'"),
    "biases missing": (config_with(attention_bias=True), r"lacks tensor model\.layers\.0\.self_attn\.q_proj\.bias"),
    "biases that the family has not": (
        config_with(model_type="qwen2", attention_bias=True),
        r"config\.json: attention_bias in a qwen2",
    ),
    "biases of the MLP": (config_with(model_type="llama", mlp_bias=True), r"config\.json: mlp_bias in a llama"),
    "no sizes": (
        config_with(hidden_size=ABSENT, num_attention_heads=ABSENT, rms_norm_eps=None),
        r"config\.json: missing hidden_size, num_attention_heads, rms_norm_eps",
    ),
    "no layers": (config_with(num_hidden_layers=0), r"config\.json: .*num_hidden_layers must be at least 1"),
    "no heads": (
        config_with(model_type="llama", num_attention_heads=0, head_dim=ABSENT),
        r"config\.json: .*num_attention_heads",
    ),
    "a size that is a text": (config_with(model_type="llama", hidden_size="24", head_dim=ABSENT), r"config\.json: "),
    "a number that is a text": (config_with(rms_norm_eps="1e-6"), r"rms_norm_eps must be a number above 0, got '1e-6'"),
    "a number below 0": (config_with(rms_norm_eps=-1.0), r"rms_norm_eps must be a number above 0, got -1\.0"),
    "a number that is none": (
        config_with(rms_norm_eps=float("nan")),
        r"rms_norm_eps must be a number above 0, got nan",
    ),
    "theta that is a text": (config_with(rope_theta="1e4"), r"rope_theta must be a number above 0, got '1e4'"),
    "theta that is a switch": (config_with(rope_theta=True), r"rope_theta must be a number above 0, got True"),
    "theta without end": (config_with(rope_theta=float("inf")), r"rope_theta must be a number above 0, got inf"),
    "a factor that is a text": (
        config_with(rope_scaling={"rope_type": "llama3", "factor": "4"}),
        r"factor must be a number above 0, got '4'",
    ),
    "half a position": (
        config_with(rope_scaling={"rope_type": "llama3", "original_max_position_embeddings": 16.5}),
        r"original_max_position_embeddings must be a whole number, at least 1, got 16\.5",
    ),
    "a window that is a text": (config_with(sliding_window="4096"), r"sliding_window must be .*, got '4096'"),
    "a bias that is a text": (
        config_with(attention_bias="false"),
        r"attention_bias must be true or false, got 'false'",
    ),
    "a family that is a list": (config_with(model_type=["llama"]), r"model_type must be a text, got \['llama'\]"),
    "layer types that are a number": (config_with(layer_types=5), r"layer_types must be a list of texts, got 5"),
    "layer types that are a text": (
        config_with(layer_types="full_attention"),
        r"layer_types must be a list of texts, got 'full_attention'",
    ),
    "a switch that is a text": (
        config_with(tie_word_embeddings="false"),
        r"tie_word_embeddings must be true or false, got 'false'",
    ),
    "positions that are a float": (
        config_with(max_position_embeddings=64.5),
        r"max_position_embeddings must be at least 1, a whole number, got 64\.5",
    ),
    "heads that do not divide": (config_with(num_key_value_heads=3), r"config\.json: .*must be a multiple"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(tmp_path, what):
    spoil, message = REFUSED[what]
    directory = copy_of("qwen3", tmp_path / "model")
    spoil(directory)
    with pytest.raises(ValueError, match=message):
        load_hf(directory)


def test_refuses_an_active_window_of_qwen2(tmp_path):
    directory = copy_of("qwen2", tmp_path / "model")
    edit_json(directory / "config.json", use_sliding_window=False, sliding_window=4096, layer_types=ABSENT)
    load_hf(directory)  # as Qwen 2.5 has it: a window that is off
    edit_json(directory / "config.json", use_sliding_window=True)
    with pytest.raises(ValueError, match=r"config\.json: an active sliding window"):
        load_hf(directory)


@pytest.mark.parametrize(
    ("window", "positions", "effective"),
    [
        (None, 128, False),
        (128, 128, False),
        (127, 128, True),
        (0, 128, True),
        (128, ABSENT, True),
        (ABSENT, 4096, False),  # as transformers has it, where Mistral's first file says nothing
        (ABSENT, 4097, True),
    ],
)
def test_a_window_of_mistral(tmp_path, window, positions, effective):
    directory = copy_of("llama", tmp_path / "model")
    changes = {"sliding_window": window, "max_position_embeddings": positions}
    edit_json(directory / "config.json", model_type="mistral", **changes)
    if effective:
        shown = 4096 if window is ABSENT else window
        with pytest.raises(ValueError, match=rf"config\.json: a sliding window of {shown} tokens is not implemented"):
            load_hf(directory)
        return
    config, params = load_hf(directory)
    assert config == dataclasses.replace(golden("llama")[0], max_position_embeddings=positions)
    # It stays a Mistral, and has no window even if it is lengthened.
    longer = dataclasses.replace(config, max_position_embeddings=10**6)
    save_hf(tmp_path / "out", longer, params, companions=directory)
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (raw["model_type"], raw["architectures"]) == ("mistral", ["MistralForCausalLM"])
    assert raw["sliding_window"] is None
    assert read_config(tmp_path / "out") == longer


def test_refuses_float64_where_jax_would_round_it(tmp_path):
    directory = copy_of("qwen3", tmp_path / "model")
    retyped(np.float64)(directory)
    with jax.enable_x64(True):
        config, params = load_hf(directory)
        assert config.dtype == "float64"
        assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float64"}
    with pytest.raises(ValueError, match="float64"):
        load_hf(directory)


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("names", [["pytorch_model.bin"], ["pytorch_model-00001-of-00002.bin", "training_args.bin"]])
def test_pickled_files_are_never_opened(tmp_path, names):
    canary = tmp_path / "canary"
    directory = copy_of("qwen3", tmp_path / "model")
    tensors = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).unlink()
    for name in names:
        (directory / name).write_bytes(pickle.dumps(Canary(canary)))
    index = {"weight_map": {NORM: names[0]}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"only pickled weights \({re.escape(names[0])}\)"):
        load_hf(directory)
    # An index of safetensors that leads to one.
    (directory / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=re.escape(names[0])):
        load_hf(directory)
    (directory / INDEX).unlink()
    # One under the right name.
    (directory / WEIGHTS).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(ValueError, match=WEIGHTS):
        load_hf(directory)
    # Beside safetensors they do not matter.
    (directory / WEIGHTS).write_bytes(tensors)
    load_hf(directory)
    assert not canary.exists()
    pickle.loads((directory / names[0]).read_bytes())
    assert canary.exists()


# --- what is accepted all the same ---


def test_mixed_dtypes_are_loaded_as_asked(tmp_path):
    directory = copy_of("qwen3", tmp_path / "model")
    retyped(np.float16)(directory)
    retyped(ml_dtypes.bfloat16, LAST)(directory)
    for dtype in ("float32", "bfloat16"):
        config, params = load_hf(directory, dtype=dtype)
        assert config.dtype == config.param_dtype == dtype
        save_hf(tmp_path / dtype, config, params)
        expected = {name: x.astype(dtype) for name, x in values_of(directory).items()}
        assert_same_bits(values_of(tmp_path / dtype), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_float16_becomes_float32(tmp_path, family):
    """Which has all its numbers, as bfloat16 has not."""
    directory = copy_of(family, tmp_path / "model")
    retyped(np.float16)(directory)
    edit_json(directory / "config.json", dtype="float16")
    config, params = load_hf(directory)
    assert config == golden(family)[0]
    halved = jax.tree.map(lambda x: np.asarray(x).astype(np.float16), golden(family)[1])
    assert_same_bits(params, jax.tree.map(lambda x: x.astype(np.float32), halved))
    _, rough = load_hf(directory, dtype="bfloat16")
    assert_same_bits(rough, jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), halved))
    # What is written says what it is.
    save_hf(tmp_path / "out", config, params, companions=directory)
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["dtype"] == raw["torch_dtype"] == "float32"
    assert_same_bits(load_hf(tmp_path / "out")[1], params)


def test_an_output_layer_beside_a_tied_embedding(tmp_path):
    directory = copy_of("qwen2", tmp_path / "model")
    tensors_with(lambda x: x.update({"lm_head.weight": x[EMBEDDING].copy()}))(directory)
    config, params = load_hf(directory)
    assert "lm_head" not in params
    assert_same_bits(params, golden("qwen2")[1])
    tensors_with(lambda x: x["lm_head.weight"].__setitem__((7, 7), 1.5))(directory)
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: lm_head\.weight differs"):
        load_hf(directory)
    # Without the tie it is a parameter of its own.
    edit_json(directory / "config.json", tie_word_embeddings=False)
    config, params = load_hf(directory)
    assert not config.tie_word_embeddings
    np.testing.assert_array_equal(params["lm_head"], values_of(directory)["lm_head.weight"].T)


LAYOUTS = [("", ""), ("model.language_model.", ""), ("language_model.model.", "language_model.")]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_prefixes_of_the_names(tmp_path, family, layout):
    directory = copy_of(family, tmp_path / "model")
    renamed(*layout)(directory)
    config, params = load_hf(directory)
    assert config == golden(family)[0]
    assert_same_bits(params, golden(family)[1])
    # It is written with the names that all know.
    save_hf(tmp_path / "out", config, params)
    assert_same_bits(values_of(tmp_path / "out"), values_of(GOLDEN / f"hf_{family}"))


def test_what_goes_with_other_prefixes(tmp_path):
    """Copies are found by their prefix too, and what is missing or left over has it in its name."""
    body, head = LAYOUTS[2]
    directory = copy_of("qwen2", tmp_path / "model")
    renamed(body, head)(directory)
    tensors_with(lambda x: x.update({f"{head}lm_head.weight": x[f"{body}embed_tokens.weight"].copy()}))(directory)
    tensors_with(lambda x: x.update({f"{body}rotary_emb.inv_freq": np.ones(3, np.float32)}))(directory)
    assert_same_bits(load_hf(directory)[1], golden("qwen2")[1])
    tensors_with(lambda x: x[f"{head}lm_head.weight"].__setitem__((7, 7), 1.5))(directory)
    with pytest.raises(ValueError, match=r"language_model\.lm_head\.weight differs from the embedding"):
        load_hf(directory)
    tensors_with(lambda x: (x.pop(f"{head}lm_head.weight"), x.pop(f"{body}norm.weight")))(directory)
    with pytest.raises(ValueError, match=r"lacks tensor language_model\.model\.norm\.weight"):
        load_hf(directory)


def test_tables_of_rotary_frequencies_are_passed_over(tmp_path):
    directory = copy_of("llama", tmp_path / "model")
    # As old files of Llama have them, in whatever dtype.
    table = np.ones(5, np.float16)
    names = ["model.rotary_emb.inv_freq", *(f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(2))]
    tensors_with(lambda x: x.update(dict.fromkeys(names, table)))(directory)
    config, params = load_hf(directory)
    assert config == golden("llama")[0]
    assert_same_bits(params, golden("llama")[1])


def test_links_lead_to_the_weights(tmp_path):
    """As in the cache of huggingface_hub, where a model's files are links to blobs."""
    directory = copy_of("qwen3", tmp_path / "snapshots")
    (tmp_path / "blobs").mkdir()
    (directory / WEIGHTS).rename(tmp_path / "blobs" / "0a1b")
    (directory / WEIGHTS).symlink_to(Path("..") / "blobs" / "0a1b")
    assert_same_bits(load_hf(directory)[1], golden("qwen3")[1])
