"""Models in Hugging Face's format: the numbers of transformers, files there and back, and all that is refused.

Where torch and transformers are not installed, tests/golden/hf_* stand for them; tests.make_hf_golden made those.
"""

import dataclasses
import functools
import json
import pickle
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from polyepo_jax.model import Llama3RopeScaling, ModelConfig, forward, logical_axes
from polyepo_jax.model.hf import load_hf, read_config, save_hf
from polyepo_jax.model.hf import tensors as hf_tensors
from polyepo_jax.sampling.generate import GenerationSpec, generate
from polyepo_jax.sampling.methods import Sampling
from polyepo_jax.sharding import MeshConfig, make_mesh, param_shardings
from polyepo_jax.types import Prompts
from tests.make_hf_golden import (
    END,
    GOLDEN,
    NEW_TOKENS,
    PAD,
    SETTINGS,
    complete,
    expected_of,
    logits_of,
    make_model,
    prompts_of,
    random_tokens,
    read_model,
)

FAMILIES = sorted(SETTINGS)
TOLERANCE = 1e-4
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ABSENT = object()

jitted_forward = jax.jit(forward, static_argnums=0)


def our_logits(config: ModelConfig, params, tokens) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(jitted_forward(config, params, jnp.asarray(tokens, jnp.int32))[0])


def our_completions(config: ModelConfig, params, prompts, mask, end: int) -> np.ndarray:
    """Greedy completions, one of each prompt."""
    spec = GenerationSpec(config, 1, NEW_TOKENS, (end,), PAD, Sampling(temperature=0.0))
    rows = jnp.arange(len(prompts))
    with jax.default_matmul_precision("highest"):
        rollouts = generate(
            spec, params, Prompts(jnp.asarray(prompts, jnp.int32), jnp.asarray(mask), rows), jax.random.key(0)
        )
    tokens, completion_mask = np.asarray(rollouts.tokens_PNT)[:, 0], np.asarray(rollouts.completion_mask_PNT)[:, 0]
    assert np.array_equal(np.asarray(rollouts.truncated_PN)[:, 0], ~(tokens == end).any(axis=1))
    return np.where(completion_mask, tokens, PAD)


def assert_completions_differ(completions: np.ndarray, end: int) -> None:
    """That the same completions are evidence: they vary, and the end token stops some rows early, not all."""
    ended = (completions == end).any(axis=1)
    assert ended.any()
    assert not ended.all()
    assert len({tuple(row) for row in completions}) == len(completions)
    assert np.median([len(set(row)) for row in completions]) >= 8


def assert_same_bits(one, other) -> None:
    """Equal trees of equal dtypes; NaN and the sign of 0 count too."""
    ours, theirs = jax.tree.leaves_with_path(one), jax.tree.leaves_with_path(other)
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, x), (_, y) in zip(ours, theirs, strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.shape, x.dtype) == (y.shape, y.dtype), path
        assert x.tobytes() == y.tobytes(), path


# --- directories to read ---


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
    if raw["model_type"] == "llama" and raw["head_dim"] == raw["hidden_size"] // raw["num_attention_heads"]:
        del raw["head_dim"]
    raw["transformers_version"] = "4.46.0"
    (directory / "config.json").write_text(json.dumps(raw))


# --- parity with the committed files ---


@functools.cache
def golden(family: str):
    """Config and params of a golden directory, and what transformers computed."""
    directory = GOLDEN / f"hf_{family}"
    with np.load(directory / "expected.npz") as file:
        return *load_hf(directory), dict(file)


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_logits(family):
    config, params, expected = golden(family)
    logits = our_logits(config, params, expected["tokens"])
    assert expected["logits"].std() > 1
    assert np.abs(logits - expected["logits"]).max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_completions(family):
    config, params, expected = golden(family)
    assert_completions_differ(expected["completions"], END[family])
    completions = our_completions(config, params, expected["prompts"], expected["prompts_mask"], END[family])
    np.testing.assert_array_equal(completions, expected["completions"])


def test_golden_configs():
    """What config.json says, field by field."""
    sizes = {
        "vocab_size": 40,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    qwen3 = ModelConfig(**sizes, head_dim=10, rope_theta=5000.0, qk_norm=True)
    qwen2 = ModelConfig(
        **sizes,
        head_dim=6,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        qk_norm=False,
        qkv_bias=True,
    )
    llama = ModelConfig(
        **sizes, head_dim=10, rope_theta=1000.0, rope_scaling=Llama3RopeScaling(4.0, 1.0, 4.0, 16), qk_norm=False
    )
    for family, config in {"qwen3": qwen3, "qwen2": qwen2, "llama": llama}.items():
        assert read_config(GOLDEN / f"hf_{family}") == golden(family)[0] == config


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_both_layouts_of_a_config_say_the_same(tmp_path, family, kind):
    directory = copy_of(family, tmp_path / "old")
    as_of_transformers_4(directory, kind)
    raw = json.loads((directory / "config.json").read_text())
    assert "rope_theta" in raw
    assert "rope_parameters" not in raw
    assert read_config(directory) == read_config(GOLDEN / f"hf_{family}")


def test_what_a_config_need_not_say(tmp_path):
    directory = copy_of("qwen3", tmp_path / "model")
    edit_json(
        directory / "config.json",
        **dict.fromkeys(("head_dim", "tie_word_embeddings", "hidden_act", "max_position_embeddings"), ABSENT),
    )
    config = read_config(directory)
    assert (config.head_dim, config.tie_word_embeddings) == (128, False)  # Qwen3's own
    edit_json(directory / "config.json", model_type="llama", num_key_value_heads=ABSENT)
    config = read_config(directory)
    assert (config.head_dim, config.num_key_value_heads) == (6, 4)


# --- parity with transformers, where it is installed ---


@pytest.fixture(scope="module")
def transformers():
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # of two they wait for each other longer than they compute
    library.utils.logging.disable_progress_bar()
    return library


TINY = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def plain_rope(theta: float) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


# Heads, ties, scalings, depths (up to four layers are unrolled, more are scanned).
CASES = {
    "qwen3": ("qwen3", TINY | plain_rope(1e6) | {"head_dim": 12}),
    "qwen3 tied, scanned": ("qwen3", TINY | {"tie_word_embeddings": True, "head_dim": 16, "num_hidden_layers": 5}),
    "qwen3 scaled": ("qwen3", TINY | {"head_dim": 8, "rope_parameters": LLAMA3, "num_key_value_heads": 1}),
    "qwen2": ("qwen2", TINY | plain_rope(1e6) | {"num_key_value_heads": 1, "use_sliding_window": False}),
    "qwen2 tied": ("qwen2", TINY | {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "hidden_size": 40}),
    "llama": ("llama", TINY | {"head_dim": 12, "rope_parameters": LLAMA3}),
    "llama tied": ("llama", TINY | {"tie_word_embeddings": True, "num_key_value_heads": 4} | plain_rope(5e5)),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(transformers, tmp_path, case):
    family, settings = CASES[case]
    make_model(family, settings).save_pretrained(tmp_path / "new", max_shard_size="30KB")
    shards = sorted(path.name for path in (tmp_path / "new").glob("*.safetensors"))
    assert len(shards) > 1
    tokens = random_tokens((2, 48), TINY["vocab_size"], 1)
    differences = {}
    for layout in ("new", "rope_type", "type"):
        directory = tmp_path / layout
        if layout != "new":
            shutil.copytree(tmp_path / "new", directory)
            as_of_transformers_4(directory, layout)
        expected = logits_of(read_model(directory), tokens).numpy()
        config, params = load_hf(directory)
        assert config.dtype == config.param_dtype == "float32"
        assert expected.std() > 1
        differences[layout] = float(np.abs(our_logits(config, params, tokens) - expected).max())
    print(case, differences)
    assert max(differences.values()) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_files_are_what_transformers_computes(transformers, family):
    _, _, golden_values = golden(family)
    expected = expected_of(family, read_model(GOLDEN / f"hf_{family}"))
    assert expected.keys() == golden_values.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(golden_values[name], values, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("case", "seed", "end"), [("qwen3", 3, 23), ("llama", 1, 12)])
def test_completions_equal_those_of_transformers(transformers, tmp_path, case, seed, end):
    model = make_model(*CASES[case], seed)
    model.save_pretrained(tmp_path / "model")
    prompts, mask = prompts_of(TINY["vocab_size"], 4)
    expected = complete(model, prompts, mask, end)
    assert_completions_differ(expected, end)
    config, params = load_hf(tmp_path / "model")
    np.testing.assert_array_equal(our_completions(config, params, prompts, mask, end), expected)


@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, "float32") for case in CASES), *((family, "bfloat16") for family in FAMILIES)]
)
def test_transformers_reads_what_is_written(transformers, tmp_path, case, dtype):
    import torch

    family, settings = CASES[case]
    model = make_model(family, settings).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "first")
    config, params = load_hf(tmp_path / "first")
    assert config.dtype == dtype
    save_hf(tmp_path / "second", config, params, companions=tmp_path / "first", max_file_bytes=30_000)
    save_hf(tmp_path / "alone", config, params)
    tokens = random_tokens((2, 48), TINY["vocab_size"], 1)
    expected = logits_of(read_model(tmp_path / "first", dtype), tokens)
    for name in ("second", "alone"):
        assert torch.equal(logits_of(read_model(tmp_path / name, dtype), tokens), expected)
        read = transformers.AutoConfig.from_pretrained(tmp_path / name)
        original = transformers.AutoConfig.from_pretrained(tmp_path / "first")
        assert type(read) is type(original)
        assert read.dtype == getattr(torch, dtype)
        assert read.rope_parameters == original.rope_parameters


# --- there and back ---


def values_of(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of a directory."""
    return {
        name: tensor
        for path in directory.glob("*.safetensors")
        for name, tensor in safetensors.numpy.load_file(path).items()
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_written_and_read_again(tmp_path, family, dtype):
    config, params = load_hf(GOLDEN / f"hf_{family}", dtype=dtype)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {config.dtype} == {config.param_dtype} == {dtype}
    save_hf(tmp_path / "out", config, params)
    again_config, again = load_hf(tmp_path / "out")
    assert again_config == config
    assert_same_bits(again, params)
    # The files hold what transformers wrote: names, shapes, orders of axes.
    original = {name: x.astype(dtype) for name, x in values_of(GOLDEN / f"hf_{family}").items()}
    assert_same_bits(values_of(tmp_path / "out"), original)
    with safetensors.safe_open(tmp_path / "out" / WEIGHTS, "np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("family", FAMILIES)
def test_config_json_keeps_what_it_said(tmp_path, family):
    config, params, _ = golden(family)
    source = copy_of(family, tmp_path / "source")
    edit_json(source / "config.json", eos_token_id=[3, 4], some_key={"kept": True})
    save_hf(tmp_path / "out", config, params, companions=source)
    before = json.loads((source / "config.json").read_text())
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: after.get(key) for key in before} == before
    # Either layout alone says all.
    new, old = tmp_path / "new", tmp_path / "old"
    for directory, dropped in (
        (new, ("rope_theta", "rope_scaling", "torch_dtype")),
        (old, ("rope_parameters", "dtype")),
    ):
        directory.mkdir()
        shutil.copy(tmp_path / "out" / "config.json", directory)
        edit_json(directory / "config.json", **dict.fromkeys(dropped, ABSENT))
        assert read_config(directory) == config


def test_what_changed_is_written_over_the_companions(tmp_path):
    """A config of the old layout, another dtype and a longer context: the new values stand, in every key."""
    source = copy_of("llama", tmp_path / "source")
    as_of_transformers_4(source)
    config, params, _ = golden("llama")
    config = dataclasses.replace(config, rope_theta=77.0, max_position_embeddings=999, rope_scaling=None)
    save_hf(tmp_path / "out", config, params, dtype="bfloat16", companions=source)
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["dtype"] == raw["torch_dtype"] == "bfloat16"
    assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"] == 77
    assert raw["rope_scaling"] is None
    assert raw["transformers_version"] == "4.46.0"
    assert read_config(tmp_path / "out") == config


def test_written_as_bfloat16_from_float32(tmp_path):
    config, params, _ = golden("qwen3")
    save_hf(tmp_path / "out", config, params, dtype="bfloat16")
    rough_config, rough = load_hf(tmp_path / "out")
    assert rough_config == dataclasses.replace(config, dtype="bfloat16", param_dtype="bfloat16")
    assert_same_bits(rough, jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), params))
    _, wide = load_hf(tmp_path / "out", dtype="float32")
    assert_same_bits(wide, jax.tree.map(lambda x: np.asarray(x).astype(np.float32), rough))


def test_written_in_several_files(tmp_path):
    config, params, _ = golden("qwen3")
    limit = 8_000
    save_hf(tmp_path / "out", config, params, max_file_bytes=limit)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert files == sorted({name.replace("XXXXX", "") for name in index["weight_map"].values()})
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    total = 0
    for file in files:
        tensors = safetensors.numpy.load_file(tmp_path / "out" / file)
        assert set(tensors) == {name for name, stated in index["weight_map"].items() if stated == file}
        size = sum(x.nbytes for x in tensors.values())
        assert size <= limit or len(tensors) == 1
        total += size
    assert index["metadata"]["total_size"] == total
    assert_same_bits(values_of(tmp_path / "out"), values_of(GOLDEN / "hf_qwen3"))
    assert_same_bits(load_hf(tmp_path / "out")[1], params)


def test_refuses_numbers_that_the_dtype_cannot_hold(tmp_path):
    config, params, _ = golden("qwen3")
    huge = params | {"norm": {"scale": params["norm"]["scale"].at[0].set(3.4e38)}}
    save_hf(tmp_path / "out", config, huge)
    load_hf(tmp_path / "out")
    with pytest.raises(ValueError, match=r"model\.norm\.weight of .* holds numbers too large for bfloat16"):
        load_hf(tmp_path / "out", dtype="bfloat16")


def test_refuses_one_file_beside_an_index_of_others(tmp_path):
    """transformers takes the one file, others the shards: nobody can know which weights are meant."""
    config, params, _ = golden("qwen3")
    save_hf(tmp_path / "out", config, params, max_file_bytes=8_000)
    shutil.copyfile(GOLDEN / "hf_qwen3" / "model.safetensors", tmp_path / "out" / "model.safetensors")
    with pytest.raises(ValueError, match=r"has both model\.safetensors and model\.safetensors\.index\.json"):
        load_hf(tmp_path / "out")


def test_a_tensor_larger_than_a_file_has_one_of_its_own(tmp_path):
    config, params, _ = golden("qwen2")
    save_hf(tmp_path / "out", config, params, max_file_bytes=1)
    names = values_of(GOLDEN / "hf_qwen2")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == len(names)
    assert_same_bits(load_hf(tmp_path / "out")[1], params)


def test_companions_are_carried_along(tmp_path):
    config, params, _ = golden("qwen3")
    source = copy_of("qwen3", tmp_path / "source")
    kept = {
        name: f'{{"content of": "{name} \u00e9"}}'.encode()
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "generation_config.json")
    }
    kept |= {"chat_template.jinja": b"{{ messages }}\r\n", "tokenizer.model": bytes(range(256))}
    for name, content in kept.items():
        (source / name).write_bytes(content)
    for name in ("README.md", "optimizer.bin", INDEX):
        (source / name).write_text("not taken along")
    save_hf(tmp_path / "out", config, params, companions=source)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*kept, "config.json", WEIGHTS}
    for name, content in kept.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    assert_same_bits(load_hf(tmp_path / "out")[1], params)


def test_saves_parameters_of_a_mesh(tmp_path):
    config, params, _ = golden("qwen3")
    _, cut = load_hf(GOLDEN / "hf_qwen3", mesh=make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)))
    save_hf(tmp_path / "out", config, cut)
    assert_same_bits(load_hf(tmp_path / "out")[1], params)


# --- whole or not at all ---


def tree_of(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }


@pytest.mark.parametrize("occupant", ["file inside", "hidden file inside", "is a file"])
def test_refuses_a_directory_that_holds_something(tmp_path, occupant):
    config, params, _ = golden("qwen3")
    out = tmp_path / "out"
    if occupant == "is a file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / (".mine" if "hidden" in occupant else "mine")).write_text("mine")
    before = tree_of(tmp_path)
    with pytest.raises(ValueError, match=r"out.*not an empty directory"):
        save_hf(out, config, params)
    assert tree_of(tmp_path) == before


def test_fills_an_empty_directory_and_makes_parents(tmp_path):
    config, params, _ = golden("qwen3")
    (tmp_path / "empty").mkdir()
    save_hf(tmp_path / "empty", config, params)
    save_hf(tmp_path / "a" / "b", config, params)
    assert tree_of(tmp_path / "empty") == tree_of(tmp_path / "a" / "b")
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "a"}


def test_refuses_a_model_of_no_family(tmp_path):
    config, params, _ = golden("qwen3")
    with pytest.raises(ValueError, match="qk_norm and qkv_bias"):
        save_hf(tmp_path / "out", dataclasses.replace(config, qkv_bias=True), params)
    assert tree_of(tmp_path) == {}


def test_a_save_that_was_killed_does_not_hinder_the_next(tmp_path, monkeypatch):
    config, params, _ = golden("qwen3")
    save_file, written = safetensors.numpy.save_file, []

    def dies_at_the_second(tensors, path, **named):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        save_file(tensors, path, **named)

    monkeypatch.setattr(safetensors.numpy, "save_file", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        save_hf(tmp_path / "out", config, params, max_file_bytes=8_000)
    assert written
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    save_hf(tmp_path / "out", config, params)
    # Nothing of the first attempt is in the second, nor beside it.
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", WEIGHTS}
    assert_same_bits(load_hf(tmp_path / "out")[1], params)


# --- placement and memory ---


@pytest.mark.parametrize(
    ("family", "sizes"), [*((family, (1, 4, 2)) for family in FAMILIES), ("qwen3", (2, 2, 2)), ("qwen3", (8, 1, 1))]
)
def test_parameters_lie_where_the_rules_put_them(family, sizes):
    config, params, _ = golden(family)
    mesh = make_mesh(MeshConfig(*sizes))
    cut_config, cut = load_hf(GOLDEN / f"hf_{family}", mesh=mesh)
    assert cut_config == config
    assert_same_bits(cut, params)
    shardings = param_shardings(mesh, logical_axes(config))
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y, x.ndim), cut, shardings)))
    for x in jax.tree.leaves(cut):
        assert len(x.addressable_shards) == 8
        for shard in x.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(x)[shard.index])
    if sizes == (1, 4, 2):
        # As a device sees it: an eighth of a projection.
        assert cut["layers"]["self_attn"]["q_proj"].addressable_shards[0].data.size * 8 == (
            params["layers"]["self_attn"]["q_proj"].size
        )


def test_no_device_ever_holds_a_whole_stack(monkeypatch):
    """Where the stacks end up does not tell: one made on a single device is cut by its first layer."""
    placed, set_layer = [], hf_tensors._set_layer

    def watched(stack, x, layer):
        placed.append((stack.sharding, x.sharding))
        return set_layer(stack, x, layer)

    monkeypatch.setattr(hf_tensors, "_set_layer", watched)
    load_hf(GOLDEN / "hf_llama", mesh=make_mesh(MeshConfig(data=1, fsdp=4, tensor=2)))
    assert placed
    assert all(len(sharding.device_set) == 8 for pair in placed for sharding in pair)


def test_converts_onto_a_mesh():
    config, params, _ = golden("llama")
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    rough_config, rough = load_hf(GOLDEN / "hf_llama", dtype="bfloat16", mesh=mesh)
    assert rough_config == dataclasses.replace(config, dtype="bfloat16", param_dtype="bfloat16")
    assert_same_bits(rough, jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), params))
    assert all(x.sharding.mesh == mesh for x in jax.tree.leaves(rough))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_host_holds_few_tensors_at_a_time(tmp_path, dtype):
    hidden, intermediate, layers = 384, 1024, 8
    settings = {
        "model_type": "llama",
        "vocab_size": 1000,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": 6,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    shapes = {"model.embed_tokens.weight": (1000, hidden), "lm_head.weight": (1000, hidden)}
    shapes["model.norm.weight"] = (hidden,)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{x}_proj.weight": (hidden, hidden) for x in "qkvo"}
        shapes |= {f"{prefix}.mlp.{x}_proj.weight": (intermediate, hidden) for x in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, intermediate)
        shapes |= {f"{prefix}.{x}_layernorm.weight": (hidden,) for x in ("input", "post_attention")}
    tensors = {name: np.full(shape, number, np.float32) for number, (name, shape) in enumerate(shapes.items())}
    largest, total = max(x.nbytes for x in tensors.values()), sum(x.nbytes for x in tensors.values())
    assert total > 50e6
    safetensors.numpy.save_file(tensors, tmp_path / WEIGHTS)
    del tensors

    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    load_hf(tmp_path, mesh=mesh, dtype=dtype)  # traces and compiles, whose objects are not the question
    tracemalloc.start()
    try:
        load_hf(tmp_path, mesh=mesh, dtype=dtype)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"peak {peak / 1e6:.1f} MB, largest tensor {largest / 1e6:.1f} MB, total {total / 1e6:.1f} MB")
    assert largest / 2 < peak < 4 * largest < total / 5


# --- what is refused ---


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


YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
LAST = "model.layers.1.self_attn.q_proj.weight"  # of the second file
NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"  # of the second file, and of the first

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
    "float16": (retyped(np.float16), r"model holds .*float16: give the dtype"),
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
    "yarn": (
        config_with(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4} | YARN),
        r"config\.json: rope type 'yarn'",
    ),
    "yarn by type": (
        config_with(rope_parameters={"type": "yarn", "rope_theta": 1e4} | YARN),
        r"config\.json: rope type 'yarn'",
    ),
    "yarn in the old layout": (
        config_with(rope_parameters=ABSENT, rope_theta=1e4, rope_scaling={"rope_type": "yarn"} | YARN),
        r"config\.json: rope type 'yarn'",
    ),
    "yarn in the old layout by type": (
        config_with(rope_parameters=ABSENT, rope_theta=1e4, rope_scaling={"type": "yarn"} | YARN),
        r"config\.json: rope type 'yarn'",
    ),
    # As Qwen's model cards say to extend the context: transformers lets this key have its way.
    "yarn added to the new layout": (
        config_with(rope_scaling={"rope_type": "yarn"} | YARN),
        r"config\.json: .*rope_scaling",
    ),
    "linear": (
        config_with(rope_theta=1e4, rope_parameters=ABSENT, rope_scaling={"type": "linear", "factor": 2.0}),
        r"'linear'",
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
    "sliding layers": (
        config_with(layer_types=["full_attention", "sliding_attention"]),
        r"config\.json: layer types .*sliding_attention",
    ),
    "mixture of experts": (config_with(model_type="qwen3_moe", num_experts=8), r"config\.json: model_type 'qwen3_moe'"),
    "no family": (config_with(model_type=ABSENT), r"config\.json: model_type None"),
    "quantised": (config_with(quantization_config={"quant_method": "fp8"}), r"config\.json: quantised weights"),
    "gelu": (config_with(hidden_act="gelu"), r"config\.json: hidden_act 'gelu'"),
    "biases": (config_with(attention_bias=True), r"config\.json: attention_bias in a qwen3"),
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
