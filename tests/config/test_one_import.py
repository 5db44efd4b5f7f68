"""One import for a config; and classes that a config.json names by modules they have left."""

import ast
import dataclasses
import json
from pathlib import Path

import pytest

import polyepo_jax.config
from polyepo_jax import judges, sets, tasks
from polyepo_jax.config.files import from_json, load, to_json
from polyepo_jax.config.sections import Config
from tests.tiny import rl_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.py"))


@pytest.mark.parametrize("path", [path for path in CONFIGS if not path.name.startswith("make_")], ids=lambda p: p.stem)
def test_a_config_needs_one_import_of_ours(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    ours = {node.module for node in imports if isinstance(node, ast.ImportFrom) and node.module}
    # What the task of a config's own is written with is no part of a config.
    ours -= {"polyepo_jax.rewards.answers"}
    assert {module for module in ours if module.startswith("polyepo_jax")} == {"polyepo_jax.config"}


@pytest.mark.parametrize("home", [sets, judges, tasks], ids=lambda home: home.__name__)
def test_what_a_config_names_is_offered(home):
    """All objectives and advantages, judges and tasks: each dataclass that these folders make public."""
    public = [name for name, thing in vars(home).items() if isinstance(thing, type) and dataclasses.is_dataclass(thing)]
    answers_of_judges = {"Clusters", "Surroundings"}
    missing = [name for name in public if not hasattr(polyepo_jax.config, name) and name not in answers_of_judges]
    assert not missing


def test_a_config_json_of_an_older_version_is_read(tmp_path):
    config = rl_config()
    text = json.dumps(to_json(config))
    for now, then in {
        "polyepo_jax.config.sections": "polyepo_jax.config",
        "polyepo_jax.training.update": "polyepo_jax.update",
        "polyepo_jax.grading.judge_config": "polyepo_jax.grading",
        "polyepo_jax.model.tokenizer": "polyepo_jax.tokenizer",
    }.items():
        text = text.replace(f'"{now}:', f'"{then}:')
    assert '"polyepo_jax.update:OptimizerConfig"' in text
    (tmp_path / "config.json").write_text(text)
    assert load(tmp_path / "config.json", Config) == config
    assert to_json(from_json(json.loads(text), Config)) == to_json(config)
