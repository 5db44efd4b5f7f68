"""A job of SLURM, with a cluster that is a folder."""

import shutil
import signal
import subprocess
import time

import pytest

from tests.launch.scripts import (
    AWKWARD,
    LAUNCH,
    ROOT,
    calls,
    environment,
    finish,
    stand_in,
    until,
)

# Runs two tasks, as srun does, and ends with the highest of their codes. Told to end, it kills both.
SRUN = r"""
while [[ $1 == --* ]]; do shift; done
set -m # a task is a group of processes, all of which are signalled
pids=()
for i in 0 1; do SLURM_PROCID=$i "$@" & pids+=($!); echo $! > "$CLUSTER/group.$i"; done
trap 'for pid in "${pids[@]}"; do kill -s KILL -- "-$pid"; done' TERM
highest=0
for pid in "${pids[@]}"; do
  while true; do
    code=0; wait "$pid" || code=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  code=0; wait "$pid" || code=$?
  [ "$code" -le "$highest" ] || highest=$code
done
exit "$highest"
"""
# Signals the tasks, not the shell that runs srun: the first process of each, or (file `groups`) all of its processes.
SCANCEL = r"""
[ "$*" = "--signal=USR1 17" ] || exit 98
for i in 0 1; do
  group=$(cat "$CLUSTER/group.$i")
  if [ -f "$CLUSTER/groups" ]; then group=-$group; fi
  kill -s USR1 -- "$group"
done
"""
# Cannot at first.
SCONTROL = r"""
[ ! -s "$CLUSTER/busy" ] || { sed -i 1d "$CLUSTER/busy"; exit 1; }
"""
TASK = r"""#!/usr/bin/env bash
echo "$*" > "$CLUSTER/task.$SLURM_PROCID"
echo "token ${HF_TOKEN:-none}" > "$CLUSTER/token.$SLURM_PROCID"
set -- $(cat "$CLUSTER/script")
codes=("$@")
case ${codes[SLURM_PROCID]} in
  killed) kill -s KILL $$ ;;
  wait) trap 'echo stopped >> "$CLUSTER/stopped.$SLURM_PROCID"' TERM
        trap 'echo stopped >> "$CLUSTER/stopped.$SLURM_PROCID"' USR1 # which is ignored
        touch "$CLUSTER/ready.$SLURM_PROCID"
        while [ ! -f "$CLUSTER/go" ]; do sleep 0.02; done
        exit 75 ;;
  *) exit "${codes[SLURM_PROCID]}" ;;
esac
"""


class Cluster:
    """The stand-ins for srun, scancel and scontrol."""

    def __init__(self, folder):
        self.folder = folder
        self.jobs: list[subprocess.Popen[str]] = []
        stand_in(folder, "srun", SRUN)
        stand_in(folder, "scancel", SCANCEL)
        stand_in(folder, "scontrol", SCONTROL)
        (folder / "task").write_text(TASK)
        (folder / "task").chmod(0o755)

    def start(self, script, *arguments, **variables):
        (self.folder / "script").write_text(script)
        env = environment(self.folder, CLUSTER=str(self.folder), SLURM_JOB_ID="17", SLURM_SUBMIT_DIR=str(self.folder))
        env |= {"PYTHON": str(self.folder / "task")} | variables
        command = ["bash", str(LAUNCH / "slurm.sbatch"), *(arguments or ["--config", "x"])]
        self.jobs.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return self.jobs[-1]

    def requeued(self):
        return calls(self.folder, "scontrol")


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    yield cluster
    (tmp_path / "go").touch()  # whatever a failed test has left
    for job in cluster.jobs:
        job.communicate(timeout=30)


@pytest.mark.parametrize(
    ("script", "code", "requeued"),
    [
        ("0 0", 0, False),
        ("75 75", 75, True),
        ("0 75", 75, True),
        ("75 killed", 75, True),
        ("75 1", 1, False),  # srun alone would say 75
        ("75 2", 2, False),
        ("killed 1", 1, False),
        ("2 1", 2, False),
    ],
)
def test_a_job_goes_back_into_the_queue_after_75_only(cluster, script, code, requeued):
    process = cluster.start(script)
    status, _, err = finish(process)
    assert status == code, err
    assert cluster.requeued() == ([["requeue", "17"]] if requeued else [])
    (call,) = calls(cluster.folder, "srun")
    assert "--kill-on-bad-exit=0" in call


@pytest.mark.parametrize(("count", "requeued"), [("2", 1), ("3", 0)])
def test_the_restarts_of_a_job_are_bounded(cluster, count, requeued):
    code, _, err = finish(cluster.start("75 75", SLURM_RESTART_COUNT=count, MAX_RESTARTS="3"))
    assert code == 75, err
    assert len(cluster.requeued()) == requeued


def tell(cluster, process, name):
    """Signals the job once its tasks run, and waits until each of them has been told to save."""
    until(lambda: all((cluster.folder / f"ready.{i}").exists() for i in range(2)))
    process.send_signal(getattr(signal, name))
    until(lambda: all((cluster.folder / f"stopped.{i}").exists() for i in range(2)))


@pytest.mark.parametrize("signals_all", [False, True])
@pytest.mark.parametrize(("name", "requeued"), [("SIGUSR1", 1), ("SIGUSR2", 0)])
def test_a_job_told_to_save_tells_every_process_once(cluster, name, requeued, signals_all):
    if signals_all:
        (cluster.folder / "groups").touch()
    process = cluster.start("wait wait")
    tell(cluster, process, name)
    (cluster.folder / "go").touch()
    code, _, err = finish(process)
    assert code == 75, err
    assert len(cluster.requeued()) == requeued
    assert [(cluster.folder / f"stopped.{i}").read_text() for i in range(2)] == ["stopped\n"] * 2


@pytest.mark.parametrize(("ends_in_s", "requeued"), [(-1, 1), (200, 0)])
def test_a_job_goes_back_into_the_queue_at_its_time_limit_and_not_when_it_is_cancelled(cluster, ends_in_s, requeued):
    """SLURM tells it to end in both cases; here before what was told to save has done so."""
    process = cluster.start("wait wait", SLURM_JOB_END_TIME=str(int(time.time()) + ends_in_s))
    tell(cluster, process, "SIGUSR1")
    process.terminate()
    until(lambda: len(cluster.requeued()) == requeued)
    (cluster.folder / "go").touch()
    code, _, err = finish(process)
    assert code == 75, err
    assert len(cluster.requeued()) == requeued


@pytest.mark.parametrize(("busy", "done"), [(4, True), (5, False)])
def test_a_controller_that_is_busy_is_asked_again(cluster, busy, done):
    (cluster.folder / "busy").write_text("busy\n" * busy)
    code, _, err = finish(cluster.start("75 75", RETRY_S="0"))
    assert code == 75
    assert len(cluster.requeued()) == 5
    assert ("could not be put back" in err) != done


def test_a_job_passes_arguments_and_secrets_on(cluster):
    secrets = cluster.folder / "secrets.env"
    secrets.write_text("export HF_TOKEN=hf_secret\n")
    secrets.chmod(0o600)
    code, out, err = finish(cluster.start("0 0", *AWKWARD, SECRETS_FILE=str(secrets), SLURM_CPUS_PER_TASK="3"))
    assert code == 0, err
    (call,) = calls(cluster.folder, "srun")
    assert call[-len(AWKWARD) :] == AWKWARD
    assert call[-len(AWKWARD) - 4 : -len(AWKWARD)] == ["-m", "polyepo_jax.train", "--stopped-exit-code", "75"]
    assert "--cpus-per-task=3" in call  # which srun does not take over from sbatch
    assert (cluster.folder / "token.1").read_text() == "token hf_secret\n"
    assert "hf_secret" not in " ".join(call) + out + err


@pytest.mark.parametrize(("submitted_in", "code"), [(ROOT, 0), ("/elsewhere", 2)])
def test_a_job_runs_from_the_copy_that_slurm_makes_of_it(tmp_path, submitted_in, code):
    copy = shutil.copy(LAUNCH / "slurm.sbatch", tmp_path / "slurm_script")
    env = environment(tmp_path, SLURM_SUBMIT_DIR=str(submitted_in))
    result = subprocess.run(["bash", copy, "--dry-run", "x"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == code
    assert ("submit the job in the repository's folder" in result.stderr) == bool(code)
