"""Models in Hugging Face's format: files there and back, whole or not at all, placed on the devices."""

import dataclasses
import json
import shutil
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from polyepo_jax.model import logical_axes
from polyepo_jax.model.hf import load_hf, read_config, save_hf
from polyepo_jax.model.hf import tensors as hf_tensors
from polyepo_jax.sharding import MeshConfig, make_mesh, param_shardings
from tests.hf_directories import (
    ABSENT,
    FAMILIES,
    INDEX,
    WEIGHTS,
    as_of_transformers_4,
    assert_same_bits,
    copy_of,
    edit_json,
    golden,
    tree_of,
    values_of,
)
from tests.make_hf_golden import (
    GOLDEN,
)

# --- there and back ---


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


@pytest.mark.parametrize("before", ["nothing", "an empty directory"])
def test_refuses_to_write_numbers_that_the_dtype_cannot_hold(tmp_path, before):
    config, params, _ = golden("qwen3")
    huge = params | {"norm": {"scale": params["norm"]["scale"].at[0].set(3.4e38)}}
    if before != "nothing":
        (tmp_path / "out").mkdir()
    held = tree_of(tmp_path)
    with pytest.raises(ValueError, match=r"tensor model\.norm\.weight holds numbers too large for bfloat16"):
        save_hf(tmp_path / "out", config, huge, dtype="bfloat16")
    assert tree_of(tmp_path) == held


def test_refuses_one_file_beside_an_index_of_others(tmp_path):
    """transformers takes the one file, others the shards: nobody can know which weights are meant."""
    config, params, _ = golden("qwen3")
    save_hf(tmp_path / "out", config, params, max_file_bytes=8_000)
    shutil.copyfile(GOLDEN / "hf_qwen3" / "model.safetensors", tmp_path / "out" / "model.safetensors")
    with pytest.raises(ValueError, match=r"has both model\.safetensors and model\.safetensors\.index\.json"):
        load_hf(tmp_path / "out")


def test_refuses_one_file_among_those_of_an_index(tmp_path):
    """transformers takes that file alone, and makes up the tensors of the others."""
    config, params, _ = golden("qwen3")
    save_hf(tmp_path / "out", config, params, max_file_bytes=8_000)
    path = tmp_path / "out" / INDEX
    content = json.loads(path.read_text())
    first = content["weight_map"]["model.embed_tokens.weight"]
    (tmp_path / "out" / first).rename(tmp_path / "out" / WEIGHTS)
    weight_map = {name: WEIGHTS if file == first else file for name, file in content["weight_map"].items()}
    path.write_text(json.dumps(content | {"weight_map": weight_map}))
    with pytest.raises(ValueError, match=r"has both model\.safetensors and model\.safetensors\.index\.json"):
        load_hf(tmp_path / "out")


def test_an_index_of_one_file_alone(tmp_path):
    config, params, _ = golden("qwen3")
    save_hf(tmp_path / "out", config, params)
    weight_map = dict.fromkeys(values_of(tmp_path / "out"), WEIGHTS)
    (tmp_path / "out" / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same_bits(load_hf(tmp_path / "out")[1], params)
    (tmp_path / "out" / INDEX).write_text(json.dumps({"weight_map": weight_map | {"further": WEIGHTS}}))
    with pytest.raises(ValueError, match=r"puts tensor further in model\.safetensors, which does not hold it"):
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


@pytest.mark.parametrize(
    ("switches", "found"),
    [
        ({"qk_norm": True, "qkv_bias": True}, "qk_norm and qkv_bias alone"),
        ({"qk_norm": True, "o_bias": True}, "qk_norm and o_bias alone"),
        ({"qk_norm": False, "o_bias": True}, "o_bias alone"),
    ],
)
def test_refuses_a_model_of_no_family(tmp_path, switches, found):
    config, params, _ = golden("qwen3")
    with pytest.raises(ValueError, match=f"no Hugging Face family has {found}"):
        save_hf(tmp_path / "out", dataclasses.replace(config, **switches), params)
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
