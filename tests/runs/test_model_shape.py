"""A config that names its model once: shape and tokenizer are those of the directory it names."""

import dataclasses
import json
import shutil

import jax
import pytest

from polyepo_jax import evaluate, plan
from polyepo_jax.config import Config, InitConfig, LoRA, Math, ModelNumerics, Polynomial
from polyepo_jax.config.files import from_json, load, override, to_json
from polyepo_jax.errors import InputError
from polyepo_jax.model import init, save_adapters, save_hf, split
from polyepo_jax.runs.model_directory import read_shape
from polyepo_jax.runs.model_shape import resolve
from polyepo_jax.runs.run_directory import read_config
from polyepo_jax.train import main as train
from tests.tiny import MODEL, metrics_of, rl_config
from tests.tiny_hf import write_tokenizer

SHAPE = dataclasses.replace(MODEL, vocab_size=304, max_position_embeddings=160)
NUMERICS = ModelNumerics(dtype="bfloat16", remat="full")


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    write_tokenizer(directory / "tokenizer")
    params = jax.jit(init, static_argnums=0)(SHAPE, jax.random.key(0))
    save_hf(directory / "hf", SHAPE, params, companions=directory / "tokenizer")
    return directory / "hf"


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text("".join(f'{{"problem": "{a} + {a}?", "answer": {2 * a}}}\n' for a in range(8)))
    return str(path)


def config_of(problems, **changes) -> Config:
    defaults = {"task": Math(problems, num_validation=2), "model": ModelNumerics(), "max_prompt_length": 99}
    return rl_config(**(defaults | changes))


def test_the_shape_and_the_tokenizer_are_those_of_init_model_dir(hf, problems):
    config = resolve(config_of(problems, model=NUMERICS, init=InitConfig(model_dir=str(hf))))
    assert config.model == dataclasses.replace(SHAPE, dtype="bfloat16", remat="full")
    assert config.task.tokenizer_dir == str(hf)
    assert resolve(config) == config
    assert from_json(json.loads(json.dumps(to_json(config))), Config) == config


def test_what_a_config_states_stays(hf, problems):
    stated = dataclasses.replace(SHAPE, num_hidden_layers=3)
    task = Math(problems, tokenizer_dir="elsewhere")
    config = config_of(problems, task=task, model=stated, init=InitConfig(model_dir=str(hf)))
    assert resolve(config) == config


def test_without_init_the_shape_is_that_of_the_tokenizers_directory(hf, problems):
    config = resolve(config_of(problems, task=Math(problems, tokenizer_dir=str(hf))))
    assert config.model == SHAPE
    assert config.init == InitConfig()


def test_a_run_that_starts_from_a_run_takes_its_shape_and_tokenizer(hf, problems, tmp_path):
    first = resolve(config_of(problems, init=InitConfig(model_dir=str(hf))))
    (tmp_path / "config.json").write_text(json.dumps(to_json(first)))
    config = resolve(config_of(problems, model=NUMERICS, init=InitConfig(run_dir=str(tmp_path))))
    assert config.model == dataclasses.replace(SHAPE, dtype="bfloat16", remat="full")
    assert config.task == first.task


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "task.tokenizer_dir is not set, .*: set it, or init.model_dir"),
        ({"task": Polynomial()}, "model has no shape: set it to a ModelConfig, or init.model_dir"),
        ({"init": InitConfig(model_dir="/absent")}, "/absent"),
        ({"init": InitConfig(run_dir="/absent")}, "/absent is not a run directory"),
    ],
)
def test_a_config_that_names_no_model_is_refused(problems, changes, message):
    with pytest.raises(InputError, match=message):
        resolve(config_of(problems, **changes))


def test_a_run_that_has_begun_goes_on_when_what_it_started_from_is_gone(hf, problems, tmp_path):
    first = resolve(config_of(problems, init=InitConfig(model_dir=str(hf))))
    start = tmp_path / "start"
    start.mkdir()
    (start / "config.json").write_text(json.dumps(to_json(first)))
    config = config_of(problems, model=NUMERICS, init=InitConfig(run_dir=str(start)))
    begun = tmp_path / "begun"
    begun.mkdir()
    expected = resolve(config, begun)
    (begun / "config.json").write_text(json.dumps(to_json(expected)))
    shutil.rmtree(start)
    assert resolve(config, begun) == expected
    with pytest.raises(InputError, match="start is not a run directory"):
        resolve(config, tmp_path / "another")
    with pytest.raises(InputError, match="start is not a run directory"):
        resolve(config)


def test_lengths_are_held_against_the_positions_that_were_read(hf, problems):
    config = config_of(problems, init=InitConfig(model_dir=str(hf)), max_prompt_length=153)
    with pytest.raises(InputError, match=r"\(161 tokens\) exceed model.max_position_embeddings \(160\)"):
        resolve(config)


def test_numerics_are_overridden_and_a_shape_that_is_not_there_yet_is_not(hf, problems):
    config = config_of(problems, init=InitConfig(model_dir=str(hf)))
    assert override(config, ["--model.dtype", "bfloat16"], "train").model == ModelNumerics(dtype="bfloat16")
    with pytest.raises(InputError, match="hidden-size"):
        override(config, ["--model.hidden-size", "8"], "train")
    assert override(resolve(config), ["--model.hidden-size", "8"], "train").model.hidden_size == 8


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"dtype": "bfloat16"}, ModelNumerics(dtype="bfloat16")),
        ({k: v for k, v in to_json(SHAPE).items() if k != "class"}, SHAPE),
    ],
)
def test_a_model_in_json_need_not_name_its_class(value, expected):
    written = to_json(rl_config()) | {"model": value}
    assert from_json(written, Config).model == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"class": "polyepo_jax.sets:GRPO"}, "model: expected a ModelConfig or ModelNumerics, got a GRPO"),
        ({"hiden_size": 8}, "unknown key 'model.hiden_size': did you mean 'hidden_size'"),
        (to_json(NUMERICS) | {"hidden_size": 8}, "unknown key 'model.hidden_size'"),
        (7, "model: expected"),
    ],
)
def test_a_model_in_json_that_is_none_is_refused(value, message):
    with pytest.raises(InputError, match=message):
        from_json(to_json(rl_config()) | {"model": value}, Config)


CONFIG = """
from polyepo_jax.config import InitConfig, Math, ModelNumerics
from tests.tiny import rl_config

def get_config():
    return rl_config(
        task=Math({problems!r}, num_validation=2),
        model=ModelNumerics(),
        init=InitConfig(model_dir={hf!r}),
        max_prompt_length=99,
        max_steps=1,
    )
"""


def test_the_commands_read_the_shape_and_write_it_down(hf, problems, tmp_path, capsys):
    directory = tmp_path / "model"
    shutil.copytree(hf, directory)
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(problems=problems, hf=str(directory)))
    run = tmp_path / "run"
    train(["--config", str(config), "--run-dir", str(run)])
    assert read_config(run).model == SHAPE
    assert read_config(run).task.tokenizer_dir == str(directory)
    assert len(metrics_of(run)) == 1
    plan.main(["--config", str(config), "--topology", "cpu"])
    assert "fits" in capsys.readouterr().out

    # Another model than the run's is told from it; the run's own config needs no second look.
    saved = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(saved | {"rms_norm_eps": 1e-5}))
    with pytest.raises(InputError, match=r"model.rms_norm_eps: 1e-06 -> 1e-05"):
        train(["--config", str(config), "--run-dir", str(run)])
    assert load(run, Config).model == SHAPE


def test_evaluate_takes_the_shape_of_the_model_that_it_is_given(hf, problems, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        CONFIG.format(problems=problems, hf="/absent").replace("num_validation", f"test={problems!r}, num_validation")
    )
    evaluate.main(["--model", str(hf), "--config", str(config), "--out", str(tmp_path / "out"), "--num-samples", "2"])
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["benchmarks"]["math/sums"]["num_prompts"] == 8


def test_benchmarks_need_no_config(hf, problems, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    evaluate.main(
        [
            "--model",
            str(hf),
            "--benchmark",
            problems,
            f"MATH-500={problems}",
            "--num-samples",
            "2",
            "--max-completion-length",
            "5",
        ]
    )
    result = json.loads((tmp_path / "runs" / "evaluate" / "hf" / "eval.json").read_text())
    assert {name: found["num_prompts"] for name, found in result["benchmarks"].items()} == {
        "math/sums": 8,
        "math/math_500": 8,
    }
    assert result["num_samples"] == 2
    assert "the result is in runs/evaluate/hf/eval.json" in capsys.readouterr().out


def test_a_model_with_adapters_has_a_result_of_its_own(hf, problems, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = dataclasses.replace(read_shape(hf), lora=LoRA(2))
    adapters, _ = split(jax.jit(init, static_argnums=0)(model, jax.random.key(0)))
    save_adapters("tuned", model, adapters)
    sizes = ["--num-samples", "2", "--max-completion-length", "5"]
    evaluate.main(["--model", str(hf), "--adapter", "tuned", "--benchmark", problems, *sizes])
    said = capsys.readouterr().out
    assert "the result is in runs/evaluate/hf-tuned/eval.json" in said
    assert "with tuned, 2 samples" in " ".join(said.split())


def test_a_prompt_that_fills_all_positions_leaves_no_room_for_an_answer(hf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.jsonl").write_text(json.dumps({"problem": "1 + " * 200 + "1", "answer": "201"}))
    with pytest.raises(InputError, match=r"160 positions: none is left for an answer; expected a model of more"):
        evaluate.main(["--model", str(hf), "--benchmark", "long.jsonl"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "math50"], "no benchmark is called 'math50': did you mean math_500\\? there are gsm8k, "),
        (["--benchmark", "sums.jsonl", "--max-completion-length", "160"], "from 1 to the [0-9]+ .* left, got 160"),
        (["--benchmark", "sums.jsonl", "--max-completion-length", "0"], "from 1 to the [0-9]+ that are left, got 0"),
        (["--benchmark", "sums.jsonl", "--max-rows", "0"], "max_rows must be at least 1, got 0"),
        (["--benchmark", "sums.jsonl", "--config", "c.py"], "--benchmark takes the place of --config"),
        (["--benchmark", "sums.jsonl", "--split", "validation"], "has a test split only"),
        (["--benchmark", "absent.jsonl"], "absent.jsonl"),
        (["--dtype", "float32"], "--max-completion-length and --dtype go with --benchmark"),
        ([], "--model DIR goes with --benchmark NAME, or with --config FILE and --out DIR"),
    ],
)  # fmt: skip
def test_a_benchmark_that_cannot_be_run_is_refused_before_anything_is_written(
    hf, problems, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(problems, "sums.jsonl")
    with pytest.raises(InputError, match=message):
        evaluate.main(["--model", str(hf), *arguments])
    assert [path.name for path in tmp_path.iterdir()] == ["sums.jsonl"]
