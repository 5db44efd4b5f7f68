"""What the README claims in code is run."""

import re
from pathlib import Path

import numpy as np
import pytest

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


def test_the_combined_objective_is_what_it_says():
    (block,) = (b for b in BLOCKS if "DistinctCorrect" in b)
    *lines, last = block.strip().splitlines()
    scope = {}
    exec("\n".join(lines), scope)
    objective = eval(last, scope).advantage.objective
    # Three of four right, in two ways: 0.7 * 3/4 + 0.3 * 2/4.
    assert float(objective(np.array([1.0, 1, 0, 1]), np.array([0, 0, 1, 2]))) == pytest.approx(0.675)


def test_paths_that_are_named_exist():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"[\w./]+/[\w./]+\.(?:py|png)", text):
        assert (ROOT / path).exists(), path
