"""Signals while the main thread is in C code; those of a whole run: test_train.py, of a pod: test_pods.py."""

import os
import signal
import subprocess
import sys

import pytest

from polyepo_jax.runs import signals
from tests.pod import ROOT, wait_until

# Hashes for hours, in one call of C code.
BUSY = """
import hashlib, os, sys
from polyepo_jax.runs import signals

def told(number):
    open(sys.argv[1], "a").write(f"{number}\\n")

with signals.heeded(told):
    open(sys.argv[1], "a").close()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heard_at_once_and_the_second_ends(tmp_path, first):
    heard = tmp_path / "heard"
    with subprocess.Popen([sys.executable, "-c", BUSY, str(heard)], cwd=ROOT) as process:
        try:
            wait_until(heard.exists, "the start")
            process.send_signal(first)
            wait_until(lambda: heard.read_text() == f"{first.value}\n", "that it is heard")
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()


def test_afterwards_signals_are_what_they_were():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    heard: list[int] = []
    with signals.heeded(heard.append):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: bool(heard), "that it is heard")
    assert heard == [signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before
    with signals.heeded(heard.append):
        pass
    assert heard == [signal.SIGTERM]


def test_a_process_that_listens_tells_whoever_is_in_charge(monkeypatch):
    first: list[int] = []
    second: list[int] = []
    monkeypatch.setattr(signals, "_listener", None)
    signals.listen(first.append)
    listener = signals._listener
    try:
        with signals.heeded(second.append):
            os.kill(os.getpid(), signal.SIGINT)
            wait_until(lambda: bool(second), "that it is heard")
        assert (first, second) == ([], [signal.SIGINT])
    finally:
        listener.close()


def test_after_the_run_a_first_signal_changes_nothing(monkeypatch):
    told: list[int] = []
    monkeypatch.setattr(signals, "_listener", None)
    signals.listen(told.append)
    listener = signals._listener
    try:
        with signals.heeded(told.append):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        listener.close()  # once all was heard
    assert told == []
