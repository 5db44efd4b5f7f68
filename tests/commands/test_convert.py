"""Models in and out of Hugging Face's format: by the commands, and as the start of runs."""

import dataclasses
import importlib.util
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from polyepo_jax import convert, evaluate, sft
from polyepo_jax import train as train_command
from polyepo_jax.config import AlgorithmConfig, Config, InitConfig, SFTConfig
from polyepo_jax.config.files import from_json, load, to_json
from polyepo_jax.errors import InputError, run_command
from polyepo_jax.losses import PolicyLoss
from polyepo_jax.model import (
    LinearRopeScaling,
    Llama3RopeScaling,
    YarnRopeScaling,
    forward,
    init,
    load_hf,
    save_hf,
)
from polyepo_jax.model.tokenizer import HFTokenizer
from polyepo_jax.runs import model_directory
from polyepo_jax.runs.initial import load_params
from polyepo_jax.runs.run_directory import read_config, write_json
from polyepo_jax.sampling import GenerationSpec, Sampling
from polyepo_jax.sampling.generate import generate
from polyepo_jax.sets import Polychromic, SetAdvantage
from polyepo_jax.sharding import MeshConfig, make_mesh
from polyepo_jax.tasks import Math, Problem
from polyepo_jax.train import train
from polyepo_jax.training.data import to_prompts
from polyepo_jax.types import DEGENERATE
from tests import tiny
from tests.tiny import metrics_of, rl_config
from tests.tiny_hf import write_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "math"
COMMAND = "python -m polyepo_jax.train --config c.py"

MODEL = dataclasses.replace(tiny.MODEL, num_key_value_heads=2)  # heads that tensor = 2 divides
MESH = MeshConfig(data=-1, fsdp=2, tensor=2)
# A reference policy: the model that a run started from is read anew when it is resumed.
ALGORITHM = AlgorithmConfig(advantage=SetAdvantage(Polychromic(set_size=2)), loss=PolicyLoss(beta=0.1))


def config_from(model_dir: Path, max_steps: int) -> Config:
    """The config of all runs here, for they share compilations."""
    start = InitConfig(model_dir=str(model_dir))
    return rl_config(model=MODEL, mesh=MESH, init=start, algorithm=ALGORITHM, max_steps=max_steps)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MESH)


@pytest.fixture(scope="module")
def params():
    return jax.jit(init, static_argnums=0)(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def hf(tmp_path_factory, params):
    """A model in Hugging Face's format, with a tokenizer."""
    directory = tmp_path_factory.mktemp("models")
    write_tokenizer(directory / "tokenizer")
    save_hf(directory / "hf", MODEL, params, companions=directory / "tokenizer")
    return directory / "hf"


@pytest.fixture(scope="module")
def imported(hf):
    convert.main(["hf-import", str(hf), "--out", str(hf.with_name("imported"))])
    return hf.with_name("imported")


@pytest.fixture(scope="module")
def trained(hf):
    """A run of one step from the model."""
    train(config_from(hf, 1), hf.with_name("trained"), COMMAND)
    return hf.with_name("trained")


def assert_same_bits(one, other) -> None:
    ours, theirs = jax.tree.leaves_with_path(jax.device_get(one)), jax.tree.leaves_with_path(jax.device_get(other))
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, x), (_, y) in zip(ours, theirs, strict=True):
        assert (x.shape, x.dtype, x.tobytes()) == (y.shape, y.dtype, y.tobytes()), path


def tree_of(directory: Path) -> dict[str, bytes | None]:
    """All that lies below a directory, with the files' contents."""
    return {str(p.relative_to(directory)): p.read_bytes() if p.is_file() else None for p in directory.rglob("*")}


def hidden_in(directory: Path) -> list[str]:
    return [p.name for p in directory.iterdir() if p.name.startswith(".")]


# --- hf-import ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_imported_model_starts_as_the_hugging_face_one(hf, imported, mesh, dtype):
    model = dataclasses.replace(MODEL, param_dtype=dtype, remat="full")
    first, second = (model_directory.load(directory, model, mesh) for directory in (hf, imported))
    assert {x.dtype.name for x in jax.tree.leaves(first)} == {dtype}
    assert_same_bits(first, second)
    assert [x.sharding for x in jax.tree.leaves(first)] == [x.sharding for x in jax.tree.leaves(second)]
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(first))


def test_import_converts_where_it_is_told_to(hf, params, tmp_path, capsys):
    convert.main(["hf-import", str(hf), "--out", str(tmp_path / "out"), "--dtype", "bfloat16"])
    said = capsys.readouterr().out
    assert "1 layers, hidden size 16, bfloat16; start from it with --init.model-dir" in said
    config, read = model_directory.read(tmp_path / "out")
    assert config == dataclasses.replace(MODEL, dtype="bfloat16", param_dtype="bfloat16")
    assert_same_bits(read, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    # bfloat16 is a part of float32: loaded as that, the values are the same.
    wide = model_directory.read(tmp_path / "out", dtype="float32")[1]
    assert_same_bits(wide, jax.tree.map(lambda x: x.astype(jnp.float32), read))


def test_import_takes_the_tokenizer_along(hf, imported):
    ours, theirs = HFTokenizer(str(imported)), HFTokenizer(str(hf))
    assert ours.encode_prompt("What is 1 + 2?") == theirs.encode_prompt("What is 1 + 2?")
    assert (ours.stop_ids, ours.pad_id, ours.vocab_size) == (theirs.stop_ids, theirs.pad_id, theirs.vocab_size)


def test_an_interrupted_import_leaves_nothing_that_counts_and_hinders_nothing(hf, params, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    arguments = ["hf-import", str(hf), "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(model_directory, "copy_companions", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert.main(arguments)
    assert hidden_in(tmp_path) == [".out.unfinished"]
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()  # one that is there and empty will do
    convert.main(arguments)
    assert hidden_in(tmp_path) == []
    assert_same_bits(model_directory.read(tmp_path / "out")[1], params)


# --- hf-export ---


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_weights_that_are_not_finite(hf, tmp_path, bad):
    shutil.copytree(hf, tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].copy()
    tensors["model.norm.weight"][3] = bad
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"tensor model\.norm\.weight of .*: expected finite weights, got NaN"):
        convert.main(["hf-import", str(tmp_path / "hf"), "--out", str(tmp_path / "imported")])
    assert not (tmp_path / "imported").exists()


def test_refuses_an_import_and_a_checkpoint_that_are_not_finite(params):
    broken = params | {"norm": {"scale": params["norm"]["scale"].at[1].set(jnp.nan)}}
    model_directory.check_finite("it", params)
    with pytest.raises(InputError, match=r"it: expected finite weights, got NaN or infinity in \['norm'\]\['scale'\]"):
        model_directory.check_finite("it", broken)


def test_numbers_too_large_for_a_dtype_are_not_called_damage(imported, params, tmp_path):
    config, _ = model_directory.read(imported)
    scale = params["norm"]["scale"]
    for name, value in (("huge", 3.4e38), ("broken", jnp.inf)):
        model_directory.write(tmp_path / name, config, params | {"norm": {"scale": scale.at[1].set(value)}})
    assert model_directory.read(tmp_path / "huge")[0] == config
    with pytest.raises(
        InputError, match=r"huge holds numbers too large for bfloat16: take another dtype, such as float32"
    ):
        model_directory.read(tmp_path / "huge", dtype="bfloat16")
    for dtype in (None, "bfloat16"):
        with pytest.raises(InputError, match=r"broken: expected finite weights, got NaN or infinity in \['norm'\]"):
            model_directory.read(tmp_path / "broken", dtype=dtype)


def test_export_of_a_run_whose_tokenizer_is_no_hugging_face_one(trained, capsys):
    convert.main(["hf-export", str(trained)])
    said = capsys.readouterr().out
    assert "tokenizer and generation files without a tokenizer: the run's is no Hugging Face one" in said
    config, exported = load_hf(trained / "hf" / "1")
    assert config == MODEL
    run = read_config(trained)
    assert_same_bits(exported, load_params(trained, run, make_mesh(run.mesh))[0])
    assert sorted(p.name for p in (trained / "hf" / "1").iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(InputError, match=r"hf/1 exists and is not an empty directory: choose another"):
        convert.main(["hf-export", str(trained)])


def test_export_of_a_run_with_the_tokenizer_and_dtype_that_are_asked_for(trained, hf, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    arguments = ["--step", "1", "--dtype", "bfloat16", "--companions", str(hf)]
    convert.main(["hf-export", str(trained), "--out", str(out), *arguments])
    said = capsys.readouterr().out
    assert f"generation files with {hf}'s" in said
    assert ", bfloat16, " in said
    assert "float32" not in said
    assert (out / "tokenizer.json").read_bytes() == (hf / "tokenizer.json").read_bytes()
    assert load_hf(out)[0].param_dtype == "bfloat16"
    assert {x.dtype.name for x in safetensors.numpy.load_file(out / "model.safetensors").values()} == {"bfloat16"}


def test_there_and_back_is_the_same_model(hf, imported, tmp_path):
    convert.main(["hf-export", str(imported), "--out", str(tmp_path / "back")])
    assert tree_of(tmp_path / "back") == tree_of(hf)


# --- refused, with nothing written ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hf-import", "nowhere", "--out", "out"], "nowhere/config.json does not exist: a Hugging Face model is a"),
        (["hf-import", "{hf}/config.json", "--out", "out"], "config.json/config.json does not exist"),
        (["hf-import", "{trained}", "--out", "out"], "model_type None is not implemented"),
        (["hf-import", "{hf}"], "--out"),
        (["hf-import", "{hf}", "--out", "full"], "full exists and is not an empty directory: choose another"),
        (["hf-import", "{hf}", "--out", "full/file"], "full/file exists and is not an empty directory"),
        (["hf-import", "{hf}", "--out", "full/file/out"], "full/file is no directory that can be written to"),
        (["hf-import", "{hf}", "--out", "out", "--dtype", "int8"], "--dtype"),
        (["hf-export", "nowhere"], "nowhere is not a run directory: it has no config.json"),
        (["hf-export", "{hf}/config.json"], "config.json is not a run directory"),
        (["hf-export", "{trained}", "--out", "full"], "full exists and is not an empty directory"),
        (["hf-export", "{trained}", "--out", "out", "--step", "7"], "no checkpoint of step 7 (there are [1])"),
        (["hf-export", "{trained}", "--out", "out", "--companions", "nowhere"], "--companions nowhere is no directory"),
        (["hf-export", "{imported}"], "is an imported model, without steps: give --out and no --step"),
        (["hf-export", "{imported}", "--out", "out", "--step", "1"], "give --out and no --step"),
    ],
)
def test_bad_input_ends_with_one_line_and_status_2(
    hf, imported, trained, tmp_path, monkeypatch, capsys, arguments, message
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("something")
    before = tree_of(tmp_path), tree_of(hf.parent)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run_command(
            convert.main, [argument.format(hf=hf, imported=imported, trained=trained) for argument in arguments]
        )
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert (tree_of(tmp_path), tree_of(hf.parent)) == before


def test_export_asks_for_a_tokenizer_that_is_gone(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    config = dataclasses.replace(read_config(trained), task=Math("train.jsonl", tokenizer_dir=str(tmp_path / "gone")))
    write_json(tmp_path / "run" / "config.json", to_json(config))
    with pytest.raises(InputError, match=r"the run's tokenizer was in .*gone, which is gone: give --companions"):
        convert.main(["hf-export", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["hf", "imported"])
def test_another_model_is_refused_field_by_field(request, kind, mesh, tmp_path):
    source = request.getfixturevalue(kind)
    bare = tmp_path / "bare"  # without arrays: the shapes are compared before any is read
    shutil.copytree(source, bare, ignore=shutil.ignore_patterns("params", "*.safetensors"))
    other = dataclasses.replace(MODEL, intermediate_size=24, rope_theta=5.0, tie_word_embeddings=True)
    differing = (
        r"is of another model: it has intermediate_size 16, not 24; rope_theta 1000000.0, not 5.0; "
        r"tie_word_embeddings False, not True; set model.\* to match"
    )
    with pytest.raises(InputError, match=differing):
        model_directory.load(bare, other, mesh)
    config = rl_config(model=other, init=InitConfig(model_dir=str(source)))
    with pytest.raises(InputError, match=differing):
        train(config, tmp_path / "run", COMMAND)
    assert not (tmp_path / "run").exists()


def largest(directory: Path) -> Path:
    return max((p for p in (directory / "params").rglob("*") if p.is_file()), key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: largest(d).unlink(), r"params cannot be read \(file .* is missing\): import the model again"),
        (lambda d: os.truncate(largest(d), 9), r"\(file .* has 9 bytes instead of [0-9]+\): import the model again"),
        (lambda d: flip(largest(d)), r"\(the checksum of file .* differs\): import the model again"),
        (lambda d: shutil.rmtree(d / "params"), r"params cannot be read \(file .* is missing\)"),
        (lambda d: (d / "checksums.json").unlink(), r"params cannot be read \(.*checksums.json'\): import the model"),
        (lambda d: (d / "checksums.json").write_text("["), r"params cannot be read \(.*\): import the model again"),
        (lambda d: (d / "model.json").write_text("{"), r"model.json is not readable JSON"),
        (
            lambda d: (d / "model.json").write_text("[1]"),
            r"model.json: expected a JSON object, got list",
        ),
        (lambda d: (d / "model.json").write_text('{"vocab_size": "x"}'), r"model.json.vocab_size: expected int, got"),
    ],
)
def test_a_damaged_import_is_refused(imported, tmp_path, damage, message):
    source = tmp_path / "model"
    shutil.copytree(imported, source)
    damage(source)
    with pytest.raises(InputError, match=message):
        convert.main(["hf-export", str(source), "--out", str(tmp_path / "out")])
    with pytest.raises(InputError, match=message):
        train(rl_config(model=MODEL, init=InitConfig(model_dir=str(source))), tmp_path / "run", COMMAND)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_tokenizer_with_more_ids_than_the_embedding_is_refused(hf, tmp_path):
    (tmp_path / "problems.jsonl").write_text('{"problem": "1 + 1?", "answer": 2}\n' * 4)
    task = Math(str(tmp_path / "problems.jsonl"), tokenizer_dir=str(hf))
    config = rl_config(task=task, model=MODEL, init=InitConfig(model_dir=str(hf)), max_prompt_length=99)
    with pytest.raises(InputError, match=r"largest id is 299, .* model.vocab_size = 16 rows: this is another model's"):
        train(config, tmp_path / "run", COMMAND)
    assert [p.name for p in tmp_path.iterdir()] == ["problems.jsonl"]


# --- runs that start from a model ---


def test_a_run_in_parts_on_a_mesh_is_the_undisturbed_one_and_keeps_its_reference(hf, imported, tmp_path):
    whole, parts, moved = tmp_path / "whole", tmp_path / "parts", tmp_path / "moved"
    shutil.copytree(imported, moved)
    train(config_from(hf, 4), whole, COMMAND)
    train(config_from(moved, 2), parts, COMMAND)
    shutil.move(moved, tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"moved.config.json does not exist"):
        train(config_from(moved, 4), parts, COMMAND)
    shutil.move(tmp_path / "elsewhere", moved)
    train(config_from(moved, 4), parts, COMMAND)
    lines = metrics_of(whole)
    assert lines == metrics_of(parts)
    kl = [line["loss/kl"] for line in lines]
    assert abs(kl[0]) < 1e-6 < kl[1] < kl[3]  # the reference is the model, and stays it
    assert_same_bits(*(load_params(d, config_from(hf, 4), make_mesh(MESH))[0] for d in (whole, parts)))


# --- the tiny chain of configs/math ---


def test_the_demonstrations_of_the_tiny_task_are_what_it_grades():
    task = load(CONFIGS / "qwen3_tiny_warm_start.py", SFTConfig).task
    problem = Problem(0, "What is 17 + 25? End with \\boxed{}.", "42")
    rng = np.random.default_rng(0)
    texts = [task.demonstrate(problem, rng) for _ in range(400)]
    assert len([text for text in texts if task.verify(problem, text).reward]) == pytest.approx(240, abs=30)
    clusters = task.cluster(problem, texts)
    assert set(clusters) == {0, 1, 2, 3}
    assert len({(text.partition("=")[0], cluster) for text, cluster in zip(texts, clusters, strict=True)}) == 4
    assert task.cluster(problem, ["42", "so \\boxed{42}"]) == [DEGENERATE, 4]


@pytest.mark.parametrize("name", ["qwen3_tiny", "qwen3_tiny_warm_start"])
def test_a_config_whose_task_is_of_a_config_file_survives_json(name):
    config = load(CONFIGS / f"{name}.py", Config if name == "qwen3_tiny" else SFTConfig)
    written = json.loads(json.dumps(to_json(config)))
    assert written["task"]["class"] == f"{CONFIGS / 'qwen3_tiny_warm_start.py'}:TinyMath"
    assert from_json(written, type(config)) == config


def make_tiny():
    """The script's main, which writes below the working directory."""
    spec = importlib.util.spec_from_file_location("make_tiny", CONFIGS / "make_tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.slow
def test_the_tiny_chain_end_to_end(tmp_path, monkeypatch):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    make = make_tiny()
    make([])
    made = tree_of(tmp_path)
    make([])  # the second time there is nothing to do
    assert tree_of(tmp_path) == made
    few = ["--prompts-per-step", "16", "--logging.tensorboard", "False"]
    sft.main(["--config", str(CONFIGS / "qwen3_tiny_warm_start.py"), "--max-steps", "12", *few])
    few += ["--algorithm.mini-batch-size", "8", "--eval-interval-steps", "0"]
    train_command.main(["--config", str(CONFIGS / "qwen3_tiny.py"), "--max-steps", "2", *few])
    run = Path("runs/math/qwen3_tiny")
    evaluate.main(["--run-dir", str(run), "--num-samples", "2", "--num-prompts", "8"])
    assert json.loads((run / "eval.json").read_text())["benchmarks"]["math/tiny_test"]["num_prompts"] == 8
    convert.main(["hf-export", str(run)])

    config, params = load_hf(run / "hf" / "2")
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "hf" / "2", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "hf" / "2")
    task = read_config(run).task
    problems = task.problems("test")[:4]
    prompts = to_prompts(problems, task.tokenizer, 24)
    for problem, row, mask in zip(problems, prompts.tokens_PT, prompts.mask_PT, strict=True):
        turns = [{"role": "user", "content": problem.prompt}]
        theirs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert theirs == row[mask].tolist()
    ids, mask = torch.tensor(np.asarray(prompts.tokens_PT)).long(), torch.tensor(np.asarray(prompts.mask_PT))
    with torch.no_grad():
        expected = model(ids[:, -18:], attention_mask=torch.ones_like(ids[:, -18:])).logits.numpy()
        generated = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=20)
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(forward, static_argnums=0)(config, params, jnp.asarray(prompts.tokens_PT[:, -18:]))[0]
        spec = GenerationSpec(config, 1, 20, task.tokenizer.stop_ids, task.tokenizer.pad_id, Sampling(temperature=0.0))
        ours = generate(spec, params, prompts, jax.random.key(0))
    np.testing.assert_allclose(np.asarray(logits), expected, atol=1e-4)
    tokens = np.where(ours.completion_mask_PNT, ours.tokens_PNT, task.tokenizer.pad_id)[:, 0]
    theirs = generated.numpy()[:, ids.shape[1] :]
    np.testing.assert_array_equal(tokens[:, : theirs.shape[1]], theirs)

    Path("runs/math/tiny_test.jsonl").write_text("mine\n")
    before = tree_of(tmp_path)
    with pytest.raises(InputError, match=r"tiny_test.jsonl exists and holds something else"):
        make([])
    assert tree_of(tmp_path) == before


@pytest.mark.parametrize("key", ["class", "function"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_model_that_was_fetched_runs_nothing(imported, tmp_path, key, nested):
    directory = tmp_path / "fetched"
    shutil.copytree(imported, directory)
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass X: pass\n")
    value = json.loads((directory / "model.json").read_text())
    names = {key: f"{directory / 'evil.py'}:X"}
    value = value | {"rope_scaling": names} if nested else value | names
    (directory / "model.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="names a class or function to run, which no import does"):
        model_directory.read(directory)
    assert not (tmp_path / "canary").exists()


SCALINGS = (Llama3RopeScaling(8.0, 1.0, 4.0, 64), YarnRopeScaling(4.0, 64, mscale=2.0), LinearRopeScaling(4.0))


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling.rope_type)
def test_an_import_keeps_rope_scaling(imported, params, tmp_path, scaling):
    config, _ = model_directory.read(imported)
    scaled = dataclasses.replace(config, rope_scaling=scaling)
    model_directory.write(tmp_path / "scaled", scaled, params)
    assert model_directory.read(tmp_path / "scaled")[0] == scaled


def test_an_import_of_before_names_no_rope_type(imported, params, tmp_path):
    config, _ = model_directory.read(imported)
    scaled = dataclasses.replace(config, rope_scaling=SCALINGS[0])
    model_directory.write(tmp_path / "scaled", scaled, params)
    path = tmp_path / "scaled" / "model.json"
    value = json.loads(path.read_text())
    assert value["rope_scaling"].pop("rope_type") == "llama3"
    path.write_text(json.dumps(value))
    assert model_directory.read(tmp_path / "scaled")[0] == scaled
    for wrong in ("dynamic", ["llama3"]):
        path.write_text(json.dumps(value | {"rope_scaling": {"rope_type": wrong, "factor": 2.0}}))
        with pytest.raises(InputError, match=r"rope_scaling is .*, expected linear, llama3, yarn"):
            model_directory.read(tmp_path / "scaled")


def test_an_import_keeps_the_end_tokens_of_config_json(hf, imported):
    assert (imported / "config.json").read_bytes() == (hf / "config.json").read_bytes()
