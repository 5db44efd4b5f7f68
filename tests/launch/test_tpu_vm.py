"""A run on Cloud TPU VMs, with a cloud that is a folder."""

import shutil
import subprocess

import pytest

from tests.launch.scripts import (
    AWKWARD,
    ELSEWHERE,
    LAUNCH,
    TPU,
    calls,
    environment,
    stand_in,
    until,
)

# A cloud in a folder: `state` holds the resource's state (no file: absent), each worker's home is worker<i>. ssh runs
# the command in it, as the worker's shell would; `script` has a line for each start of the run: exit codes of the two
# workers, or `preempt`. For each line of `no_ssh` and `no_delete` one such call fails, of ssh after so many workers.
GCLOUD = r"""
cd "$CLOUD"
for word in "$@"; do
  case $word in --command=*) command=${word#--command=} ;; --worker=*) worker=${word#--worker=} ;; esac
done
case "$3 $4" in
  "queued-resources list")
    if [ -f list_fails ]; then echo "no network" >&2; exit 1; fi
    if [ -f state ]; then echo "polaris,$(cat state)"; fi ;;
  "queued-resources create")
    if [ -s next_states ]; then head -n 1 next_states > state; else echo ACTIVE > state; fi
    if [ -f next_states ]; then tail -n +2 next_states > rest; mv rest next_states; fi ;;
  "queued-resources delete")
    [ -f state ] || exit 1
    if [ -s no_delete ]; then sed -i 1d no_delete; exit 1; fi
    rm state; rm -rf worker0 worker1 ;;
  "queued-resources describe") echo "quota exceeded" ;;
  "tpu-vm list") ;;
  "tpu-vm describe") cat health 2>/dev/null || echo READY,HEALTHY ;;
  "tpu-vm scp")
    [ "$(cat state)" = ACTIVE ] || exit 1
    case $5 in
      *:*) cp "worker0/${5#*:}" "$OLDPWD/$6" ;;
      *) for i in 0 1; do mkdir -p worker$i; cp "$5" "worker$i/${6#*:}"; done ;;
    esac ;;
  "tpu-vm ssh")
    [ "$(cat state 2>/dev/null)" = ACTIVE ] || exit 1
    answer=2
    if [ -s no_ssh ]; then answer=$(head -n 1 no_ssh); sed -i 1d no_ssh; fi
    for i in 0 1; do
      if [ "$worker" != all ] && [ "$worker" != $i ]; then continue; fi
      if [ $i -ge "$answer" ]; then echo "Permission denied (publickey)" >&2; exit 255; fi
      mkdir -p worker$i
      (cd worker$i && HOME=$PWD WORKER=$i bash -c "$command") || exit 1
    done ;;
  *) exit 98 ;;
esac
"""

# What the run is on a worker: takes its turn in `script`.
PYTHON_OF_WORKER = r"""#!/usr/bin/env bash
if [ "$1" = -c ]; then echo 11; exit 0; fi
if [ "$2" = pip ]; then echo "$*" >> "$CLOUD/pip.$WORKER"; exit 0; fi
printf '%s\x1f' "$@" >> "$CLOUD/runs.$WORKER"; echo >> "$CLOUD/runs.$WORKER"
echo "token ${HF_TOKEN:-none}" >> "$CLOUD/tokens"
turn=$(sed -n "$(wc -l < "$CLOUD/runs.$WORKER")p" "$CLOUD/script")
case $turn in
  preempt) # once: a worker that is late would preempt the next one too
    if [ "$WORKER" = 1 ]; then
      while [ "$(cat "$CLOUD/runs.0" 2>/dev/null | wc -l)" -lt "$(wc -l < "$CLOUD/runs.1")" ]; do sleep 0.01; done
      echo SUSPENDED > "$CLOUD/state"
    fi
    sleep 0.05; exit 75 ;;
  unreachable) if [ "$WORKER" = 1 ]; then mv "$CLOUD/then_no_ssh" "$CLOUD/no_ssh"; fi
               while [ ! -f "$CLOUD/go" ]; do sleep 0.02; done; exit 0 ;;
  wait) while [ ! -f "$CLOUD/go" ]; do sleep 0.02; done; exit 0 ;;
esac
set -- $turn
codes=("$@")
exit "${codes[WORKER]}"
"""
MAKE_OF_WORKER = 'mkdir -p .venv/bin; cp "$CLOUD/python" .venv/bin/python'


class Cloud:
    """The stand-in for gcloud, and what is in its cloud."""

    def __init__(self, folder):
        self.folder, self.bin = folder / "cloud", folder / "bin"
        self.folder.mkdir()
        self.bin.mkdir()
        stand_in(self.bin, "gcloud", GCLOUD)
        stand_in(self.bin, "make", MAKE_OF_WORKER)
        stand_in(self.bin, "sudo", "exit 0")
        (self.folder / "python").write_text(PYTHON_OF_WORKER)
        (self.folder / "python").chmod(0o755)
        # A repository of its own: what is copied does not depend on this one's git.
        self.repository = folder / "repository"
        (self.repository / "launch").mkdir(parents=True)
        for name in ("common.sh", "tpu_vm.sh"):
            shutil.copy(LAUNCH / name, self.repository / "launch")
        stand_in(
            self.bin,
            "git",
            'for w in "$@"; do case $w in --output=*) tar -czf "${w#--output=}" -T /dev/null;; esac; done',
        )

    def env(self, **variables):
        return environment(self.bin, CLOUD=str(self.folder), **(TPU | variables))

    def command(self, *arguments):
        return ["bash", str(self.repository / "launch" / "tpu_vm.sh"), *arguments]

    def __call__(self, *arguments, script=(), state=None, **variables):
        if script:
            (self.folder / "script").write_text("\n".join(script) + "\n")
        if state is not None:
            (self.folder / "state").write_text(f"{state}\n")
        return subprocess.run(
            self.command(*arguments),
            env=self.env(**variables),
            cwd=self.repository,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(self, *arguments):
        return subprocess.Popen(
            self.command(*arguments), env=self.env(), cwd=self.repository, stderr=subprocess.PIPE, text=True
        )

    def did(self):
        """The calls of gcloud that changed something, in short."""
        return [call[3] for call in calls(self.bin, "gcloud") if call[3] in ("create", "delete")]

    def runs(self, worker=0):
        path = self.folder / f"runs.{worker}"
        return [line.split("\x1f")[:-1] for line in path.read_text().split("\n")[:-1]] if path.exists() else []


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    (cloud.folder / "go").touch()  # whatever waits on its workers


def test_a_run_on_a_tpu_from_creation_to_deletion(cloud):
    result = cloud("all", *AWKWARD, *ELSEWHERE, script=["0 0"])
    assert result.returncode == 0, result.stderr
    assert cloud.did() == ["create", "delete"]
    assert not (cloud.folder / "state").exists()
    expected = ["-m", "polyepo_jax.train", "--stopped-exit-code", "75", *AWKWARD, *ELSEWHERE]
    assert [cloud.runs(i) for i in range(2)] == [[expected]] * 2
    assert not list(cloud.folder.rglob("injected"))
    for i in range(2):
        assert (cloud.folder / f"pip.{i}").read_text().endswith("-c requirements/tpu-py311.txt -e .[gcs]\n")
    assert (cloud.repository / "polaris.log").exists()


@pytest.mark.parametrize(
    ("script", "code", "done", "starts"),
    [
        (["75 75", "0 0"], 0, ["create"], 2),
        (["75 137", "0 0"], 0, ["create"], 2),
        (["preempt", "0 0"], 0, ["create", "delete", "create"], 2),
        (["2 2"], 2, ["create"], 1),
        (["75 2"], 2, ["create"], 1),
        (["75 1"], 1, ["create"], 1),
        (["137 1"], 1, ["create"], 1),
        (["75 75"] * 4, 75, ["create"], 3),
    ],
)
def test_a_run_is_started_again_after_75_and_preemption_only(cloud, script, code, done, starts):
    result = cloud("run", *ELSEWHERE, script=script, MAX_RESTARTS="2")
    assert result.returncode == code, result.stderr
    assert cloud.did() == done
    assert len(cloud.runs()) == starts


def test_everything_is_deleted_also_after_a_failure(cloud):
    result = cloud("all", *ELSEWHERE, script=["2 2"])
    assert result.returncode == 2, result.stderr
    assert cloud.did() == ["create", "delete"]
    assert len(cloud.runs()) == 1


def test_a_run_under_way_is_found_and_not_started_twice(cloud):
    (cloud.folder / "script").write_text("wait\n0 0\n")
    first = cloud.start("run", *ELSEWHERE)
    try:
        until(lambda: cloud.runs(0) and cloud.runs(1))
    finally:
        first.terminate()
        _, err = first.communicate(timeout=30)
    assert first.returncode == 130
    assert "costs money" in err
    # The connection is gone, the run is not: the same command waits for it.
    assert "running" in cloud("status").stdout
    second = cloud.start("run", *ELSEWHERE)
    try:
        waited_for(second, "under way")
    finally:
        (cloud.folder / "go").touch()
        second.communicate(timeout=30)
    assert second.returncode == 0
    assert [len(cloud.runs(i)) for i in range(2)] == [1, 1]


def test_secrets_reach_the_run_and_no_command_line(cloud, tmp_path):
    secrets = tmp_path / "secrets.env"
    secrets.write_text("export HF_TOKEN=hf_secret\n")
    secrets.chmod(0o600)
    result = cloud("run", *ELSEWHERE, script=["0 0"], SECRETS_FILE=str(secrets))
    assert result.returncode == 0, result.stderr
    assert (cloud.folder / "tokens").read_text() == "token hf_secret\n" * 2
    assert (cloud.folder / "worker0/polyepo/secrets.env").stat().st_mode & 0o777 == 0o600
    assert "hf_secret" not in (cloud.bin / "gcloud.calls").read_text() + result.stdout + result.stderr


def test_deleting_can_be_repeated_and_says_what_is_left(cloud):
    for state in ("ACTIVE", None):
        result = cloud("delete", state=state)
        assert result.returncode == 0, result.stderr
        assert "polaris is deleted" in result.stderr
    assert cloud.did() == ["delete"]
    assert ["compute", "tpus", "tpu-vm", "list"] in [call[:4] for call in calls(cloud.bin, "gcloud")]


@pytest.mark.parametrize("task", [["delete"], ["all", *ELSEWHERE]])
def test_where_gcloud_does_not_answer_nothing_is_said_to_be_deleted(cloud, task):
    (cloud.folder / "list_fails").touch()
    result = cloud(*task, state="ACTIVE")
    assert result.returncode == 1
    assert "is deleted" not in result.stderr
    assert "may cost money" in result.stderr
    assert cloud.did() == []


def test_a_request_that_fails_is_told_and_not_repeated(cloud):
    (cloud.folder / "next_states").write_text("FAILED\n")
    result = cloud("run", *ELSEWHERE, script=["0 0"])
    assert result.returncode == 1
    assert "quota exceeded" in result.stderr
    assert cloud.did() == ["create"]


@pytest.mark.parametrize(("failures", "code", "starts"), [(2, 0, 2), (3, 1, 1)])
def test_a_request_that_fails_after_preemption_is_repeated(cloud, failures, code, starts):
    (cloud.folder / "next_states").write_text("ACTIVE\n" + "FAILED\n" * failures)
    result = cloud("run", *ELSEWHERE, script=["preempt", "0 0"], MAX_RESTARTS="3")
    assert result.returncode == code, result.stderr
    assert result.stderr.count("quota exceeded") == failures
    assert len(cloud.runs()) == starts


@pytest.mark.parametrize("left", ["SUSPENDED", "FAILED"])
def test_what_an_earlier_request_left_makes_room(cloud, left):
    result = cloud("create", state=left)
    assert result.returncode == 0, result.stderr
    assert cloud.did() == ["delete", "create"]


def test_an_installation_that_fails_does_not_cost_another_tpu(cloud):
    stand_in(cloud.bin, "make", "echo no such lock; exit 1")
    result = cloud("run", *ELSEWHERE, script=["0 0"])
    assert result.returncode == 1
    assert "could not be made ready in 3 tries" in result.stderr
    assert cloud.did() == ["create"]
    assert cloud.runs() == []


def waited_for(process, said):
    """What a script has said on stderr once it has said `said`."""
    text = ""
    while said not in text:
        line = process.stderr.readline()
        assert line, text
        text += line
    return text


def test_what_somebody_else_deletes_is_not_requested_again(cloud):
    (cloud.folder / "script").write_text("wait\n")
    process = cloud.start("run", *ELSEWHERE)
    until(lambda: cloud.runs(0) and cloud.runs(1))
    assert cloud("delete").returncode == 0
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "somebody has deleted polaris" in err
    assert cloud.did() == ["create", "delete"]


def test_a_healthy_tpu_that_this_machine_cannot_reach_is_left_alone(cloud):
    (cloud.folder / "script").write_text("unreachable\n")
    (cloud.folder / "then_no_ssh").write_text("0\n" * 9)
    process = cloud.start("run", *ELSEWHERE)
    said = waited_for(process, "The run is left alone")
    assert "Permission denied (publickey)" in said
    (cloud.folder / "go").touch()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert cloud.did() == ["create"]
    assert len(cloud.runs()) == 1


@pytest.mark.parametrize(("answers", "health"), [(0, "READY,UNHEALTHY_MAINTENANCE"), (0, "REPAIRING,"), (1, None)])
def test_a_tpu_that_is_unhealthy_or_answers_in_part_is_replaced(cloud, answers, health):
    if health is not None:
        (cloud.folder / "health").write_text(f"{health}\n")
    (cloud.folder / "then_no_ssh").write_text(f"{answers}\n" * 3)
    result = cloud("run", *ELSEWHERE, script=["unreachable", "0 0"])
    assert result.returncode == 0, result.stderr
    assert cloud.did() == ["create", "delete", "create"]


def test_a_deletion_that_is_refused_is_tried_again(cloud):
    (cloud.folder / "no_delete").write_text("no\n" * 2)
    result = cloud("run", *ELSEWHERE, script=["preempt", "0 0"])
    assert result.returncode == 0, result.stderr
    assert cloud.did() == ["create", "delete", "delete", "delete", "create"]
    (cloud.folder / "no_delete").write_text("no\n" * 9)
    result = cloud("delete")
    assert result.returncode == 1
    assert "may cost money" in result.stderr


def test_nothing_is_installed_over_a_run_under_way(cloud):
    (cloud.folder / "script").write_text("wait\n")
    process = cloud.start("run", *ELSEWHERE)
    try:
        until(lambda: cloud.runs(0) and cloud.runs(1))
        process.terminate()
        process.communicate(timeout=30)
        (cloud.folder / "no_ssh").write_text("0\n")  # so that the first question has no answer
        process = cloud.start("run", *ELSEWHERE)
        waited_for(process, "under way")
        result = cloud("install")
        assert result.returncode == 1
        assert "a run is under way: stop it before you install" in result.stderr
    finally:
        (cloud.folder / "go").touch()
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert len((cloud.folder / "pip.0").read_text().splitlines()) == 1
