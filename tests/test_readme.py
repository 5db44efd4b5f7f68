"""What the README claims in code is run."""

import re
from pathlib import Path

import numpy as np
import pytest

from polyepo_jax.config import Config
from polyepo_jax.config_files import load
from polyepo_jax.sets import marginal_advantages

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_advantages_are_those_that_are_said():
    (block,) = (b for b in BLOCKS if "grpo_advantages(rewards)" in b)
    lines = block.strip().splitlines()
    scope = {}
    exec("\n".join(lines[:-2]), scope)
    sets, grpo = (np.asarray(eval(line.split("#")[0], scope)) for line in lines[-2:])
    assert sets[-1] == pytest.approx(0.0625)
    assert "+0.0625" in lines[-2]
    assert grpo[-1] == pytest.approx(-0.875)
    assert "-0.875" in lines[-1]


def test_the_example_config_works(tmp_path, monkeypatch):
    (block,) = (b for b in BLOCKS if "SoftPolychromic" in b)
    monkeypatch.chdir(ROOT)
    path = tmp_path / "my_config.py"
    path.write_text(block)
    config = load(path, Config)
    objective = config.algorithm.advantage.objective
    advantages = marginal_advantages(objective, np.array([1.0, 1, 0, 1, 0]), np.array([0, 1, 2, 0, -1]))
    assert np.all(np.isfinite(advantages))
    assert np.any(np.abs(advantages) > 1e-3)


def test_paths_that_are_named_exist():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"[\w./]+/[\w./]+\.(?:py|png)", text):
        assert (ROOT / path).exists(), path
