"""What happens to pods: processes and machines that vanish, disks that are full, files that are damaged."""

import os
import random
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import chex
import pytest

from polyepo_jax.errors import RUN_AGAIN
from tests.pod import CONFIG, FOREVER, Pod, checkpoints_of, params_of, run, start, steps_done, training, wait_until
from tests.tiny import metrics_of

pytestmark = pytest.mark.usefixtures("shared_compilations")
KILLS = int(os.environ.get("POD_KILLS", "4"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Two processes of two devices."""
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    run((2, 2), directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_the_same_command_goes_on(undisturbed, tmp_path, victim):
    directory = tmp_path / "run"
    with start((2, 2), directory) as pod:
        pod.until(lambda: steps_done(directory) >= 3, "the third step")
        pod.send(victim, signal.SIGKILL)
        codes = pod.wait()
        assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, RUN_AGAIN), pod.said()
        assert f"process {victim}" in pod.said(1 - victim)
    run((2, 2), directory)
    assert metrics_of(directory) == metrics_of(undisturbed)
    assert (directory / "samples.jsonl").read_text() == (undisturbed / "samples.jsonl").read_text()
    chex.assert_trees_all_equal(params_of(directory), params_of(undisturbed))


@pytest.mark.slow
def test_a_step_that_hangs_is_reported_with_the_stacks_of_all(tmp_path):
    directory = tmp_path / "run"
    with start((4, 1), directory, *FOREVER) as pod:
        pod.until(lambda: steps_done(directory) >= 4, "the fourth step")
        pod.send(1, signal.SIGSTOP)
        pod.until(lambda: "no answer from process 1" in pod.said(0), "a report")
        pod.send(1, signal.SIGCONT)
        done = steps_done(directory)
        pod.until(lambda: steps_done(directory) > done + 1, "two more steps: a report ends nothing")
        pod.send(1, signal.SIGTERM)
        assert pod.wait() == [0] * 4, pod.said()
        report = pod.said(0)
        assert "this step has taken" in report
        assert all(re.search(rf"--- .*process(es)? .*{process}", report) for process in range(4))
        assert "train.py" in report


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_frozen_process_is_lost(tmp_path, victim):
    directory = tmp_path / "run"
    with start((2, 2), directory, *FOREVER, environment={"POLYEPO_PEER_TIMEOUT_S": "5"}) as pod:
        pod.until(lambda: steps_done(directory) >= 1, "the first step")
        pod.send(victim, signal.SIGSTOP)
        other = pod.processes[1 - victim]
        wait_until(lambda: other.poll() is not None, "the end of the other process")
        assert other.returncode == RUN_AGAIN
        assert f"lost process {victim} of 2" in pod.said(1 - victim)


def has_done(pod: Pod, directory: Path, resumes: bool, step: int) -> bool:
    """Whether this pod has done a step, and not the one that it goes on from; or has ended."""
    begun = not resumes or "going on from step" in pod.said(0)
    return (begun and steps_done(directory) >= step) or pod.processes[0].poll() is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "number"), [((1, 2), signal.SIGKILL), ((2, 2), signal.SIGKILL), ((2, 2), signal.SIGTERM)]
)
def test_random_signals_lose_nothing_but_steps_since_the_last_checkpoint(tmp_path, shape, number):
    """Moments in every phase: starting, restoring, sampling, updating, evaluating, saving. More with POD_KILLS=50."""
    whole, directory = tmp_path / "whole", tmp_path / "run"
    intervals = "--save-interval-steps", "2", "--eval-interval-steps", "3", "--stopped-exit-code", str(RUN_AGAIN)
    waves = "--sampling.max-rows", "8", "--evaluation.max-rows", "4"
    arguments = ("--max-steps", str(10 * KILLS), *intervals, *waves)
    run(shape, whole, *arguments)
    timeouts = {"POLYEPO_JOIN_TIMEOUT_S": "4", "POLYEPO_PEER_TIMEOUT_S": "10"}
    moments = random.Random(0)
    for _ in range(KILLS):
        saved = max(checkpoints_of(directory), default=0)
        with start(shape, directory, *arguments, environment=timeouts) as pod:
            early, wanted = moments.random() < 0.2, saved + moments.randrange(1, 4)
            # Importing, joining, restoring, compiling; or some steps later, in a step or a save.
            moment = time.monotonic() + moments.uniform(0, 8) if early else float("inf")
            wait_until(lambda: time.monotonic() > moment or has_done(pod, directory, saved > 0, wanted), "a step")  # noqa: B023
            time.sleep(moments.uniform(0, 0.5))
            pod.send(moments.randrange(shape[0]), number)
            codes = pod.wait()
            assert set(codes) <= {-number, RUN_AGAIN}, pod.said()
            assert number != signal.SIGKILL or -number in codes
        newest = max(checkpoints_of(directory), default=0)
        assert newest >= saved
        if "stopped at step" in pod.said(0):
            assert f"stopped at step {newest} of" in pod.said(0)  # nothing is lost at all
        assert "cannot be read" not in pod.said()
    run(shape, directory, *arguments)
    assert not (directory / "corrupt_checkpoints").exists()
    assert metrics_of(directory) == metrics_of(whole)
    assert (directory / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    chex.assert_trees_all_equal(params_of(directory), params_of(whole))


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_full_disk_ends_the_run_with_older_checkpoints_intact(undisturbed, tmp_path, index):
    directory = tmp_path / "run"
    with start((2, 2), directory, "--save-interval-steps", "1") as pod:
        pod.until(lambda: len(checkpoints_of(directory)) >= 1 if steps_done(directory) else False, "a checkpoint")
        pod.limit_files(1024, index)
        codes = pod.wait()
        assert codes[index] == 1, pod.said()
        assert "could not be written" in pod.said(index) or "cannot be written" in pod.said(index)
        assert "go on with: " in pod.said(index)
    assert checkpoints_of(directory)
    run((2, 2), directory, "--save-interval-steps", "1")
    assert metrics_of(directory) == metrics_of(undisturbed)
    chex.assert_trees_all_equal(params_of(directory), params_of(undisturbed))


@pytest.mark.slow
def test_a_flipped_byte_in_one_shard_is_found_named_and_passed_over_by_all(undisturbed, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(undisturbed, directory)
    newest = checkpoints_of(directory)[-1]
    shards = [p for p in (directory / "checkpoints" / str(newest) / "params").rglob("*") if p.is_file()]
    shard = max(shards, key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    said = run((2, 2), directory)
    assert f"checkpoint {newest} cannot be read" in said
    assert shard.name in said
    assert (directory / "corrupt_checkpoints" / str(newest)).is_dir()
    assert metrics_of(directory) == metrics_of(undisturbed)
    chex.assert_trees_all_equal(params_of(directory), params_of(undisturbed))


@pytest.mark.slow
def test_a_pod_at_a_url_goes_on_from_other_machines(undisturbed, tmp_path):
    there = tmp_path / "bucket" / "run"
    url = f"file://{there}"
    for number, steps in enumerate((2, 6)):
        environment = {"POLYEPO_CACHE": str(tmp_path / f"machine{number}")}
        with Pod(2, 2, [*training(CONFIG, url, "--max-steps", str(steps))], tmp_path, environment=environment) as pod:
            assert pod.wait() == [0, 0], pod.said()
            assert f"done: step {steps}, in {url}" in pod.said(0)
    assert metrics_of(there) == metrics_of(undisturbed)
    assert (there / "samples.jsonl").read_text() == (undisturbed / "samples.jsonl").read_text()
    chex.assert_trees_all_equal(params_of(there), params_of(undisturbed))


def lock(directory: Path, mode: int) -> None:
    for name in ("checkpoints", "manifests"):
        (directory / name).chmod(mode)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2), (2, 2)])
def test_where_nothing_can_be_written_any_more_the_run_stops(undisturbed, tmp_path, shape):
    directory = tmp_path / "run"
    with start(shape, directory, "--save-interval-steps", "1", obedient=True) as pod:
        pod.until(lambda: len(checkpoints_of(directory)) >= 2, "two checkpoints")
        lock(directory, 0o555)
        assert pod.wait() == [1] * shape[0], pod.said()
        assert "could not be written: " in pod.said(0)
        assert "Permission denied" in pod.said(0)
        assert "go on with: " in pod.said(0)
    lock(directory, 0o755)
    assert len(checkpoints_of(directory)) >= 2
    run(shape, directory, "--save-interval-steps", "1")
    if shape == (2, 2):
        assert metrics_of(directory) == metrics_of(undisturbed)


@pytest.mark.slow
def test_where_nothing_can_be_written_for_a_while_the_run_can_go_on(tmp_path):
    directory = tmp_path / "run"
    arguments = "--save-interval-steps", "1", "--on-save-failure", "continue", "--max-to-keep", "1000"
    with start((2, 2), directory, *arguments, "--max-steps", "100000", obedient=True) as pod:
        pod.until(lambda: len(checkpoints_of(directory)) >= 2, "two checkpoints")
        lock(directory, 0o555)
        pod.until(lambda: pod.said(0).count("going on without it") >= 2, "two failed saves")
        kept = checkpoints_of(directory)
        lock(directory, 0o755)
        pod.until(lambda: max(checkpoints_of(directory)) > max(kept), "another checkpoint")
        pod.send(1, signal.SIGTERM)
        assert pod.wait() == [0, 0], pod.said()
    assert set(kept) < set(checkpoints_of(directory))
    assert max(checkpoints_of(directory)) == steps_done(directory)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2), (2, 2)])
@pytest.mark.parametrize("then", ["stop", "continue"])
def test_a_disk_that_fills_up_while_a_save_begins_holds_up_nobody(tmp_path, shape, then):
    directory = tmp_path / "run"
    arguments = "--save-interval-steps", "1", "--on-save-failure", then
    with start(shape, directory, *arguments, environment={"POD_NO_DIRECTORY": "3"}) as pod:
        codes = pod.wait(120)  # orbax by itself would wait five minutes
        assert codes == [0 if then == "continue" else 1] * shape[0], pod.said()
        assert "checkpoint 3 could not be written: " in pod.said(0)
        assert "No space left on device" in pod.said(0)
        assert "Traceback" not in pod.said()
    assert checkpoints_of(directory) == ([5, 6] if then == "continue" else [1, 2])


@pytest.mark.slow
def test_a_full_disk_in_one_process_is_no_end_where_the_run_may_go_on(tmp_path):
    directory = tmp_path / "run"
    arguments = "--save-interval-steps", "2", "--on-save-failure", "continue", "--max-steps", "100000"
    with start((2, 2), directory, *arguments) as pod:
        pod.until(lambda: len(checkpoints_of(directory)) >= 1, "a checkpoint")
        pod.limit_files(1024, 1)
        pod.until(lambda: "going on without it" in pod.said(0), "a failed save")
        kept = checkpoints_of(directory)
        pod.limit_files(resource.RLIM_INFINITY, 1)
        pod.until(lambda: max(checkpoints_of(directory)) > max(kept), "another checkpoint")
        pod.send(1, signal.SIGTERM)
        assert pod.wait() == [0, 0], pod.said()
        assert "process 1: " in pod.said(0)
    assert "cannot be read" not in run((1, 4), directory, *arguments[:4], "--max-steps", str(steps_done(directory) + 1))
