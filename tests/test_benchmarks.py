"""The benchmarks run to their end, on a CPU, with what they say in the form that they promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.throughput.cases import CASES, Case, Model, lengths

ROOT = Path(__file__).resolve().parent.parent


def run(module: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_accelerator_s_script_on_a_cpu(tmp_path, shared_compilations):
    run("benchmarks.accelerator", "--rows", "32", "--json", str(tmp_path / "result.json"))
    results = json.loads((tmp_path / "result.json").read_text())
    assert results["kernels"]["kernel"] == "xla"
    assert results["kernels"]["forward"] < 0.02
    assert results["kernels"]["gradient"] < 0.02
    for name in ("decode tiny 32", "update tiny 32"):
        assert results[name]["tokens_per_s"] > 0, results[name]
        assert results[name]["planned_bytes"] > 0
    assert 0 < results["decode tiny 32"]["share_of_copy_bytes"]
    assert 0 < results["update tiny 32"]["share_of_matmul_flops"] < 1


@pytest.mark.slow
def test_throughput_of_one_case(tmp_path, shared_compilations):
    file = tmp_path / "result.json"
    run("benchmarks.throughput", "--cases", "rollout tiny", "--peers", "--json", str(file))
    [(name, contestants)] = json.loads(file.read_text())["results"].items()
    assert name == "rollout tiny"
    [(contestant, result)] = contestants.items()
    assert contestant == "polyepo_jax"
    assert result["tokens"] == 64 * 128
    assert result["row_steps_used"] == 1
    assert 0 < result["matmul_share"] < 1


def test_cases():
    assert len({case.name for case in CASES}) == len(CASES)
    mixed = Case("", "update", "tiny", prompts=500, completion_length=128, mixed=True)
    drawn = lengths(mixed)
    assert len(drawn) == mixed.rows
    assert 1 <= min(drawn) < max(drawn) == 128
    assert sum(drawn) / len(drawn) == pytest.approx(32, rel=0.05)


def test_work_by_hand():
    """A layer of 2 heads of 4 over 8, with one head of keys and values and an MLP of 16; 10 words."""
    model = Model(8, 1, 2, 1, 4, 16, 10)
    assert model.layer_weights == 8 * (2 * 2 + 2) * 4 + 3 * 8 * 16
    assert model.flops(3, 2, 5) == 3 * (2 * 576 + 2 * 2 * 2 * 4 * 5) + 2 * 2 * 8 * 10
