"""Two steps of a tiny run against numbers written down once.

The file fixes what the whole pipeline computes: initialisation, sampling, grades, advantages, loss, update. It was
made by `python -m tests.test_golden` on a CPU. Make it anew only in a change that means to alter these numbers (an
objective's mathematics, random streams, initialisation), and say in the change why they had to.
"""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from polyepo_jax.sharding import MeshConfig
from polyepo_jax.train import train
from tests.tiny import metrics_of, rl_config

GOLDEN = Path(__file__).parent / "golden" / "two_steps.json"


def two_steps(directory: Path) -> list[dict]:
    # All devices on one axis that cuts nothing but rows: the numbers are those of one device up to rounding.
    train(dataclasses.replace(rl_config(max_steps=2), mesh=MeshConfig()), directory, "")
    return metrics_of(directory)


def test_two_steps_are_what_they_were(tmp_path):
    expected, actual = json.loads(GOLDEN.read_text()), two_steps(tmp_path / "run")
    for step, (now, before) in enumerate(zip(actual, expected, strict=True), 1):
        for metrics in (now, before):
            metrics.pop("logprobs/sampler_gap")  # rounding itself
        assert now == pytest.approx(before, rel=1e-3, abs=1e-6), (
            f"step {step} differs from {GOLDEN.name}. If the change means to alter these numbers, run "
            "`python -m tests.test_golden` and say why in the change; otherwise it has a bug."
        )


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(two_steps(Path(scratch) / "run"), indent=1) + "\n")
    sys.exit(0)
