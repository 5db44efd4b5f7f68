"""Numbers of a step against hand counts, and files that survive interruption."""

import json

import numpy as np
import pytest

from polyepo_jax.runs.metric_writers import JsonLines, TensorBoard, WeightsAndBiases, read_lines
from polyepo_jax.runs.progress import Progress
from polyepo_jax.sets import has_signal
from polyepo_jax.training.metrics import completions_of, rollout_metrics
from polyepo_jax.types import Grades, Rollouts


def test_rollout_metrics_by_hand():
    rewards = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], np.float32)
    clusters = np.array([[3, 3, 5, -1], [7, 8, 8, 8], [2, 2, 2, 9], [1, 2, 3, 4]])
    valid = np.array([[True] * 4, [True, True, True, False], [True, True, True, False], [False] * 4])
    mask = np.zeros((4, 4, 3), bool)
    mask[:, :, :2] = True
    logprobs = np.where(mask, -0.5, 0)
    truncated = np.array([[False] * 4, [True, False, False, False], [False] * 4, [False] * 4])
    advantages = np.array([[0.1, 0.1, -0.1, 2e-6], [1e-7, 0, 0, 0], [0.2, -0.1, -0.1, 0], [0, 0, 0, 0]])
    rollouts = Rollouts(np.zeros((4, 4, 3), int), mask, logprobs, truncated)
    effective_two_to_one = np.exp(-(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)))
    assert rollout_metrics(completions_of(rollouts), Grades(rewards, clusters, valid), advantages) == pytest.approx(
        {
            "rewards/mean": 5 / 10,
            # Of 0, 1/2 and 1; the last group has no valid generation.
            **{"rewards/group_min": 0.0, "rewards/group_q25": 0.25, "rewards/group_median": 0.5},
            **{"rewards/group_q75": 0.75, "rewards/group_max": 1.0},
            "rewards/all_correct_frac": 1 / 4,
            "coverage": 2 / 4,
            "clusters/distinct": (2 + 2 + 1 + 0) / 4,
            "clusters/distinct_correct": (1 + 0 + 1 + 0) / 4,
            "clusters/effective": (2 * effective_two_to_one + 1 + 0) / 4,
            "clusters/degenerate_frac": 1 / 10,
            "advantages/nonzero_frac": 2 / 4,
            "advantages/positive_frac_correct": 3 / 5,
            "advantages/positive_frac_incorrect": 1 / 5,
            "completions/mean_length": 2.0,
            "completions/truncated_frac": 1 / 16,
            "completions/entropy": 0.5,
        }
    )


def test_json_lines_are_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path, keep_through=0)
    for step in range(1, 6):
        log.write(step, {"loss": step / 2, "undefined": float("nan"), "text": "a"})
    log.sync()
    log.close()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    again = JsonLines(path, keep_through=3)
    again.write(4, {"loss": float("inf")})
    again.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[:3] == [{"step": s, "loss": s / 2, "undefined": None, "text": "a"} for s in (1, 2, 3)]
    assert lines[3:] == [{"step": 4, "loss": None}]
    assert read_lines(tmp_path / "absent.jsonl") == []


def test_tensorboard_files_are_written(tmp_path):
    writer = TensorBoard(tmp_path, keep_through=0)
    writer.write(1, {"loss/policy": 1.0, "undefined": float("nan")})
    writer.close()
    (events,) = tmp_path.glob("events*")
    assert b"loss/policy" in events.read_bytes()
    assert b"undefined" not in events.read_bytes()


def test_progress_prints_plain_lines_where_there_is_no_terminal(capsys):
    progress = Progress(0, 40, {"rewards/mean": ("reward", ".2f")})
    for step in range(1, 41):
        progress.write(step, {"rewards/mean": step / 40})
    progress.say("a [line] of 3")
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21
    assert lines[19] == "step 40/40  reward 1.00"
    assert lines[20] == "a [line] of 3"


def test_wandb_gets_finite_numbers_and_a_stable_identity(monkeypatch, tmp_path):
    calls = []

    class Run:
        def log(self, metrics, step):
            calls.append((metrics, step))

        def finish(self):
            calls.append("finish")

    class Module:
        @staticmethod
        def init(**arguments):
            calls.append(arguments)
            return Run()

    monkeypatch.setitem(__import__("sys").modules, "wandb", Module)
    writer = WeightsAndBiases("project", tmp_path / "polynomial" / "grpo", {"seed": 0})
    writer.write(3, {"a": 1.0, "b": float("nan")})
    writer.close()
    other = WeightsAndBiases("project", tmp_path / "seed2" / "polynomial" / "grpo", {})
    other.close()
    assert calls[-2]["id"] != calls[0]["id"]
    assert calls[0]["name"] == calls[-2]["name"] == "polynomial/grpo"
    assert calls[0]["resume"] == "allow"
    assert calls[1:3] == [({"a": 1.0}, 3), "finish"]


def test_wandb_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'polyepo-jax\[wandb\]'"):
        WeightsAndBiases("project", tmp_path, {})


def test_metrics_of_the_host_do_not_wait_for_the_devices():
    # A question to JAX would queue behind the update that was just dispatched.
    assert type(has_signal(np.ones((2, 3)))) is np.ndarray
    np.testing.assert_array_equal(has_signal(np.array([[0, 1e-7], [0, -1e-6], [np.nan, 0]])), [False, True, True])
