"""Training runs against a real HTTP server that misbehaves: nothing is lost, made up or miscounted."""

import collections
import contextlib
import dataclasses
import itertools
import json
import signal
import threading

import chex
import jax
import numpy as np
import pytest

from polyepo_jax import train as train_module
from polyepo_jax.config.meshes import mesh_of
from polyepo_jax.errors import InputError, RunError
from polyepo_jax.grading import JudgeConfig, grader
from polyepo_jax.judges import HTTPJudge, Rubric, Transport, rubric
from polyepo_jax.runs.initial import load_params
from polyepo_jax.train import train
from tests.judges.server import FAULTS, JudgeServer, Share
from tests.tiny import metrics_of, rl_config, signal_itself

# Long enough for an honest reply on a busy machine.
QUICK = {"attempt_deadline_s": 3.0, "first_backoff_s": 0.001, "max_backoff_s": 0.01, "max_concurrency": 4}


def rule(response):
    return response[:1]


def config_of(server, max_steps=4, max_asks=8, judge=None, **transport):
    transport = Transport(**({"base_url": server.url} | QUICK | transport))
    clusterer = HTTPJudge("tiny", transport=transport, max_asks=max_asks)
    return rl_config(max_steps=max_steps, judge=judge or JudgeConfig(clusterer, max_failure_frac=1.0))


def params_of(directory, config):
    return jax.device_get(load_params(directory, config, mesh_of(config))[0])


def without_transport(directory):
    """The log without what depends on the network."""
    volatile = ("judge/transport/", "judge/attempts", "judge/cached", "judge/exposed_s", "judge/calls")
    return [{k: v for k, v in line.items() if not k.startswith(volatile)} for line in metrics_of(directory)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run whose judge never failed, and what it was asked."""
    directory = tmp_path_factory.mktemp("runs") / "undisturbed"
    with JudgeServer(rule) as server:
        train(config_of(server), directory, "again")
    return directory, [json.dumps(request) for request in server.requests]


@pytest.mark.slow
def test_faults_are_counted_as_injected_and_failed_groups_have_no_gradient(tmp_path, monkeypatch):
    weighed = []

    def flatten(mask_truncated, prompts, rollouts, advantages_PN):
        weighed.append(np.asarray(advantages_PN))
        return original(mask_truncated, prompts, rollouts, advantages_PN)

    original = train_module.flatten
    monkeypatch.setattr(train_module, "flatten", flatten)
    draws = []
    summarize = train_module.summarize
    monkeypatch.setattr(train_module, "summarize", lambda of_step: draws.extend(of_step) or summarize(of_step))
    # One reply of no use is the end of a call: so some calls fail.
    with JudgeServer(rule, Share(0.3, seed=2), drip_interval_s=1.0) as server:
        train(config_of(server, max_steps=8, max_asks=1), tmp_path / "run", "again")
    counted = collections.Counter()
    for line in metrics_of(tmp_path / "run"):
        for name, count in line.items():
            counted[name] += count if name.startswith("judge/") else 0
    expected = collections.Counter()
    for fault, count in server.injected.items():
        expected[f"judge/transport/{FAULTS[fault]}"] += count
    assert {n: c for n, c in counted.items() if n.startswith("judge/transport/") and c} == dict(expected)
    assert server.injected.total() > 6, "too few faults to tell"
    num_failed = sum(count for name, count in counted.items() if name.startswith("judge/failures/"))
    failed = [~valid_N.any() for d in draws for valid_N in d.grading.grades.valid_PN]
    assert 0 < sum(failed) == num_failed < len(failed) == 32
    advantages = np.concatenate(weighed)
    assert not np.any(advantages[np.array(failed)])
    assert np.any(advantages[~np.array(failed)])


def test_a_server_that_is_away_for_a_while_loses_no_grade_and_is_asked_nothing_twice(undisturbed, tmp_path):
    expected, asked = undisturbed
    with JudgeServer(rule) as server:

        def restart():
            assert server.arrived.wait(60)
            for _ in range(2):
                server.arrived.clear()
                assert server.arrived.wait(60)
                server.stop()
                server.start()

        thread = threading.Thread(target=restart)
        thread.start()
        config = config_of(server)
        train(config, tmp_path / "run", "again")
        thread.join()
    assert without_transport(tmp_path / "run") == without_transport(expected)
    chex.assert_trees_all_equal(params_of(tmp_path / "run", config), params_of(expected, config))
    lines = metrics_of(tmp_path / "run")
    num_failed = sum(v for line in lines for k, v in line.items() if k.startswith("judge/transport/"))
    assert sum(line["judge/attempts"] for line in lines) == len(asked) + num_failed
    assert {json.dumps(request) for request in server.requests} == set(asked)


def test_a_resumed_run_asks_only_what_is_new(undisturbed, tmp_path):
    expected, asked = undisturbed
    with JudgeServer(rule) as server:
        config = config_of(server)
        train(dataclasses.replace(config, max_steps=2, save_interval_steps=1), tmp_path / "run", "again")
        # The log of step 2 is lost with the process, its replies are not.
        (tmp_path / "run" / "checkpoints" / "2").rename(tmp_path / "lost")
        train(config, tmp_path / "run", "again")
    assert sorted(json.dumps(request) for request in server.requests) == sorted(asked)
    assert without_transport(tmp_path / "run") == without_transport(expected)
    assert metrics_of(tmp_path / "run")[1]["judge/cached"] == 4


def test_a_judge_that_is_down_for_good_stops_the_run_with_a_checkpoint(undisturbed, tmp_path, capsys):
    expected, _ = undisturbed
    with JudgeServer(rule, lambda number, _: 503 if number >= 9 else None) as server:
        config = config_of(server, retry_for_s=0.05)
        judge = dataclasses.replace(config.judge, max_failure_frac=0.5, failure_window=4)
        config = dataclasses.replace(config, judge=judge, save_interval_steps=100)
        with pytest.raises(RunError, match=r"stopped after step 2 of 4.*judge calls failed.*go on with: again"):
            train(config, tmp_path / "run", "again")
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1, 2]
    with JudgeServer(rule) as server:
        moved = dataclasses.replace(config.judge.clusterer, transport=Transport(base_url=server.url, **QUICK))
        config = dataclasses.replace(config, judge=dataclasses.replace(config.judge, clusterer=moved))
        train(config, tmp_path / "run", "again")
    assert "resumed with a changed judge.clusterer.transport.base_url" in capsys.readouterr().err
    assert without_transport(tmp_path / "run") == without_transport(expected)
    chex.assert_trees_all_equal(params_of(tmp_path / "run", config), params_of(expected, config))


def test_where_nothing_listens_the_error_says_what_to_start(tmp_path):
    with JudgeServer(rule) as server:
        pass
    config = config_of(server, retry_for_s=0.01, judge=None)
    config = dataclasses.replace(config, judge=dataclasses.replace(config.judge, on_failure="stop"))
    with pytest.raises(RunError, match=r"stopped after step 0 .*/v1/chat/completions: .*is the server running"):
        train(config, tmp_path / "run", "again")


def test_a_judge_that_cannot_be_asked_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with JudgeServer(rule) as server:
        with pytest.raises(InputError, match="JUDGE_KEY"):
            train(config_of(server, api_key_env="JUDGE_KEY"), tmp_path / "run", "again")
        for address in ("http://me:secret@localhost/v1", "http://localhost/v1?key=secret", "ftp://localhost"):
            with pytest.raises(InputError, match=r"transport\.base_url"):
                train(config_of(server, base_url=address), tmp_path / "run", "again")
        (tmp_path / "rubric.txt").write_text("Sort these: <<responses>>")
        config = config_of(server)
        clusterer = dataclasses.replace(config.judge.clusterer, rubric=Rubric(path=str(tmp_path / "rubric.txt")))
        with pytest.raises(InputError, match="<<problem>>"):
            train(dataclasses.replace(config, judge=JudgeConfig(clusterer)), tmp_path / "run", "again")
    assert not (tmp_path / "run").exists()
    assert not server.requests


def test_a_run_goes_on_by_the_rubric_it_began_with(tmp_path):
    path = tmp_path / "rubric.txt"
    path.write_text("Sort <<num_responses>> or <<degenerate_id>>: <<problem>> <<responses>>")
    with JudgeServer(rule) as server:
        config = config_of(server, max_steps=1)
        clusterer = dataclasses.replace(config.judge.clusterer, rubric=Rubric(path=str(path)))
        config = dataclasses.replace(config, judge=JudgeConfig(clusterer))
        train(config, tmp_path / "run", "again")
        path.write_text(path.read_text() + " Be brief.")
        rubric._read.cache_clear()  # as in a new process
        with pytest.raises(InputError, match="the judge's rubric is not what it was"):
            train(dataclasses.replace(config, max_steps=2), tmp_path / "run", "again")


@dataclasses.dataclass(frozen=True)
class HangsAsTheRunIsToEnd:
    """Answers eight calls, which are two steps; then the process is told to end, and no call returns."""

    @contextlib.contextmanager
    def open(self, where):
        calls, closed = itertools.count(), threading.Event()

        class Judge:
            def cluster(self, problem, responses):
                if next(calls) >= 8:
                    signal_itself(signal.SIGTERM)
                    assert closed.wait(60)
                return [ord(response[0]) for response in responses]

        yield Judge()
        closed.set()


def test_a_run_that_is_told_to_end_does_not_wait_for_a_judge_that_hangs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grader, "GRACE_S", 0.0)
    config = rl_config(max_steps=4, judge=JudgeConfig(HangsAsTheRunIsToEnd()), save_interval_steps=100)
    train(config, tmp_path / "run", "again")
    said = " ".join(capsys.readouterr().err.split())
    assert "stopped at step 2 of 4 (the next one given up: grading took more than 0 s after" in said
    assert "asked to end); go on with: again" in said
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1, 2]
