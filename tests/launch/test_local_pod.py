"""The pod on one machine, with a module of its own in place of the training command."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launch.scripts import (
    AWKWARD,
    LAUNCH,
    environment,
    finish,
    until,
)

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
