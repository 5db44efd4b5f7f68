"""Whole runs: resumed, stopped, broken and refused. Runs of the same config are compared bit for bit."""

import dataclasses
import json
import re
import shutil
import signal
import threading
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyepo_jax import evaluate, report
from polyepo_jax.config import AlgorithmConfig, EvaluationConfig, InitConfig, LoggingConfig, SamplingConfig
from polyepo_jax.config.files import to_json
from polyepo_jax.config.meshes import mesh_of
from polyepo_jax.config.static_arguments import stream, update_spec
from polyepo_jax.errors import InputError, RunError
from polyepo_jax.grading import Grader, JudgeConfig
from polyepo_jax.losses import PolicyLoss
from polyepo_jax.model import init
from polyepo_jax.pods import object_storage
from polyepo_jax.runs import evaluating, session
from polyepo_jax.runs.initial import load_params
from polyepo_jax.runs.preparation import prepare
from polyepo_jax.runs.run_directory import write_json
from polyepo_jax.sets import GRPO, MaxRL, Polychromic, SetAdvantage
from polyepo_jax.sft import sft
from polyepo_jax.sharding import MeshConfig, make_mesh
from polyepo_jax.train import train
from polyepo_jax.training import rollouts
from polyepo_jax.training.batch import flatten
from polyepo_jax.training.update import OptimizerConfig, init_state, pass_step, state_shardings
from polyepo_jax.types import Prompts, Rollouts
from tests.tiny import MODEL, EasyPolynomial, SignalsItself, metrics_of, rl_config, sft_config, signal_itself

COMMAND = "python -m polyepo_jax.train --config c.py"


EVERY_STEP = {
    *("rewards/mean", "coverage", "clusters/distinct", "clusters/distinct_correct", "clusters/degenerate_frac"),
    *("advantages/nonzero_frac", "advantages/positive_frac_incorrect", "loss/policy", "loss/clip_frac"),
    *("loss/grad_norm", "logprobs/sampler_gap", "completions/mean_length", "completions/truncated_frac"),
    *("optimizer/learning_rate", "judge/failure_frac", "time/step_s"),
    *("time/rollout_s", "time/grade_s", "time/update_s"),
    *("time/rollout_update_frac", "throughput/rollout_tokens_per_s", "throughput/train_tokens_per_s"),
}


def run(config, directory, **options):
    train(config, directory, COMMAND, **options)


def params_of(directory, config):
    return jax.device_get(load_params(directory, config, mesh_of(config))[0])


def assert_same_run(first, second, config):
    assert metrics_of(first) == metrics_of(second)
    assert (first / "samples.jsonl").read_text() == (second / "samples.jsonl").read_text()
    chex.assert_trees_all_equal(params_of(first, config), params_of(second, config))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An undisturbed run."""
    directory = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(rl_config(eval_interval_steps=3), directory)
    return directory


def test_a_run_writes_what_the_readme_says(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line.keys() >= EVERY_STEP for line in lines)
    assert [("eval/pass_at_1" in line) for line in lines] == [False, False, True] * 2
    assert all(line["logprobs/sampler_gap"] < 1e-5 for line in lines)
    assert any(line["loss/grad_norm"] > 0 for line in lines)
    assert sorted(p.name for p in finished.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.json",
        "manifests",
        "metrics.jsonl",
        "samples.jsonl",
    ]
    assert sorted(p.name for p in (finished / "checkpoints").iterdir() if p.name.isdigit()) == ["4", "6"]


def test_the_kept_generations_are_those_of_the_metrics(finished):
    samples = [json.loads(line) for line in (finished / "samples.jsonl").read_text().splitlines()]
    for line in metrics_of(finished):
        rows = [row for row in samples if row["step"] == line["step"]]  # of all four prompts
        assert [row["sample"] for row in rows] == [0, 1, 2, 3] * 4
        correct, lengths = [row["reward"] for row in rows], [row["length"] for row in rows]
        assert (np.mean(correct), np.mean(lengths)) == (line["rewards/mean"], line["completions/mean_length"])
        assert np.mean([row["truncated"] for row in rows]) == line["completions/truncated_frac"]


def test_training_changes_the_policy(finished):
    config = rl_config(eval_interval_steps=3)
    before = jax.device_get(init(MODEL, stream(0, "init")))
    after = params_of(finished, config)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
    assert all(change > 0 for change in jax.tree.leaves(moved))


def test_a_finished_run_has_nothing_to_do(finished, capsys):
    before = {p: p.read_bytes() for p in finished.glob("*.jsonl")}
    run(rl_config(eval_interval_steps=3), finished)
    assert "nothing to do" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in finished.glob("*.jsonl")} == before


def test_a_run_in_two_parts_with_other_intervals_is_the_same_run(finished, tmp_path, capsys):
    config = rl_config(eval_interval_steps=3)
    directory = tmp_path / "parts"
    run(dataclasses.replace(config, max_steps=3, save_interval_steps=1), directory)
    run(dataclasses.replace(config, save_interval_steps=5), directory)
    said = capsys.readouterr().err
    assert "resumed with a changed max_steps: 3 -> 6" in said
    assert "going on from step 3 of 6" in said
    assert_same_run(finished, directory, config)


@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 10), (signal.SIGINT, 10), (signal.SIGTERM, 14)])
def test_a_signal_saves_and_says_how_to_go_on(finished, tmp_path, capfd, monkeypatch, number, at):
    # The tenth call is in step 3, the fourteenth in the evaluation after it, which is done with its only wave: were it
    # still handing over what it sampled, it would be given up.
    collects = threading.Semaphore(0)

    def collect(self, submitted, original=Grader.collect):
        collects.release()
        return original(self, submitted)

    def interrupt(self, original=SignalsItself.interrupt):
        assert all(collects.acquire(timeout=60) for _ in range(-(-at // 4)))
        original(self)

    monkeypatch.setattr(Grader, "collect", collect)
    monkeypatch.setattr(SignalsItself, "interrupt", interrupt)
    task = SignalsItself(marker=str(tmp_path / "calls"), number=number, at=at)
    config = rl_config(task=task, save_interval_steps=100, eval_interval_steps=3)
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    run(config, tmp_path / "stopped")
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    said = capfd.readouterr().err
    assert f"{signal.Signals(number).name}: saving, then ending" in said
    evaluated = at == 14
    assert f"stopped at step 3 of 6{'' if evaluated else ' (its evaluation not done)'}; go on with: {COMMAND}" in said
    assert len(metrics_of(tmp_path / "stopped")) == 2 + evaluated
    run(config, tmp_path / "stopped")
    assert_same_run(finished, tmp_path / "stopped", config)


def test_a_signal_during_the_rollouts_saves_what_was_done_before(finished, tmp_path, monkeypatch, capsys):
    num_rollouts = 0

    class Signalled(rollouts.Rollout):
        def __init__(self, *arguments):
            nonlocal num_rollouts
            num_rollouts += 1
            if num_rollouts in (1, 4):
                signal_itself(signal.SIGTERM)
            super().__init__(*arguments)

    monkeypatch.setattr(rollouts, "Rollout", Signalled)
    config = rl_config(save_interval_steps=100, eval_interval_steps=3)
    for step in (0, 2):
        run(config, tmp_path)
        said = capsys.readouterr().err
        assert f"stopped at step {step} of 6 (the next one given up: responses were being sampled); go on" in said
        assert len(metrics_of(tmp_path)) == step
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    run(config, tmp_path)
    assert_same_run(finished, tmp_path, config)


def test_a_signal_during_an_evaluation_saves_first_and_evaluates_on_resuming(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("POLYEPO_CACHE", str(tmp_path / "cache"))
    there = tmp_path / "there"
    directory = object_storage.working_copy(Path(f"file://{there}"))  # what is logged has to come to the URL, too
    num_evaluations = 0

    def sample(*arguments, original=evaluating.sample):
        nonlocal num_evaluations
        num_evaluations += 1
        if num_evaluations in (1, 2, 4):  # that after step 3, again on resuming, and that after the last step
            signal_itself(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(evaluating, "sample", sample)
    evaluation = dataclasses.replace(rl_config().evaluation, max_rows=4)  # four waves
    config = rl_config(save_interval_steps=100, eval_interval_steps=3, evaluation=evaluation)
    for _ in range(2):
        run(config, directory)
        assert f"stopped at step 3 of 6 (its evaluation not done); go on with: {COMMAND}" in capsys.readouterr().err
        assert len(metrics_of(directory)) == 2
        assert [path.name for path in (there / "checkpoints").iterdir()] == ["3"]
    with monkeypatch.context() as patch:  # evaluated, and dead before the next checkpoint
        patch.setattr(session.Session, "next_prompts", lambda session: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(config, directory)
    assert len(metrics_of(directory)) == 3
    run(config, directory)
    assert "stopped at step 6 of 6 (its evaluation not done)" in capsys.readouterr().err
    for what in ("evaluated", "nothing to do"):
        run(config, directory)
        assert f"{what}: file://{there} is at step 6 of 6" in capsys.readouterr().err
    assert_same_run(finished, there, config)
    assert num_evaluations == 5


@dataclasses.dataclass(frozen=True)
class PaysLess(EasyPolynomial):
    """Rewards that may be negative, which MaxRL has no meaning for."""

    def verify(self, problem, response):
        return -super().verify(problem, response)


def test_nonfinite_updates_are_skipped_counted_and_end_the_run(tmp_path):
    algorithm = AlgorithmConfig(advantage=MaxRL())
    config = rl_config(task=PaysLess(), algorithm=algorithm, max_nonfinite_updates=3, save_interval_steps=1)
    with pytest.raises(RunError, match=r"stopped at step 3: .* not finite in 3 updates in a row"):
        run(config, tmp_path / "run")
    lines = metrics_of(tmp_path / "run")
    assert [line["loss/policy"] for line in lines] == [None] * 3
    assert [line["loss/nonfinite_updates"] for line in lines] == [1] * 3
    chex.assert_trees_all_equal(params_of(tmp_path / "run", config), jax.device_get(init(MODEL, stream(0, "init"))))


def test_a_run_whose_last_updates_were_skipped_says_so_and_is_no_success(tmp_path, capsys):
    config = rl_config(task=PaysLess(), algorithm=AlgorithmConfig(advantage=MaxRL()), max_steps=2)
    for _ in range(2):  # the same command again finds it at its end, and as it was
        with pytest.raises(RunError, match=r"is at its last step, .* not finite in the last 2 updates, all skipped"):
            run(config, tmp_path / "run")
    assert "not finite, updates skipped 1" in capsys.readouterr().err


@dataclasses.dataclass(frozen=True)
class AlwaysWrong(EasyPolynomial):
    """No generation is right, so that under Polychromic none has an advantage."""

    def verify(self, problem, response):
        return 0.0


def test_a_step_without_any_advantage_changes_nothing(tmp_path):
    """Not by weight decay either, which would move the parameters in an update without gradient."""
    config = rl_config(max_steps=2, optimizer=OptimizerConfig(weight_decay=0.1))
    run(config, tmp_path / "run")
    config = dataclasses.replace(config, task=AlwaysWrong(), init=InitConfig(str(tmp_path / "run")))
    run(config, tmp_path / "idle")
    lines = metrics_of(tmp_path / "idle")
    assert [(line["loss/policy"], line["loss/grad_norm"], line["advantages/nonzero_frac"]) for line in lines] == [
        (0, 0, 0)
    ] * 2
    assert [line["logprobs/sampler_gap"] for line in lines] == [None] * 2
    chex.assert_trees_all_equal(params_of(tmp_path / "idle", config), params_of(tmp_path / "run", config))


def test_momentum_does_not_move_a_step_without_any_advantage():
    spec = update_spec(rl_config())
    state = init_state(spec, init(MODEL, jax.random.key(0)))
    moments = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state.opt_state)
    before = jax.device_get(dataclasses.replace(state, opt_state=moments))
    shardings = state_shardings(spec, make_mesh(MeshConfig(data=-1, fsdp=2)))
    after, stats = pass_step(spec, jax.device_put(before, shardings))
    chex.assert_trees_all_equal(jax.device_get(after), dataclasses.replace(before, step=before.step + 1))
    assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), after, shardings)))
    assert float(stats["tokens"]) == float(stats["loss"]) == 0


def test_a_warm_up_that_outlasts_the_run_is_told(tmp_path):
    config = rl_config(optimizer=OptimizerConfig(warmup_steps=6))
    assert any("the learning rate never reaches its peak" in note for note in prepare(config, tmp_path / "run").notes)
    config = rl_config(optimizer=OptimizerConfig(warmup_steps=5))
    assert not any("warm-up" in note for note in prepare(config, tmp_path / "run").notes)


def damage(directory, step, how):
    """Harms the largest data file of one checkpoint's parameters."""
    files = (directory / "checkpoints" / str(step) / "params").glob("ocdbt.process_*/d/*")
    largest = max(files, key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    if how == "truncated":
        largest.write_bytes(content[: len(content) // 2])
    elif how == "missing":
        largest.unlink()
    else:
        middle = len(content) // 2
        largest.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])


@pytest.mark.parametrize("how", ["truncated", "missing", "flipped"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(finished, tmp_path, capsys, how):
    config = rl_config(eval_interval_steps=3)
    directory = tmp_path / "run"
    run(config, directory)
    damage(directory, 6, how)
    capsys.readouterr()
    run(config, directory)
    output = capsys.readouterr()
    assert "checkpoint 6 cannot be read (" in output.err
    assert "file params/ocdbt" in output.err
    assert "going on from checkpoint 4" in output.err
    assert (directory / "corrupt_checkpoints" / "6").is_dir()
    assert_same_run(finished, directory, config)

    # What starts from this run, or evaluates it, passes over a damaged checkpoint too, but moves nothing.
    damage(directory, 6, how)
    evaluate.main(["--run-dir", str(directory)])
    assert json.loads((directory / "eval.json").read_text())["checkpoint_step"] == 4
    damage(directory, 4, how)
    with pytest.raises(InputError, match=r"none of the checkpoints \[4, 6\] .* can be read"):
        run(config, directory)
    with pytest.raises(InputError, match=r"none of the checkpoints \[4, 6\]"):
        evaluate.main(["--run-dir", str(directory)])
    assert sorted(p.name for p in (directory / "checkpoints").iterdir() if p.name.isdigit()) == ["4", "6"]


def test_an_incomplete_checkpoint_does_not_count(finished, tmp_path):
    config = rl_config(eval_interval_steps=3)
    directory = tmp_path / "run"
    run(dataclasses.replace(config, max_steps=4), directory)
    for step in ("6", "9"):
        (directory / "checkpoints" / step).mkdir()
    run(config, directory)
    assert_same_run(finished, directory, config)


# --- refused before anything is written ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_prompt_length": 5}, r"813 of 813 prompts are longer than max_prompt_length = 5"),
        ({"max_prompt_length": 5, "long_prompts": "drop"}, r"none of the 813 prompts fits"),
        ({"prompts_per_step": 1000}, r"prompts_per_step = 1000 is more than the 813"),
        (
            {"mesh": MeshConfig(data=3)},
            r"does not fit 8 devices.*; meshes of 8 devices that do: data=8 fsdp=1",
        ),
        ({"mesh": MeshConfig(tensor=2)}, r"mesh.tensor = 2 does not divide the model's kv_heads = 1; meshes of 8"),
        (
            {"algorithm": AlgorithmConfig(SetAdvantage(Polychromic(2)), micro_batch_size=4)},
            r"mesh.fsdp = 8 does not divide algorithm.micro_batch_size = 4 rows .*: 8\); no mesh of 8 devices does",
        ),
        (
            {"prompts_per_step": 3},
            r"= 8 does not divide the generations of a mini-batch = 12 rows .*: 16\); no mesh of 8 devices does",
        ),
        (
            {"model": dataclasses.replace(MODEL, vocab_size=15)},
            r"the tokenizer's largest id is 15, but .* model.vocab_size = 15 rows: this is another model's tokenizer",
        ),
        ({"init": InitConfig(model_dir="nowhere")}, r"nowhere.config.json does not exist: a Hugging Face model"),
        ({"init": InitConfig("nowhere")}, r"nowhere is not a run directory"),
        ({"logging": LoggingConfig(wandb_project="p")}, r"needs the package wandb: pip install"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(rl_config(**changes), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_model_is_refused(finished, tmp_path):
    other = dataclasses.replace(MODEL, intermediate_size=24, rope_theta=5.0)
    with pytest.raises(InputError, match=r"another model: it has intermediate_size 16, not 24; rope_theta 1000000.0"):
        run(rl_config(model=other, init=InitConfig(str(finished))), tmp_path / "run")
    write_json(tmp_path / "config.json", to_json(rl_config()))
    with pytest.raises(InputError, match="has no checkpoints"):
        run(rl_config(init=InitConfig(str(tmp_path))), tmp_path / "run")
    with pytest.raises(InputError, match=r"no checkpoint of step 5 \(there are \[4, 6\]\)"):
        run(rl_config(init=InitConfig(str(finished), step=5)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unfinished_warm_start_is_refused_unless_its_step_is_named(tmp_path):
    write_json_of = tmp_path / "warm" / "config.json"
    sft(sft_config(max_steps=2), tmp_path / "warm", COMMAND)
    write_json(write_json_of, to_json(sft_config(max_steps=9)))
    with pytest.raises(InputError, match=r"is at step 2 of 9: finish that run first, or set init.step = 2"):
        run(rl_config(init=InitConfig(str(tmp_path / "warm"))), tmp_path / "run")
    run(rl_config(init=InitConfig(str(tmp_path / "warm"), step=2), max_steps=1), tmp_path / "run")


@dataclasses.dataclass(frozen=True)
class Unverifiable(EasyPolynomial):
    """A verifier that is broken for one problem of the validation split and for all of training."""

    def verify(self, problem, response):
        if problem in self.problems("train") or problem == self.problems("validation")[0]:
            raise OSError("verifier lost")
        return super().verify(problem, response)

    def cluster(self, problem, responses):
        if problem in self.problems("train"):
            raise OSError("judge lost")
        return super().cluster(problem, responses)


def test_failed_grading_is_data_and_never_a_made_up_grade(tmp_path, capsys):
    config = rl_config(task=Unverifiable(), max_steps=2, eval_interval_steps=2)
    run(config, tmp_path / "run")
    lines = metrics_of(tmp_path / "run")
    assert [line["judge/failure_frac"] for line in lines] == [1, 1]
    assert [line["rewards/mean"] for line in lines] == [None, None]
    assert "eval/pass_at_1" in lines[1]
    said = capsys.readouterr().err
    assert "grading calls failed: clustering problem" in said
    assert "evaluation: " in said
    chex.assert_trees_all_equal(params_of(tmp_path / "run", config), jax.device_get(init(MODEL, stream(0, "init"))))


def test_another_config_does_not_touch_a_run_directory(finished):
    before = {p: p.read_bytes() for p in finished.iterdir() if p.is_file()}
    with pytest.raises(InputError, match=r"another config: learning_rate: 0.01 -> 0.02"):
        run(rl_config(eval_interval_steps=3, learning_rate=0.02), finished)
    assert {p: p.read_bytes() for p in finished.iterdir() if p.is_file()} == before


# --- the parts together ---


@pytest.mark.slow
def test_warm_start_evaluation_training_and_report_work_together(tmp_path, capsys):
    warm, tuned = tmp_path / "warm_start", tmp_path / "grpo"
    sft(sft_config(), warm, COMMAND)
    config = rl_config(
        init=InitConfig(str(warm)), algorithm=AlgorithmConfig(advantage=GRPO()), max_completion_length=25
    )
    run(config, tuned)
    for directory in (warm, tuned):
        evaluate.main(["--run-dir", str(directory)])
        result = json.loads((directory / "eval.json").read_text())
        assert (result["checkpoint_step"], result["num_samples"]) == (6, 4)
        assert list(result["benchmarks"]["polynomial/held_out"]["pass_at_k"]) == ["1", "2", "4"]
    evaluate.main(["--run-dir", str(tuned), "--num-samples", "2", "--temperature", "0", "--split", "validation"])
    greedy = json.loads((tuned / "eval_validation.json").read_text())["benchmarks"]["polynomial/held_out"]
    assert greedy["pass_at_k"]["1"] == greedy["pass_at_k"]["2"]
    capsys.readouterr()
    report.main([str(warm), str(tuned), "--out", str(tmp_path / "report")])
    assert (tmp_path / "report" / "comparison.png").exists()
    losses = [line["loss/supervised"] for line in metrics_of(warm)]
    assert losses[-1] < losses[0]


def test_the_initial_policy_is_that_of_the_warm_start(finished, tmp_path):
    config = rl_config(init=InitConfig(str(finished)), learning_rate=0.0, max_steps=1)
    run(config, tmp_path / "run")
    chex.assert_trees_all_equal(params_of(tmp_path / "run", config), params_of(finished, config))


def test_a_run_goes_on_without_what_it_started_from(finished, tmp_path):
    start, directory = tmp_path / "start", tmp_path / "run"
    shutil.copytree(finished, start)
    config = rl_config(init=InitConfig(str(start)), max_steps=2)
    run(config, directory)
    shutil.rmtree(start)
    run(dataclasses.replace(config, max_steps=3), directory)
    assert len(metrics_of(directory)) == 3


def test_other_data_is_refused_on_resume(tmp_path, monkeypatch):
    run(rl_config(max_steps=2), tmp_path / "run")
    problems = EasyPolynomial().problems("train")
    monkeypatch.setattr(EasyPolynomial, "problems", lambda self, split: problems[:-1])
    with pytest.raises(InputError, match="the training prompts differ"):
        run(rl_config(), tmp_path / "run")
    others = [dataclasses.replace(problem, reference="1 2 3") for problem in problems]
    monkeypatch.setattr(EasyPolynomial, "problems", lambda self, split: others)
    with pytest.raises(InputError, match="the answers to the training prompts differ"):
        run(rl_config(), tmp_path / "run")


@pytest.mark.slow
def test_every_algorithm_setting_is_used_and_resumes(tmp_path):
    algorithm = AlgorithmConfig(
        advantage=SetAdvantage(Polychromic(2, require_distinct=True), num_sets=3, reduce="sum"),
        loss=PolicyLoss(beta=0.1, dual_clip=3.0, denominator="completion_length"),
        truncated="mask",
        num_iterations=2,
        mini_batch_size=4,
        micro_batch_size=8,
    )
    config = rl_config(algorithm=algorithm, max_steps=4, prompts_per_step=8)
    run(config, tmp_path / "whole")
    run(dataclasses.replace(config, max_steps=2), tmp_path / "parts")
    run(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts", config)
    lines = metrics_of(tmp_path / "whole")
    # The KL to the initial policy is 0 in the first mini-batch only: it was the reference, not the sampler.
    assert lines[-1]["loss/kl"] > lines[0]["loss/kl"] > 0


@pytest.mark.parametrize("max_steps", [4, 6])  # the process ends while it traces, or goes on after it
def test_profile_writes_a_trace(tmp_path, max_steps):
    run(rl_config(max_steps=max_steps), tmp_path / "run", profile=True)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_rows_of_a_batch():
    prompts = Prompts(jnp.array([[0, 5]]), jnp.array([[False, True]]), jnp.array([3]))
    rollouts = Rollouts(
        tokens_PNT=jnp.array([[[7, 2, 0], [7, 8, 9]]]),
        completion_mask_PNT=jnp.array([[[True, True, False], [True, True, True]]]),
        sampler_logprobs_PNT=jnp.array([[[-1.0, -2.0, 0.0], [-3.0, -4.0, -5.0]]]),
        truncated_PN=jnp.array([[False, True]]),
    )
    batch = flatten(False, prompts, rollouts, jnp.array([[0.5, -0.5]]))
    np.testing.assert_array_equal(batch.tokens_BT, [[0, 5, 7, 2, 0], [0, 5, 7, 8, 9]])
    np.testing.assert_array_equal(batch.mask_BT, [[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(batch.loss_mask_BT, [[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(batch.sampler_logprobs_BT, [[0, 0, -1, -2, 0], [0, 0, -3, -4, -5]])
    np.testing.assert_array_equal(batch.advantages_B, [0.5, -0.5])
    masked = flatten(True, prompts, rollouts, jnp.array([[0.5, -0.5]]))
    np.testing.assert_array_equal(masked.loss_mask_BT, [[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]])


def test_a_run_of_a_version_with_fewer_fields_goes_on(tmp_path):
    run(rl_config(max_steps=1), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for section, name in (("model", "attention"), ("sampling", "max_rows"), ("init", "model_dir")):
        del config[section][name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    run(rl_config(max_steps=2), tmp_path)
    assert len(metrics_of(tmp_path)) == 2


def test_evaluation_in_training_samples_no_more_rows_than_training(tmp_path, monkeypatch):
    rows = []
    sample = evaluating.sample
    monkeypatch.setattr(evaluating, "sample", lambda *arguments: rows.append(arguments[5]) or sample(*arguments))
    evaluation = EvaluationConfig(num_samples=4, num_validation_prompts=4, max_rows=1000)
    run(
        rl_config(max_steps=1, eval_interval_steps=1, evaluation=evaluation, sampling=SamplingConfig(max_rows=8)),
        tmp_path,
    )
    assert rows == [8]


@dataclasses.dataclass(frozen=True)
class OtherPolynomials(EasyPolynomial):
    """A benchmark."""

    name = "polynomial/others"


@dataclasses.dataclass(frozen=True)
class WithBenchmarks(EasyPolynomial):
    """Has a benchmark beside its own held-out split, and something to say before training."""

    benchmark_tasks = (OtherPolynomials(split_seed=7),)
    notes = ("polynomials: 1,083 rows; left out: 3 of no use",)


def test_benchmarks_are_evaluated_after_the_held_out_split_and_sets_are_described(tmp_path, capsys):
    directory = tmp_path / "run"
    run(rl_config(task=WithBenchmarks(), max_steps=1), directory)
    assert "polynomials: 1,083 rows; left out: 3 of no use" in capsys.readouterr().err
    evaluate.main(["--run-dir", str(directory)])
    result = json.loads((directory / "eval.json").read_text())
    assert list(result["benchmarks"]) == ["polynomial/held_out", "polynomial/others"]
    assert all(benchmark["num_prompts"] == 8 for benchmark in result["benchmarks"].values())
    assert result["benchmarks"]["polynomial/held_out"] != result["benchmarks"]["polynomial/others"]
    shown = capsys.readouterr().out
    assert "polynomial/others" in shown
    evaluate.main(["--run-dir", str(directory), "--split", "validation"])
    assert list(json.loads((directory / "eval_validation.json").read_text())["benchmarks"]) == ["polynomial/held_out"]


class NeverVerifiable(EasyPolynomial):
    """A verifier that is broken for all that is held out."""

    def verify(self, problem, response):
        if problem in self.problems("validation"):
            raise OSError("verifier lost")
        return super().verify(problem, response)


def test_an_evaluation_in_which_all_grading_fails_does_not_end_the_run(tmp_path, capsys):
    evaluation = EvaluationConfig(num_samples=16, num_prompts=8, num_validation_prompts=8, max_rows=128)
    run(rl_config(task=NeverVerifiable(), max_steps=2, eval_interval_steps=1, evaluation=evaluation), tmp_path / "run")
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1, 2]
    num_failed = int(re.search(r"evaluation: (\d+) grading calls failed", capsys.readouterr().err)[1])
    assert num_failed > JudgeConfig().failure_window, "so many would end a run, were they of training"
