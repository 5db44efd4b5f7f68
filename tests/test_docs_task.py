"""The config file of docs/your_own_task.md is run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from polyepo_jax.config import Config
from polyepo_jax.config.files import from_json, load, override, to_json
from polyepo_jax.grading import Grader, join

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "your_own_task.md"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "my_config.py").write_text(block, "utf-8")
    return load(tmp_path / "my_config.py", Config)


def test_its_functions_grade_responses(config):
    train, validation = config.task.problems("train"), config.task.problems("validation")
    assert (len(train), len(validation)) == (900, 100)
    assert config.task.notes == ("parities: 1,000 rows",)
    (problem,) = (p for p in (*train, *validation) if p.id == 4)
    assert (problem.prompt, problem.reference) == ("Is 4 odd or even?", "even")
    (odd,) = (p for p in (*train, *validation) if p.id == 7)
    assert odd.reference == "odd"

    responses = ["its last digit is even", "half of it is whole: even", "it divides: odd or even", "by a digit, odd"]
    with Grader(config.task, config.judge) as grader:
        submitted = grader.submit([problem, odd], [responses, responses], np.zeros((2, 4), bool))
        grading = join(grader.collect(submitted))
    np.testing.assert_array_equal(grading.grades.rewards_PN, [[1, 1, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(grading.grades.clusters_PN, [[0, 2, 1, 0]] * 2)
    assert grading.grades.valid_PN.all()
    assert config.judge.clusterer(problem, ["even"]) == [-1]


def test_it_is_overridden_and_saved_like_any_config(config):
    changed = override(config, ["--task.num-validation", "7", "--max-steps", "9"], "train")
    assert len(changed.task.problems("validation")) == 7
    saved = json.loads(json.dumps(to_json(changed)))
    assert saved["task"]["verifier"]["function"].endswith("my_config.py:verify")
    assert from_json(saved, Config) == changed


def test_the_attributes_it_lists_are_those_that_are_looked_for():
    source = "".join((ROOT / "polyepo_jax" / "tasks" / name).read_text("utf-8") for name in ("math.py", "rows.py"))
    listed = re.findall(r"`(\w+)(?:\([^)]*\))?`", " ".join(re.findall(r"^\| (`.*?) \|", PAGE.read_text("utf-8"), re.M)))
    assert set(listed) == set(re.findall(r'(?:get|has)attr\((?:self\.)?verifier, "(\w+)"', source))


def test_it_fits_a_screen():
    assert len(PAGE.read_text("utf-8").splitlines()) <= 65
