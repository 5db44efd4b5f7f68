"""Runs of several processes on this machine: what one process computes, and told to end like one."""

import json
import os
import shutil
import signal
import subprocess
import sys

import chex
import jax
import pytest

from polyepo_jax import convert
from polyepo_jax.errors import RUN_AGAIN
from polyepo_jax.model import init, load_hf, save_hf
from tests.judges.server import JudgeServer
from tests.judges.test_mesh import MODEL as JUDGE
from tests.pod import (
    CONFIG,
    FOREVER,
    ROOT,
    Pod,
    checkpoints_of,
    params_of,
    run,
    samples_of,
    start,
    steps_done,
    training,
    wait_until,
)
from tests.tiny import metrics_of
from tests.tiny_hf import write_tokenizer

pytestmark = pytest.mark.usefixtures("shared_compilations")


def assert_equal_metrics(first, second):
    """To 1e-4, as reductions may be ordered differently; the gap between sampler and trainer is rounding itself."""
    assert [line["step"] for line in first] == [line["step"] for line in second]
    for ours, theirs in zip(first, second, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"logprobs/sampler_gap"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-9), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with all eight devices."""
    directory = tmp_path_factory.mktemp("alone") / "run"
    run((1, 8), directory, "--eval-interval-steps", "3", "--logging.kl-interval-steps", "4")
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 4), (4, 2)])
def test_processes_change_nothing(alone, tmp_path, shape):
    directory = tmp_path / "run"
    run(shape, directory, "--eval-interval-steps", "3", "--logging.kl-interval-steps", "4")
    assert_equal_metrics(metrics_of(directory), metrics_of(alone))
    assert [line["step"] for line in metrics_of(alone) if line.get("kl/start", 0) > 0] == [4]
    assert (directory / "samples.jsonl").read_text() == (alone / "samples.jsonl").read_text()
    assert {p.name for p in directory.iterdir()} == {p.name for p in alone.iterdir()}
    chex.assert_trees_all_close(params_of(directory), params_of(alone), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_signal_to_one_process_saves_one_step_and_goes_on_in_any_shape(tmp_path):
    directory = tmp_path / "run"
    with start((4, 1), directory, *FOREVER) as pod:
        pod.until(lambda: steps_done(directory) >= 3, "the third step")
        pod.send(2, signal.SIGTERM)
        assert pod.wait() == [0] * 4, pod.said()
        assert "SIGTERM: saving, then ending" in pod.said(2)
        assert "go on with: " in pod.said(0)
        assert "--process-id" not in pod.said(0)
    [step] = checkpoints_of(directory)
    assert steps_done(directory) == step
    for shape in ((2, 2), (2, 4), (1, 2)):
        copy = tmp_path / f"{shape[0]}x{shape[1]}"
        shutil.copytree(directory, copy)
        said = run(shape, copy, "--max-steps", str(step + 2), "--save-interval-steps", "100000")
        assert f"on {shape[0]} processes with {shape[0] * shape[1]} devices, was saved by 4 processes with 4" in said
        assert f"going on from step {step} of {step + 2}" in said
    for copy in ("2x4", "1x2"):
        assert_equal_metrics(metrics_of(tmp_path / copy)[step:], metrics_of(tmp_path / "2x2")[step:])
        for later in (step + 1, step + 2):
            assert samples_of(tmp_path / copy, later) == samples_of(tmp_path / "2x2", later) != []


@pytest.mark.slow
def test_a_signal_can_have_a_status_of_its_own_and_a_second_one_ends_at_once(tmp_path):
    directory = tmp_path / "run"
    with start((2, 2), directory, *FOREVER, "--stopped-exit-code", "75") as pod:
        pod.until(lambda: steps_done(directory) >= 1, "the first step")
        pod.send(1, signal.SIGTERM)
        assert pod.wait() == [75, 75], pod.said()
    with start((2, 2), directory, *FOREVER) as pod:
        done = steps_done(directory)
        pod.until(lambda: steps_done(directory) > done, "another step")
        pod.send(1, signal.SIGSTOP)  # so that both signals are there before it does anything
        pod.send(1, signal.SIGTERM)
        pod.send(1, signal.SIGINT)
        pod.send(1, signal.SIGCONT)
        assert pod.wait()[1] in (128 + signal.SIGTERM, 128 + signal.SIGINT)
        assert pod.processes[0].returncode == RUN_AGAIN, pod.said()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("victim", [0, 1])
def test_before_the_first_step_there_is_nothing_to_save(tmp_path, number, victim):
    directory, gate = tmp_path / "run", tmp_path / "gate"
    gate.mkdir()
    environment = {"POD_GATE": str(gate), "POLYEPO_PEER_TIMEOUT_S": "5"}
    with start((2, 2), directory, environment=environment) as pod:
        pod.until(lambda: all((gate / str(index)).exists() for index in range(2)), "that all read their config")
        pod.send(victim, number)
        codes = pod.wait()
        if number == signal.SIGTERM:
            assert codes == [0, 0], pod.said()
            assert all("SIGTERM before the first step, so that nothing is lost; go on" in pod.said(i) for i in range(2))
        else:
            assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, RUN_AGAIN), pod.said()
            assert f"lost process {victim} of 2" in pod.said(1 - victim)
        assert "Traceback" not in pod.said()
    assert not directory.exists()


@pytest.mark.slow
def test_a_process_that_waits_for_a_frozen_one_hears_signals(tmp_path):
    directory = tmp_path / "run"
    with start((2, 2), directory, *FOREVER) as pod:
        pod.until(lambda: steps_done(directory) >= 1, "the first step")
        pod.send(1, signal.SIGSTOP)
        pod.send(0, signal.SIGTERM)
        pod.until(lambda: "SIGTERM: saving" in pod.said(0), "that the first signal is heard")
        pod.send(0, signal.SIGTERM)
        wait_until(lambda: pod.processes[0].poll() is not None, "the end of the process that was told twice")
        assert pod.processes[0].returncode == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_judge_on_the_mesh_reads_the_responses_of_all_processes(tmp_path):
    judge, rubric = tmp_path / "judge", tmp_path / "rubric.txt"
    save_hf(judge, JUDGE, jax.tree.map(lambda x: x * 4, init(JUDGE, jax.random.key(0))))
    write_tokenizer(judge)
    rubric.write_text("Sort:\n<<problem>>\n<<responses>>\n<<num_responses>> in all, else <<degenerate_id>>.")
    environment = {"POD_JUDGE": str(judge), "POD_RUBRIC": str(rubric)}
    for shape in ((1, 8), (2, 4)):
        run(shape, tmp_path / f"{shape[0]}", "--max-steps", "2", environment=environment)
    first, second = (metrics_of(tmp_path / name) for name in "12")
    assert first[0]["clusters/distinct"] > 0
    assert_equal_metrics(first, second)


@pytest.mark.slow
def test_a_judge_behind_http_is_asked_once_for_each_prompt(tmp_path):
    with JudgeServer(rule=lambda response: response[:1]) as server:
        for shape in ((1, 8), (2, 4)):
            directory = tmp_path / f"{shape[0]}"
            run(shape, directory, "--max-steps", "3", environment={"POD_JUDGE_URL": server.url})
            assert len(server.requests) == 3 * 8 * shape[0]
        requests = [json.dumps(request, sort_keys=True) for request in server.requests]
        assert sorted(requests[:24]) == sorted(requests[24:])
        assert_equal_metrics(metrics_of(tmp_path / "1"), metrics_of(tmp_path / "2"))
        # Other processes go on, with what all of the former ones were told.
        shutil.rmtree(tmp_path / "2" / "checkpoints" / "3")
        run((1, 4), tmp_path / "2", "--max-steps", "3", environment={"POD_JUDGE_URL": server.url})
        assert len(server.requests) == 48
        last, again = (metrics_of(tmp_path / name)[2] for name in "12")
        assert (again["judge/cached"], again["judge/attempts"]) == (8, 0)
        assert again["clusters/distinct"] == last["clusters/distinct"] > 0


@pytest.mark.slow
def test_shards_over_processes_are_restored_and_exported_by_any_number_of_them(tmp_path):
    first = tmp_path / "first"
    model = "--model.num-key-value-heads", "2", "--eval-interval-steps", "3"
    # Of the eight devices that hold a replica, each process has two.
    run((4, 2), first, *model, "--mesh.data", "1", "--mesh.fsdp", "4", "--mesh.tensor", "2")
    written = {path.name for path in (first / "checkpoints" / "4" / "params").iterdir()}
    assert {f"ocdbt.process_{index}" for index in range(4)} <= written
    for shape, sizes in (((1, 2), (1, 2, 1)), ((2, 4), (2, 2, 2))):
        copy = tmp_path / f"{shape[0]}x{shape[1]}"
        shutil.copytree(first, copy)
        shutil.rmtree(copy / "checkpoints" / "6")
        mesh = [
            text
            for name, size in zip(("data", "fsdp", "tensor"), sizes, strict=True)
            for text in (f"--mesh.{name}", str(size))
        ]
        assert "going on from step 4 of 6" in run(shape, copy, *model, *mesh)
        assert_equal_metrics(metrics_of(copy), metrics_of(first))
        assert (copy / "samples.jsonl").read_text() == (first / "samples.jsonl").read_text()
        chex.assert_trees_all_close(params_of(copy), params_of(first), rtol=1e-4, atol=1e-6)
    convert.main(["hf-export", str(first), "--step", "4", "--out", str(tmp_path / "hf")])
    _, exported = load_hf(tmp_path / "hf")
    chex.assert_trees_all_equal(jax.device_get(exported), params_of(first, 4))


@pytest.mark.slow
def test_rollouts_in_flight_are_taken_over_by_any_number_of_processes(tmp_path):
    stale = "--algorithm.staleness", "2", "--algorithm.loss.importance-cap", "1.5", "--eval-interval-steps", "3"
    alone = tmp_path / "alone"
    run((1, 8), alone, *stale)
    for shape in ((2, 4), (4, 1)):
        directory = tmp_path / f"{shape[0]}"
        shutil.copytree(alone, directory)
        shutil.rmtree(directory / "checkpoints" / "6")
        assert "going on from step 4 of 6" in run(shape, directory, *stale)
        assert_equal_metrics(metrics_of(directory), metrics_of(alone))
        assert (directory / "samples.jsonl").read_text() == (alone / "samples.jsonl").read_text()
    run((2, 4), tmp_path / "from the start", *stale)
    assert_equal_metrics(metrics_of(tmp_path / "from the start"), metrics_of(alone))
    chex.assert_trees_all_close(params_of(tmp_path / "from the start"), params_of(alone), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_signal_during_an_evaluation_saves_first(alone, tmp_path):
    directory = tmp_path / "run"
    evaluation = (
        "--eval-interval-steps",
        "3",
        "--evaluation.num-validation-prompts",
        "150",
        "--evaluation.max-rows",
        "4",
    )
    arguments = *evaluation, "--max-steps", "3", "--save-interval-steps", "3"
    evaluates = tmp_path / "evaluates"
    with start((2, 2), directory, *arguments, environment={"POD_EVALUATES": str(evaluates)}) as pod:
        pod.until(evaluates.exists, "the evaluation")
        pod.send(1, signal.SIGTERM)
        assert pod.wait() == [0, 0], pod.said()
        assert "stopped at step 3 of 3 (its evaluation not done); go on with: " in pod.said(0)
    assert checkpoints_of(directory) == [3]
    assert len(metrics_of(directory)) == 2
    run((2, 1), directory, *arguments)
    assert_equal_metrics(
        [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in metrics_of(directory)],
        [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in metrics_of(alone)[:3]],
    )
    assert "eval/pass_at_4" in metrics_of(directory)[2]


@pytest.mark.slow
def test_all_commands_share_the_work(tmp_path):
    """A warm start, training from it on groups that carry signal, in waves, and an evaluation."""
    for shape in ((1, 4), (2, 2)):
        directory = tmp_path / f"{shape[0]}"
        warm = training(ROOT / "tests" / "pod_sft_config.py", directory / "warm", module="polyepo_jax.sft")
        waves = "--algorithm.max-prompt-batches", "3", "--sampling.max-rows", "16", "--max-steps", "2"
        train = training(CONFIG, directory / "run", "--init.run-dir", str(directory / "warm"), *waves)
        for command in (warm, train, ["-m", "polyepo_jax.evaluate", "--run-dir", str(directory / "run")]):
            with Pod(*shape, command, directory / "logs") as pod:
                assert pod.wait() == [0] * shape[0], pod.said()
    for name in ("warm", "run"):
        assert_equal_metrics(*(metrics_of(tmp_path / shape / name) for shape in "12"))
    assert samples_of(tmp_path / "1" / "run", 1) == samples_of(tmp_path / "2" / "run", 1) != []
    assert metrics_of(tmp_path / "1" / "run")[0]["dynamic_sampling/prompt_batches"] > 1
    first, second = (json.loads((tmp_path / shape / "run" / "eval.json").read_text()) for shape in "12")
    assert first == second
    for name in ("eval_problems.jsonl", "eval_samples.jsonl"):
        assert (tmp_path / "1" / "run" / name).read_text() == (tmp_path / "2" / "run" / name).read_text()


@pytest.mark.slow
def test_an_evaluation_that_was_killed_goes_on_in_another_shape(alone, tmp_path):
    undisturbed, killed = (shutil.copytree(alone, tmp_path / name) for name in ("undisturbed", "killed"))
    files = killed / "eval_unfinished"

    def evaluation(shape, directory):
        options = "--num-samples", "512", "--max-rows", "8"
        command = ["-m", "polyepo_jax.evaluate", "--run-dir", str(directory), *options]
        return Pod(*shape, command, directory / "logs")

    with evaluation((1, 4), undisturbed) as pod:
        assert pod.wait() == [0], pod.said()
    with evaluation((2, 2), killed) as pod:

        def both_have_some() -> bool:
            kept = list(files.glob("*/*.jsonl"))
            return len(kept) == 2 and all(path.read_text().count("\n") > 1 for path in kept)

        pod.until(both_have_some, "problems of both processes")
        for index in range(2):
            pod.send(index, signal.SIGKILL)
    assert not (killed / "eval.json").exists()
    with evaluation((1, 4), killed) as pod:
        assert pod.wait() == [0], pod.said()
        assert "of 8 problems were sampled before, going on" in pod.said()
    for name in ("eval.json", "eval_problems.jsonl", "eval_samples.jsonl"):
        assert (killed / name).read_text() == (undisturbed / name).read_text()
    assert not files.exists()


def test_what_one_process_refuses_is_refused_by_all(tmp_path):
    with Pod(2, 2, training(CONFIG, tmp_path / "run", "--learning-rate", "fast"), tmp_path) as pod:
        assert pod.wait() == [2, 2], pod.said()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_pod_on_a_laptop(tmp_path):
    command = [ROOT / "launch" / "local_pod.sh", "2", "2", *training(CONFIG, tmp_path / "run")[2:], "--max-steps", "1"]
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    for name in ("XLA_FLAGS", "JAX_PLATFORMS"):
        environment.pop(name, None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "done: step 1" in done.stderr + done.stdout
    assert steps_done(tmp_path / "run") == 1
