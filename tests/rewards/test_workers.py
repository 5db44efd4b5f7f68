"""The pool: processes that hang, die or never start cost one request at most, and never a thread."""

import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polyepo_jax.errors import GradeFailure
from polyepo_jax.rewards import workers
from polyepo_jax.rewards.workers import WorkerPool

HANG = {"verify": ["42", "9^{9^{9^{9^{9}}}}"]}
RIGHT = {"verify": ["x+1", "1+x"]}
WRONG = {"verify": ["x+1", "x-1"]}

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at processes in /proc")


@pytest.fixture(scope="module")
def patient():
    """Two workers that have as long as they need."""
    pool = WorkerPool(2, 60, 1024)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def hasty():
    pool = WorkerPool(2, 0.5, 1024)
    yield pool
    pool.close()


def children() -> set[int]:
    """Worker processes of this one, those included of which nobody has taken the exit status."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        process = Path("/proc", name)
        try:
            text = (process / "status").read_text()
            line = (process / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile; Path.glob would raise ProcessLookupError here
            continue
        is_worker = b"polyepo_jax.rewards.worker" in line or "State:\tZ" in text
        if f"PPid:\t{os.getpid()}\n" in text and is_worker:
            found.add(int(name))
    return found


def warm(pool):
    """All workers have started and are idle, the first in `pids` being the next to be asked."""
    assert {pool.call(RIGHT) for _ in pool._workers} == {"same"}
    for _ in pool._workers:
        pool._idle.get(timeout=0)
    for worker in pool._workers:
        pool._idle.put(worker)
    return pool.pids


def test_nothing_starts_before_the_first_call_and_nothing_stays():
    before = children()
    pool = WorkerPool(2, 60, 1024)
    assert pool.pids == ()
    pool.close()
    assert pool.call(RIGHT) == "same"
    pids = pool.pids
    assert len(pids) == 2
    assert children() == before | set(pids)
    pool.close()
    assert pool.pids == ()
    assert children() == before
    assert pool.call(WRONG) == "different"
    assert not set(pids) & set(pool.pids)
    pool.close()
    assert children() == before


def test_workers_are_confined_processes_without_jax(patient, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "secret")
    pool = WorkerPool(1, 60, 777)
    assert pool.call(RIGHT) == "same"
    (pid,) = pool.pids
    try:
        assert resource.prlimit(pid, resource.RLIMIT_AS) == (777 * 2**20,) * 2
        for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC):
            assert resource.prlimit(pid, limit) == (0, 0)
        process = Path(f"/proc/{pid}")
        assert b"secret" not in (process / "environ").read_bytes()
        assert not re.search("jaxlib|libxla|numpy", (process / "maps").read_text())
        assert os.readlink(process / "fd" / "2") == os.devnull
        assert os.getsid(pid) == pid
    finally:
        pool.close()


def test_a_late_worker_is_replaced(hasty):
    (first, second) = warm(hasty)
    assert hasty.call(HANG) == "deadline"
    assert second in hasty.pids
    assert first not in hasty.pids
    assert not Path(f"/proc/{first}").exists()
    assert len(warm(hasty)) == 2


def test_hung_requests_do_not_eat_the_pool(hasty):
    requests = [HANG, RIGHT, HANG, WRONG, RIGHT, HANG, HANG, WRONG]
    expected = {id(HANG): "deadline", id(RIGHT): "same", id(WRONG): "different"}
    most = 0

    def ask(request):
        nonlocal most
        outcome = hasty.call(request)
        most = max(most, len(children() & set(hasty.pids)), len(hasty.pids))
        return outcome

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, requests)) == [expected[id(request)] for request in requests]
    assert most <= 2


def test_order_is_kept_and_processes_are_as_many_as_said(patient):
    before = children() - set(patient.pids)
    requests = [{"verify": [f"x+{i}", f"{i if i % 3 else -1}+x"]} for i in range(60)]
    seen = set()

    def ask(request):
        outcome = patient.call(request)
        seen.update(children() - before)
        return outcome

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(ask, requests))
    assert outcomes == ["same" if i % 3 else "different" for i in range(60)]
    assert len(seen) == 2


def test_a_request_whose_worker_is_killed_goes_to_another(patient):
    (first, second) = warm(patient)
    os.kill(first, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        outcome = threads.submit(patient.call, RIGHT)
        os.kill(first, signal.SIGKILL)
        assert outcome.result() == "same"
    assert second in patient.pids
    assert first not in patient.pids
    assert len(warm(patient)) == 2


def test_two_lost_workers_are_our_failure(patient):
    pids = warm(patient)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(GradeFailure, match="two workers were lost on an answer") as caught:
        patient.call(RIGHT)
    assert caught.value.kind == "worker_lost"
    assert not set(pids) & set(warm(patient))


def test_an_interrupted_request_is_not_answered_by_the_next_one(patient, monkeypatch):
    warm(patient)
    worker = patient._workers[0]
    process = worker.start()

    def interrupted(line, seconds):
        process._channel.sendall(line)
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.ask(RIGHT)
    assert worker.process is not process
    assert worker.ask(WRONG) == "different"


def replace_channel(worker):
    """Cuts a process off, and returns the other end of what the pool takes for the line to it."""
    process = worker.process
    process._channel.close()
    process._channel, theirs = socket.socketpair()
    process._files.enter_context(process._channel)
    return theirs


class Impostor(threading.Thread):
    """Speaks for a worker that was taken over."""

    def __init__(self, worker, reply):
        super().__init__()
        self._theirs = replace_channel(worker)
        self._reply = reply
        self.start()

    def run(self):
        with self._theirs:
            self._theirs.recv(1000)
            self._theirs.sendall(self._reply)


@pytest.mark.parametrize(
    "reply",
    [
        b"\n",
        b"same\n",
        b"[]\n",
        b'{"outcome": 1, "spent": false}\n',
        b'{"outcome": "same"}\n',
        b"\xff\n",
        b'{"outcome": "same", "spent": false' + b" " * 200 + b"}\n",
        b"x" * 100_000,
        b"x" * 10,
        b"",
    ],
)
def test_a_worker_that_talks_nonsense_is_lost(patient, reply):
    warm(patient)
    worker = patient._workers[0]
    first = worker.process.pid
    impostor = Impostor(worker, reply)
    assert patient.call(RIGHT) == "same"
    impostor.join()
    assert first not in patient.pids


def test_part_of_a_reply_does_not_hold_up_the_parent(hasty):
    warm(hasty)
    worker = hasty._idle.get()
    with replace_channel(worker) as theirs:
        theirs.sendall(b'{"outcome": "sa')
        assert worker.ask(RIGHT) == "deadline"
    hasty._idle.put(worker)
    assert len(warm(hasty)) == 2


def test_a_worker_whose_memory_is_nearly_gone_is_replaced():
    pool = WorkerPool(1, 60, 100)  # of which it takes more than half for itself
    assert pool.call(RIGHT) == "same"
    first = pool.pids
    assert pool.call(WRONG) == "different"
    assert pool.pids != first
    pool.close()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("#!/bin/sh\necho some warning >&2\necho no module named sympy >&2\nexit 1\n", r"\(no module named sympy\)"),
        ("#!/bin/sh\nexit 0\n", r"\((EOFError: the worker ended|BrokenPipeError.*)\)"),
        (None, r"FileNotFoundError"),
    ],
)
def test_workers_that_do_not_start_are_our_failure(monkeypatch, tmp_path, script, message):
    path = tmp_path / "python"
    if script is not None:
        path.write_text(script)
        path.chmod(0o700)
    pool = WorkerPool(2, 60, 1024)
    monkeypatch.setattr(workers.sys, "executable", str(path))
    for _ in range(3):
        with pytest.raises(GradeFailure, match=message) as caught:
            pool.call(RIGHT)
        assert caught.value.kind == "worker_start"
    monkeypatch.undo()
    assert [pool.call(RIGHT) for _ in range(2)] == ["same", "same"]
    pool.close()


def test_a_start_has_its_own_limit(monkeypatch, tmp_path):
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\nexec sleep 100\n")
    path.chmod(0o700)
    monkeypatch.setattr(workers, "START_LIMIT_S", 0.1)
    monkeypatch.setattr(workers.sys, "executable", str(path))
    pool = WorkerPool(1, 60, 1024)
    with pytest.raises(GradeFailure, match="TimeoutError") as caught:
        pool.call(RIGHT)
    assert caught.value.kind == "worker_start"
    assert pool.pids == ()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes that are not its children")
@pytest.mark.parametrize("end", ["kill", "exit"])
def test_workers_end_with_their_parent(end):
    script = """
from polyepo_jax.rewards.math import MathVerifier
verifier = MathVerifier(num_workers=2)
assert verifier.equal("x+1", "1+x")
print(*verifier.pids, flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-W", "error", "-c", script], stdin=-1, stdout=-1, stderr=-1) as parent:
        handles = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(handles) == 2
        if end == "kill":
            parent.kill()
        _, errors = parent.communicate(b"\n" if end == "exit" else None)
    assert errors == b""
    for handle in handles:
        assert select.select([handle], [], [], 60)[0], "the worker is still there"
        os.close(handle)
