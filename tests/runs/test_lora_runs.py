"""Runs that train low-rank adapters: interrupted, started from one another, evaluated, exported."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from polyepo_jax import convert, evaluate
from polyepo_jax.config import (
    AlgorithmConfig,
    EvaluationConfig,
    InitConfig,
    JudgeConfig,
    LoggingConfig,
    LoRA,
    MeshJudge,
    PolicyLoss,
    Rubric,
)
from polyepo_jax.config.files import override
from polyepo_jax.config.meshes import mesh_of
from polyepo_jax.config.static_arguments import stream
from polyepo_jax.errors import InputError
from polyepo_jax.model import init, load_hf, merged, save_hf, split, without_adapters
from polyepo_jax.runs.checkpoints.contents import arrays_of
from polyepo_jax.runs.initial import load_params, make_initial
from polyepo_jax.sets import Polychromic, SetAdvantage
from polyepo_jax.sft import sft
from polyepo_jax.train import train
from tests.hf_directories import assert_same_bits
from tests.model.test_lora import perturbed
from tests.tiny import MODEL, metrics_of, rl_config, sft_config
from tests.tiny_hf import write_tokenizer

LORA = LoRA(4, 8.0)
ADAPTED = dataclasses.replace(MODEL, lora=LORA)
ALGORITHM = AlgorithmConfig(SetAdvantage(Polychromic(set_size=2)), PolicyLoss(beta=0.1))


def write_model(directory, seed):
    params = perturbed(jax.jit(init, static_argnums=0)(MODEL, jax.random.key(seed)), 0.1)
    save_hf(directory, MODEL, params)
    return params


def config_of(directory, **changes):
    """Of a run from the model in `directory`, with a KL term, that evaluates at its end."""
    defaults = {"model": ADAPTED, "init": InitConfig(model_dir=str(directory)), "algorithm": ALGORITHM}
    defaults |= {"max_steps": 3, "save_interval_steps": 1, "eval_interval_steps": 3}
    return rl_config(**(defaults | changes))


def params_of(directory, config):
    return load_params(directory, config, mesh_of(config))[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model, and a run from it; neither is to be changed."""
    home = tmp_path_factory.mktemp("runs")
    write_model(home / "model", 3)
    config = config_of(home / "model", logging=LoggingConfig(tensorboard=False, kl_interval_steps=1))
    assert train(config, home / "run", "again")
    return config, home


@pytest.fixture
def again(whole, tmp_path):
    """A copy of the run, with a model of its own that it has started from."""
    config, home = whole
    shutil.copytree(home / "model", tmp_path / "model")
    config = dataclasses.replace(config, init=InitConfig(model_dir=str(tmp_path / "model")))
    assert train(dataclasses.replace(config, max_steps=2, eval_interval_steps=0), tmp_path / "run", "again")
    return config, tmp_path


def test_a_run_in_parts_is_the_run_as_a_whole(whole, again):
    (whole_config, home), (config, own) = whole, again
    assert train(config, own / "run", "again")
    assert metrics_of(own / "run") == metrics_of(home / "run")
    ours, theirs = params_of(own / "run", config), params_of(home / "run", whole_config)
    assert_same_bits(ours, theirs)
    assert_same_bits(split(theirs)[1], load_hf(home / "model")[1])
    assert all(np.abs(np.asarray(x)).max() > 0 for x in jax.tree.leaves(split(theirs)[0]))
    log = metrics_of(home / "run")
    assert max(line["logprobs/sampler_gap"] for line in log) < 1e-5
    assert log[0]["kl/start"] == log[0]["loss/kl"] == 0
    assert min(log[2]["kl/start"], log[2]["loss/kl"]) > 1e-3
    assert log[2]["eval/coverage"] > 0


@pytest.mark.slow
def test_new_adapters_are_no_reason_to_refuse_a_run_on_another_machine(whole, again, monkeypatch):
    """Random numbers may be rounded otherwise there; what the KL term compares with is the base all the same."""
    (_, home), (config, own) = whole, again
    monkeypatch.setattr("polyepo_jax.runs.initial.stream", lambda seed, name: stream(seed + 1, name))
    assert train(config, own / "run", "again")
    assert metrics_of(own / "run") == metrics_of(home / "run")


def test_a_checkpoint_holds_adapters_alone(whole):
    _, home = whole
    manifest = json.loads((home / "run" / "manifests" / "3.json").read_text())
    adapters, _ = split(jax.eval_shape(lambda: init(ADAPTED, jax.random.key(0))))
    assert manifest["params"] == arrays_of(adapters)
    moments = [shape for name, shape in manifest["rest"].items() if ".mu" in name or ".nu" in name]
    assert sorted(moments) == sorted(2 * list(manifest["params"].values()))


def test_another_model_than_the_run_started_from_is_refused(again, capsys):
    config, own = again
    shutil.rmtree(own / "model")
    for command in (
        lambda: train(config, own / "run", "again"),
        lambda: evaluate.main(["--run-dir", str(own / "run")]),
        lambda: convert.main(["hf-export", str(own / "run"), "--merged"]),
    ):
        with pytest.raises(InputError, match=r"adapters alone, and needs the model .*/model.*does not exist.*bring it"):
            command()
    write_model(own / "model", 4)
    for command in (
        lambda: train(config, own / "run", "again"),
        lambda: evaluate.main(["--run-dir", str(own / "run")]),
    ):
        with pytest.raises(InputError, match=r"fingerprint [0-9a-f]{16}, and that of .*/model has [0-9a-f]{16}: bring"):
            command()
    assert len(metrics_of(own / "run")) == 2


def test_a_run_goes_on_from_adapters_as_from_weights(whole, tmp_path):
    """The same adapters, trained further; or all of the model, with them in its weights."""
    config, home = whole
    params = params_of(home / "run", config)
    further = dataclasses.replace(config, init=InitConfig(run_dir=str(home / "run")), seed=5)
    assert_same_bits(make_initial(further, mesh_of(further)).params, params)
    every = dataclasses.replace(further, model=MODEL)
    initial = make_initial(every, mesh_of(every)).params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-7), initial, merged(ADAPTED, params)[1])
    other = dataclasses.replace(further, model=dataclasses.replace(ADAPTED, lora=LoRA(2)))
    with pytest.raises(InputError, match=r"it has lora LoRA\(rank=4.* not LoRA\(rank=2"):
        make_initial(other, mesh_of(other))


@pytest.mark.slow
def test_the_reference_of_a_run_from_adapters_is_where_it_started(whole, tmp_path):
    config, home = whole
    further = dataclasses.replace(
        config, init=InitConfig(run_dir=str(home / "run")), max_steps=2, eval_interval_steps=0
    )
    train(further, tmp_path / "whole", "again")
    train(dataclasses.replace(further, max_steps=1), tmp_path / "parts", "again")
    train(further, tmp_path / "parts", "again")
    log = metrics_of(tmp_path / "whole")
    assert metrics_of(tmp_path / "parts") == log
    assert log[0]["kl/start"] == log[0]["loss/kl"] == 0
    assert log[1]["kl/start"] > 1e-4
    assert_same_bits(params_of(tmp_path / "parts", further), params_of(tmp_path / "whole", further))


@pytest.mark.slow
def test_adapters_and_stale_rollouts_go_on_together(whole, tmp_path):
    config, _ = whole
    algorithm = dataclasses.replace(ALGORITHM, staleness=2)
    config = dataclasses.replace(config, algorithm=algorithm, max_steps=5, max_to_keep=5)
    train(config, tmp_path / "whole", "again")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for step in (3, 4, 5):  # killed after step 2
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / str(step))
    train(config, tmp_path / "parts", "again")
    log = metrics_of(tmp_path / "whole")
    assert metrics_of(tmp_path / "parts") == log
    assert_same_bits(params_of(tmp_path / "parts", config), params_of(tmp_path / "whole", config))
    assert [line["policy/staleness"] for line in log] == [0, 1, 2, 2, 2]
    assert log[4]["kl/start"] > 0


def test_adapters_are_exported_and_started_from(whole, tmp_path, capsys):
    config, home = whole
    params = params_of(home / "run", config)
    convert.main(["hf-export", str(home / "run"), "--out", str(tmp_path / "adapters")])
    assert f"adapters to the model that {home / 'run'} started from" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "adapters").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    modes = {path.stat().st_mode for path in (*(home / "model").iterdir(), *(tmp_path / "adapters").iterdir())}
    assert len(modes) == 1, "weights are as readable as the JSON beside them"
    place = InitConfig(model_dir=str(home / "model"), adapter_dir=str(tmp_path / "adapters"))
    started = dataclasses.replace(config, init=place)
    assert_same_bits(make_initial(started, mesh_of(started)).params, params)

    write_model(tmp_path / "other", 4)
    place = dataclasses.replace(place, model_dir=str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"fingerprint [0-9a-f]{16}, and that in init.model_dir .*other has [0-9a-f]"):
        make_initial(dataclasses.replace(config, init=place), mesh_of(config))
    narrow = dataclasses.replace(started, model=dataclasses.replace(ADAPTED, lora=LoRA(2, 8.0)))
    with pytest.raises(InputError, match=r"adapter_dir: .*adapter_config.json .* rank 4, not 2; set model.lora"):
        train(narrow, tmp_path / "run", "again")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_merged_weights_are_exported(whole, tmp_path, capsys):
    config, home = whole
    convert.main(["hf-export", str(home / "run"), "--out", str(tmp_path / "merged"), "--merged"])
    read, params = load_hf(tmp_path / "merged")
    assert read == without_adapters(config.model)
    assert_same_bits(params, merged(ADAPTED, params_of(home / "run", config))[1])
    with pytest.raises(InputError, match="--companions go with a whole model"):
        convert.main(["hf-export", str(home / "run"), "--companions", str(home)])


@pytest.mark.slow
def test_evaluation_of_adapters_is_that_of_merged_weights(whole, tmp_path, capsys):
    _, home = whole
    shutil.copytree(home / "run", tmp_path / "run")
    evaluate.main(["--run-dir", str(tmp_path / "run"), "--num-prompts", "4"])
    convert.main(["hf-export", str(home / "run"), "--out", str(tmp_path / "merged"), "--merged"])
    options = ["--config", str(home / "run" / "config.json"), "--out", str(tmp_path / "out"), "--num-prompts", "4"]
    evaluate.main(["--model", str(tmp_path / "merged"), *options])
    convert.main(["hf-export", str(home / "run"), "--out", str(tmp_path / "adapters")])
    options[3] = str(tmp_path / "out2")
    evaluate.main(["--model", str(home / "model"), "--adapter", str(tmp_path / "adapters"), *options])
    options[3] = str(tmp_path / "bare")
    evaluate.main(["--model", str(home / "model"), *options])
    names = "run", "out", "out2", "bare"
    ours, *others, bare = ((tmp_path / name / "eval_samples.jsonl").read_text() for name in names)
    assert others == [ours, ours]
    assert bare != ours
    assert len(ours.splitlines()) == 4 * 4


@pytest.mark.slow
def test_other_first_adapters_than_the_run_started_from_are_refused(whole, tmp_path, capsys):
    """They are what the KL term, and kl/start, compare with."""
    config, home = whole
    convert.main(["hf-export", str(home / "run"), "--out", str(tmp_path / "adapters")])
    place = InitConfig(model_dir=str(home / "model"), adapter_dir=str(tmp_path / "adapters"))
    config = dataclasses.replace(config, init=place, max_steps=2, eval_interval_steps=0)
    train(dataclasses.replace(config, max_steps=1), tmp_path / "run", "again")
    path = tmp_path / "adapters" / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\0\0\0\0")
    with pytest.raises(
        InputError, match=r"fingerprint [0-9a-f]{16}, and those of .*/adapters have [0-9a-f]{16}: bring"
    ):
        train(config, tmp_path / "run", "again")
    without_kl = dataclasses.replace(config, algorithm=dataclasses.replace(ALGORITHM, loss=PolicyLoss()))
    train(dataclasses.replace(without_kl, max_steps=1), tmp_path / "other", "again")
    shutil.rmtree(tmp_path / "adapters")
    measured = dataclasses.replace(without_kl, logging=LoggingConfig(tensorboard=False, kl_interval_steps=1))
    with pytest.raises(InputError, match=r"adapters are a directory with.*; or go on without, by --logging.kl-int"):
        train(measured, tmp_path / "other", "again")
    unmeasured = dataclasses.replace(without_kl, logging=LoggingConfig(tensorboard=False, kl_interval_steps=0))
    assert train(unmeasured, tmp_path / "other", "again")


def test_adapters_that_cannot_be_evaluated_are_refused(whole, tmp_path):
    _, home = whole
    model = ["--model", str(home / "model"), "--adapter", str(tmp_path)]
    options = [*model, "--config", str(home / "run" / "config.json"), "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"--adapter: .*adapter_config.json does not exist: adapters are a directory"):
        evaluate.main(options)
    with pytest.raises(InputError, match="--run-dir brings its own model"):
        evaluate.main(["--run-dir", str(home / "run"), "--adapter", str(tmp_path)])
    settings = {"peft_type": "LORA", "r": 99, "lora_alpha": 1, "target_modules": ["k_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"--adapter: model.lora.rank must be at most .* got 99 for k_proj"):
        evaluate.main(options)
    assert not (tmp_path / "out" / "eval.json").exists()


def test_a_rank_is_overridden_on_the_command_line():
    config = rl_config(model=ADAPTED, init=InitConfig(model_dir="there"))
    changed = override(config, ["--model.lora.rank", "8", "--model.lora.targets", "q_proj", "o_proj"], "train")
    assert changed.model.lora == LoRA(8, 8.0, ("q_proj", "o_proj"))
    with pytest.raises(InputError, match=r"model.lora.rank must be at most the smaller side .* got 9 for k_proj"):
        override(config, ["--model.lora.rank", "9"], "train")


def test_adapters_without_what_they_need_are_refused():
    with pytest.raises(ValueError, match=r"init.adapter_dir \(here\) has adapters to a model: set init.model_dir"):
        InitConfig(adapter_dir="here")
    with pytest.raises(ValueError, match=r"init.adapter_dir \(here\) needs model.lora"):
        rl_config(init=InitConfig(model_dir="there", adapter_dir="here"))
    with pytest.raises(ValueError, match=r"model.lora trains adapters to a model: set init.model_dir, or init.run_dir"):
        rl_config(model=ADAPTED)


@pytest.mark.slow
def test_a_supervised_run_in_bfloat16(tmp_path):
    """What is frozen is kept in bfloat16, also where all of it was trained in float32; adapters are not."""
    full = sft_config(max_steps=1, evaluation=EvaluationConfig(num_samples=2, num_prompts=2))
    sft(full, tmp_path / "full", "again")
    model = dataclasses.replace(ADAPTED, dtype="bfloat16")
    config = dataclasses.replace(full, model=model, init=InitConfig(run_dir=str(tmp_path / "full")), max_steps=3)
    sft(config, tmp_path / "adapted", "again")
    adapters, frozen = split(params_of(tmp_path / "adapted", config))
    assert {x.dtype.name for x in jax.tree.leaves(adapters)} == {"float32"}
    expected = jax.tree.map(lambda x: x.astype("bfloat16"), params_of(tmp_path / "full", full))
    assert_same_bits(frozen, expected)
    assert all(np.abs(np.asarray(x)).max() > 0 for x in jax.tree.leaves(adapters))
    export = [
        "hf-export",
        str(tmp_path / "adapted"),
        "--out",
        str(tmp_path / "merged"),
        "--merged",
        "--dtype",
        "float32",
    ]
    convert.main(export)
    whole = merged(model, params_of(tmp_path / "adapted", config), "float32")[1]
    wide = jax.tree.map(lambda x: x.astype("float32"), whole)
    assert_same_bits(load_hf(tmp_path / "merged")[1], wide)  # rounded once, not to bfloat16 before
    with pytest.raises(InputError, match="full is a run without adapters"):
        convert.main(["hf-export", str(tmp_path / "full"), "--merged"])


@pytest.mark.slow
def test_a_run_with_a_judge_on_the_mesh(whole, tmp_path):
    """Two models on the same devices, one of which has adapters."""
    config, _ = whole
    shape = dataclasses.replace(MODEL, vocab_size=320, max_position_embeddings=20_000)
    save_hf(tmp_path / "judge", shape, perturbed(jax.jit(init, static_argnums=0)(shape, jax.random.key(0))))
    write_tokenizer(tmp_path / "judge")
    (tmp_path / "rubric").write_text("<<problem>> <<num_responses>> <<degenerate_id>>\n<<responses>>")
    rubric = Rubric(str(tmp_path / "rubric"))
    judge = JudgeConfig(MeshJudge(str(tmp_path / "judge"), rubric=rubric, dtype="float32", max_prompt_length=1024))
    config = dataclasses.replace(config, judge=judge, max_steps=2, eval_interval_steps=0)
    assert train(config, tmp_path / "run", "again")
    log = metrics_of(tmp_path / "run")
    assert [line["judge/failure_frac"] for line in log] == [0, 0]
    assert min(line["loss/grad_norm"] for line in log) > 0
