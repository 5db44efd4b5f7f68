"""Rollouts that are sampled ahead: by which parameters, what a run that was interrupted goes on with, what a judge has
time for."""

import dataclasses
import json
import shutil
import signal
import threading

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from polyepo_jax.config import AlgorithmConfig, JudgeConfig, PolicyLoss
from polyepo_jax.config.meshes import mesh_of
from polyepo_jax.config.static_arguments import generation_spec, stream, update_spec
from polyepo_jax.errors import InputError
from polyepo_jax.grading import grader
from polyepo_jax.judges.judge import Clusters
from polyepo_jax.model import init
from polyepo_jax.runs import evaluating, session
from polyepo_jax.sampling import generate
from polyepo_jax.sets import Polychromic, SetAdvantage, group_advantages
from polyepo_jax.sharding import shard_rows
from polyepo_jax.train import train
from polyepo_jax.training import rollouts
from polyepo_jax.training.batch import flatten
from polyepo_jax.training.data import prompt_dataset
from polyepo_jax.training.update import init_state, state_shardings, train_step
from polyepo_jax.types import Grades
from tests.commands.test_train import assert_same_run, params_of, run
from tests.tiny import MODEL, EasyPolynomial, SignalsItself, metrics_of, rl_config, signal_itself


def stale_config(staleness, **changes):
    algorithm = AlgorithmConfig(SetAdvantage(Polychromic(2)), PolicyLoss(importance_cap=1.5), staleness=staleness)
    return rl_config(**({"algorithm": algorithm, "eval_interval_steps": 3} | changes))


@pytest.fixture(scope="module", params=[1, 3])
def whole(request, tmp_path_factory):
    """A run of so much staleness, with every checkpoint."""
    directory = tmp_path_factory.mktemp("stale") / "whole"
    run(stale_config(request.param, save_interval_steps=1, max_to_keep=9), directory)
    return request.param, directory


def rest_of(directory):
    """Moments and counters at the end of a run."""
    with ocp.StandardCheckpointer() as checkpointer:
        rest = checkpointer.restore((directory / "checkpoints" / "6" / "rest").absolute())
    assert int(rest["step"]) == 6
    assert len(jax.tree.leaves(rest)) > 2 * len(jax.tree.leaves(jax.eval_shape(lambda: init(MODEL, jax.random.key(0)))))
    return jax.device_get(rest)


def unshown(make):
    """A field that is no part of a config in a file."""
    return dataclasses.field(init=False, default_factory=make, hash=False, compare=False)


def batches_of(config):
    task = config.task
    problems = task.problems("train")
    return iter(prompt_dataset(problems, task.tokenizer, config.prompts_per_step, 6, config.seed))


def by_hand(config, staleness, num_steps):
    """The parameters before each step and after the last, and the mean reward of each: every step's rollouts from the
    parameters before the update of the step `staleness` earlier, all kept in a list."""
    mesh, spec, task = mesh_of(config), update_spec(config), config.task
    batches = batches_of(config)
    shardings = state_shardings(spec, mesh)
    params = jax.jit(init, static_argnums=0)(MODEL, stream(0, "init"))
    state = jax.device_put(init_state(spec, params), shardings)
    before, rewards = [], []
    for step in range(num_steps):
        before.append(jax.tree.map(lambda x: x.copy(), state.params))
        key = jax.random.fold_in(stream(config.seed, "rollouts"), step)
        prompts, problems = next(batches)
        params = before[max(step - staleness, 0)]
        sampled = generate(generation_spec(config), params, prompts, jax.random.fold_in(key, 0), mesh)
        lengths_PN = np.asarray(sampled.completion_mask_PNT).sum(axis=2)
        texts = [
            [task.tokenizer.decode(row[:length].tolist()) for row, length in zip(*group, strict=True)]
            for group in zip(np.asarray(sampled.tokens_PNT), lengths_PN, strict=True)
        ]
        right_PN = np.array([[len(text) % 2 == 0 for text in group] for group in texts])
        rewards_PN = np.where(sampled.truncated_PN, 0, right_PN).astype(np.float32)
        clusters_PN = np.array([[ord(text[0]) for text in group] for group in texts], np.int32)
        grades = Grades(rewards_PN, clusters_PN, np.ones(rewards_PN.shape, bool))
        ids_P = np.array([problem.id for problem in problems], np.int32)
        advantages_PN, _ = group_advantages(config.algorithm.advantage, jax.random.fold_in(key, 1), ids_P, grades)
        rows = shard_rows(mesh, flatten(False, shard_rows(mesh, prompts), sampled, advantages_PN))
        with jax.set_mesh(mesh):
            state, _ = train_step(spec, state, rows)
        rewards.append(float(np.mean(rewards_PN)))
    return [*before, state.params], rewards


def test_the_schedule_is_that_of_parameters_kept_in_a_list(tmp_path):
    config = stale_config(2, eval_interval_steps=0)
    run(config, tmp_path)
    params, rewards = by_hand(config, 2, 6)
    log = metrics_of(tmp_path)
    assert [line["rewards/mean"] for line in log] == rewards
    assert [line["policy/staleness"] for line in log] == [0, 1, 2, 2, 2, 2]
    chex.assert_trees_all_equal(params_of(tmp_path, config), jax.device_get(params[-1]))
    others, _ = by_hand(config, 1, 3)
    pairs = zip(*map(jax.tree.leaves, (others[3], params[3])), strict=True)
    assert any(np.any(np.asarray(x) != np.asarray(y)) for x, y in pairs)


def test_what_is_said_of_stale_rollouts(whole):
    staleness, directory = whole
    log = metrics_of(directory)
    assert [line["policy/staleness"] for line in log] == [min(step, staleness) for step in range(6)]
    sizes = [line["policy/effective_sample_size"] for line in log]
    assert sizes[0] == pytest.approx(1, abs=1e-5)  # of the policy that is trained
    assert all(0 < size < 1 for size in sizes[1:])
    assert all(line["loss/importance_capped_frac"] >= 0 for line in log)
    assert max(line["logprobs/sampler_gap"] for line in log[1:]) > 1e-3
    assert [("eval/pass_at_1" in line) for line in log] == [False, False, True] * 2


def test_a_checkpoint_holds_what_is_in_flight(whole):
    staleness, directory = whole
    for step in range(1, 7):
        manifest = json.loads((directory / "manifests" / f"{step}.json").read_text())
        num_ahead = min(staleness, 6 - step)  # behind the last step nothing is sampled
        shapes = {"tokens_PNT": "int32[4, 4, 8]", "completion_mask_PNT": "bool[4, 4, 8]"}
        shapes |= {"sampler_logprobs_PNT": "float32[4, 4, 8]", "truncated_PN": "bool[4, 4]"}
        expected = {f"['{i}']['{name}']": shape for i in range(num_ahead) for name, shape in shapes.items()}
        assert manifest.get("in_flight", {}) == expected


@pytest.mark.parametrize("killed_after", [1, *(pytest.param(i, marks=pytest.mark.slow) for i in (2, 3)), 4, 5])
def test_a_run_that_was_killed_goes_on_as_if_it_was_not(whole, tmp_path, killed_after):
    staleness, directory = whole
    config = stale_config(staleness, save_interval_steps=1, max_to_keep=9)
    shutil.copytree(directory, tmp_path / "again")
    for step in range(killed_after + 1, 7):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / str(step))
    run(config, tmp_path / "again")
    assert_same_run(directory, tmp_path / "again", config)
    chex.assert_trees_all_equal(rest_of(directory), rest_of(tmp_path / "again"))


# The clusterer's calls: in the first or second step, in a step or an evaluation, near the end.
@pytest.mark.parametrize("at", [pytest.param(10, marks=pytest.mark.slow), 14, 25])
def test_a_signal_saves_what_is_in_flight(whole, tmp_path, capfd, at):
    staleness, directory = whole
    task = SignalsItself(marker=str(tmp_path / "calls"), at=at)
    config = stale_config(staleness, task=task, save_interval_steps=100)
    for done in (False, True):
        assert train(config, tmp_path / "run", "again") is done
    assert "; go on with: again" in capfd.readouterr().err
    assert_same_run(directory, tmp_path / "run", config)


def test_a_signal_during_the_rollouts_saves_what_was_done_before(whole, tmp_path, monkeypatch, capsys):
    staleness, directory = whole
    num_rollouts = 0

    class Signalled(rollouts.Rollout):
        def __init__(self, *arguments):
            nonlocal num_rollouts
            num_rollouts += 1
            if num_rollouts == staleness + 3:  # those of the first step, of the second, and this one
                signal_itself(signal.SIGTERM)
            super().__init__(*arguments)

    monkeypatch.setattr(rollouts, "Rollout", Signalled)
    config = stale_config(staleness, save_interval_steps=100)
    run(config, tmp_path)
    assert "stopped at step 2 of 6 (the next one given up: responses were being sampled)" in capsys.readouterr().err
    assert len(metrics_of(tmp_path)) == 2
    run(config, tmp_path)
    assert num_rollouts == 6 + 1, "what was in flight is not sampled again"
    assert_same_run(directory, tmp_path, config)


@pytest.mark.slow
def test_a_run_that_is_prolonged_begins_afresh_and_one_that_is_cut_short_keeps_what_is_in_flight(whole, tmp_path):
    staleness, directory = whole
    config = stale_config(staleness, save_interval_steps=1, max_to_keep=9)
    shutil.copytree(directory, tmp_path / "longer")
    run(dataclasses.replace(config, max_steps=9), tmp_path / "longer")
    ages = [line["policy/staleness"] for line in metrics_of(tmp_path / "longer")]
    assert ages[6:] == [min(step, staleness) for step in range(3)]
    for longer in (4, 6):  # from a checkpoint with rollouts of steps that were not to come
        shutil.copytree(directory, tmp_path / f"to{longer}")
        for step in range(4, 7):
            shutil.rmtree(tmp_path / f"to{longer}" / "checkpoints" / str(step))
        run(dataclasses.replace(config, max_steps=4), tmp_path / f"to{longer}")
        run(dataclasses.replace(config, max_steps=longer), tmp_path / f"to{longer}")
        assert metrics_of(tmp_path / f"to{longer}")[:4] == metrics_of(directory)[:4]
        assert len(metrics_of(tmp_path / f"to{longer}")) == longer


def test_another_staleness_is_another_run(whole):
    staleness, directory = whole
    before = (directory / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=rf"another config: algorithm.staleness: {staleness} -> 2"):
        run(stale_config(2, save_interval_steps=1, max_to_keep=9), directory)
    assert (directory / "metrics.jsonl").read_bytes() == before


@dataclasses.dataclass(frozen=True)
class AnswersLate:
    """Judges a step's prompts once all of the step after it are handed over, and the last step's at once."""

    step_of: dict = unshown(dict)
    calls: list = unshown(list)
    called: threading.Condition = unshown(threading.Condition)
    concurrency = 24

    def cluster(self, problem, responses):
        with self.called:
            self.calls.append(problem.id)
            self.called.notify_all()
            due = min(4 * (self.step_of[problem.id] + 2), len(self.step_of))
            assert self.called.wait_for(lambda: len(self.calls) >= due, timeout=60), "nothing is sampled meanwhile"
        return [ord(response[0]) for response in responses]


def test_a_judge_may_take_until_the_next_rollouts_are_there(whole, tmp_path):
    """Were grades waited for before, no call would ever return."""
    staleness, directory = whole
    config = stale_config(staleness, judge=JudgeConfig(AnswersLate()))
    batches = batches_of(config)
    for step in range(config.max_steps):
        config.judge.clusterer.step_of.update((problem.id, step) for problem in next(batches).problems)
    run(config, tmp_path)
    log = metrics_of(tmp_path)
    assert all(line["judge/failure_frac"] == 0 for line in log)
    assert [line["clusters/distinct"] for line in log] == [line["clusters/distinct"] for line in metrics_of(directory)]


@dataclasses.dataclass(frozen=True)
class Together:
    """A judge that takes all groups of a step at once, when its grades are collected."""

    def cluster_batch(self, problems, responses_PN):
        return [Clusters(tuple(ord(response[0]) for response in responses)) for responses in responses_PN]

    def cluster(self, problem, responses):
        raise AssertionError("is given batches")


def test_a_judge_that_takes_a_step_at_once_works_too(whole, tmp_path):
    staleness, directory = whole
    run(stale_config(staleness, judge=JudgeConfig(Together()), eval_interval_steps=0), tmp_path)
    assert [line["loss/policy"] for line in metrics_of(tmp_path)] == [
        line["loss/policy"] for line in metrics_of(directory)
    ]


@dataclasses.dataclass(frozen=True)
class Waits(EasyPolynomial):
    """Verifies what is sampled for other steps than the first once it may."""

    may: threading.Event = unshown(threading.Event)
    first: list = unshown(list)

    def verify(self, problem, response):
        if problem in self.problems("train"):
            if problem.id not in self.first and len(self.first) < 4:
                self.first.append(problem.id)
            assert problem.id in self.first or self.may.wait(60)
        return super().verify(problem, response)


def test_an_evaluation_waits_until_the_task_has_graded_what_is_in_flight(tmp_path, monkeypatch):
    task, handed_over, num_groups, waits = Waits(), [], [], session.concurrent.futures.wait

    def submit(self, *arguments, original=grader.Grader.submit):
        handed_over.extend(groups := original(self, *arguments))
        return groups

    def wait(*arguments, **options):
        task.may.set()
        return waits(*arguments, **options)

    def sample(*arguments, original=evaluating.sample):
        num_groups.append(len(handed_over))
        assert all(call.done() for group in handed_over for call in group.by_task), "the task is still at work"
        return original(*arguments)

    monkeypatch.setattr(grader.Grader, "submit", submit)
    monkeypatch.setattr(session.concurrent.futures, "wait", wait)
    monkeypatch.setattr(evaluating, "sample", sample)
    run(stale_config(1, task=task, max_steps=2, eval_interval_steps=1, save_interval_steps=9), tmp_path)
    assert num_groups[0] == 2 * 4, "the evaluation was not beside a step in flight"
