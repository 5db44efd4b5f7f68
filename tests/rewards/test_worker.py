"""The worker's process by itself: what it may do, how it ends, and what it takes for the same."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from polyepo_jax.rewards import worker

TOWER = "9^{9^{9^{9^{9}}}}"


@pytest.mark.parametrize(
    ("gold", "answer", "outcome"),
    [
        ("x+1", "1+x", "same"),
        ("x+1", " 1+x. ", "same"),
        ("\\frac{1}{2}", "0.5", "same"),
        ("2\\sqrt{2}", "\\sqrt{8}", "same"),
        ("\\{1, 2\\}", "2, 1", "same"),
        ("x = 5", "5", "same"),
        ("25\\%", "0.25", "same"),
        ("(1, 2)", "(2, 1)", "different"),
        ("x+1", "x-1", "different"),
        ("x+1", "\\begin{cases}", "unparsable"),
        ("x+1", "\ud800", "unparsable"),
        ("\\frac{1}{", "1", "different"),
        ("\\frac{1}{", "\\frac{1}{", "same"),
        ("1.6 \\times 10^{-19}", "1.60 \\times 10^{-19}", "same"),
        ("1.6 \\times 10^{-19}", "3 \\times 10^{-19}", "different"),  # the same to six decimals
        ("1.6 \\times 10^{-19}", "0.0", "different"),
        ("0.0004", "0.00040", "same"),
        ("0.0004", "0.0004001", "different"),
    ],
)
def test_comparison(gold, answer, outcome):
    assert worker.compare(gold, answer, either_way=False) == outcome


def test_the_order_matters_but_not_between_equals():
    ways = [("5", "1 < x < 2"), ("(1, 2)", "1 < x < 2"), ("1 < x < 2", "(1, 2)"), ("x = 1", "1"), ("2x = 2", "1")]
    for one, other in ways:
        either = {worker.compare(*pair, either_way=True) for pair in ((one, other), (other, one))}
        ordered = [worker.compare(*pair, either_way=False) for pair in ((one, other), (other, one))]
        assert either == {"same" if "same" in ordered else "different"}
    assert worker.compare("(1, 2)", "1 < x < 2", either_way=False) == "different"
    assert worker.compare("(1, 2)", "1 < x < 2", either_way=True) == "same"


@pytest.mark.parametrize(("error", "outcome"), [(MemoryError, "memory"), (RecursionError, "unparsable")])
def test_what_a_comparison_raises_becomes_its_outcome(monkeypatch, error, outcome):
    def compare(*_):
        raise error

    monkeypatch.setattr(worker, "compare", compare)
    assert worker.answer_request({"verify": ["1", "2"]}) == outcome


def test_requests():
    assert worker.answer_request({"verify": ["x+1", "1+x"]}) == "same"
    assert worker.answer_request({"verify": ["(1, 2)", "1 < x < 2"]}) == "different"
    assert worker.answer_request({"equal": ["(1, 2)", "1 < x < 2"]}) == "same"
    assert worker.answer_request({"parse": "x+1"}) == "parsed"
    assert worker.answer_request({"parse": "\\frac{1}{"}) == "unparsable"


FORBIDDEN = [
    "open({canary!r}, 'w')",
    "open({canary!r}, 'a')",
    "open({canary!r}, 'x')",
    "open({existing!r}, 'r+')",
    "os.open({canary!r}, os.O_CREAT)",
    "open({existing!r})",
    "open('/proc/self/environ')",
    "os.mkdir({canary!r})",
    "os.remove({existing!r})",
    "os.rename({existing!r}, {canary!r})",
    "os.system('touch {canary}')",
    "os.execv('/bin/touch', ['touch', {canary!r}])",
    "os.fork()",
    "os.kill(1, 0)",
    "subprocess.run(['touch', {canary!r}])",
    "socket.socket()",
    "socket.getaddrinfo('localhost', 80)",
    "ctypes.CDLL(None)",
    "shutil.rmtree({existing!r})",
    "eval('1 + 1')",
    "exec('x = 1')",
    "compile('1', '<string>', 'eval')",
    "sympy.sympify('x + 1')",
]


def test_a_confined_process_can_harm_nothing(tmp_path):
    existing, canary = tmp_path / "existing", tmp_path / "canary"
    existing.write_text("text")
    attempts = [line.format(existing=str(existing), canary=str(canary)) for line in FORBIDDEN]
    thunks = "\n".join(f"    ({line!r}, lambda: {line})," for line in attempts)
    script = f"""
import ctypes, json, os, shutil, socket, subprocess, sys, sympy
from polyepo_jax.rewards import worker
thunks = [
{thunks}
]
worker.compare("x^2+2x+1", "(x+1)^2", False)
worker.confine()
passed = []
for line, thunk in thunks:
    try:
        thunk()
        passed.append(line)
    except PermissionError as error:
        if not str(error).endswith("in a worker"):
            passed.append(line + str(error))
integral = ("\\\\int_0^1 x dx", "\\\\frac{{1}}{{2}} + 0")  # imports more than what came before
fraction = ("\\\\frac{{1}}{{a+b}} + \\\\frac{{1}}{{c+d}}", "\\\\frac{{a+b+c+d}}{{(a+b)(c+d)}}")
outcomes = [worker.compare(*pair, False) for pair in (("x+1", "1+x"), ("1.25", "5/4"), integral, fraction, ("3", "4"))]
print(json.dumps([passed, outcomes]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, cwd=os.getcwd())
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == [[], ["same"] * 4 + ["different"]]
    assert existing.read_text() == "text"
    assert not canary.exists()


def test_all_that_is_rewarded_needs_neither_jax_nor_numpy_in_the_worker():
    script = (
        "import sys; from polyepo_jax.rewards import worker; worker.compare('x+1', '1+x', False); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    modules = set(done.stdout.split())
    assert "sympy" in modules
    assert not {"jax", "jaxlib", "numpy", "flax", "polyepo_jax.types", "polyepo_jax.rewards.math"} & modules


@pytest.fixture
def channel():
    """A worker that was started by hand, with a short deadline, and a socket to it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = [sys.executable, "-m", "polyepo_jax.rewards.worker", str(theirs.fileno()), "0.2", "1024"]
        process = subprocess.Popen(arguments, pass_fds=[theirs.fileno()])
        theirs.close()
        ours.settimeout(60)
        with ours.makefile("rb") as replies:
            assert json.loads(replies.readline()) == {"outcome": "ready", "spent": False}
            yield ours, replies, process
        process.kill()
        process.wait()


def test_the_worker_ends_with_its_parent(channel):
    ours, _, process = channel
    ours.shutdown(socket.SHUT_RDWR)
    assert process.wait(60) == 0


def test_a_worker_that_hangs_ends_although_its_parent_is_gone(channel):
    ours, _, process = channel
    ours.sendall(json.dumps({"verify": ["42", TOWER]}).encode() + b"\n")
    ours.shutdown(socket.SHUT_RDWR)
    assert process.wait(60) == -signal.SIGALRM


def test_the_worker_answers_in_lines(channel):
    ours, replies, _ = channel
    for request, outcome in (({"verify": ["x+1", "1+x"]}, "same"), ({"parse": "\ud800 {"}, "unparsable")):
        ours.sendall(json.dumps(request).encode() + b"\n")
        assert json.loads(replies.readline()) == {"outcome": outcome, "spent": False}
