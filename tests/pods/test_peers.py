"""The watch over other processes, with a store in this process; with real ones: test_pod_faults.py."""

import threading
import time

import jax
import pytest

from polyepo_jax import errors
from polyepo_jax.errors import RUN_AGAIN, InputError, RunError, TransientError
from polyepo_jax.pods import peers
from polyepo_jax.pods.peers import Peers, Signs

TIMEOUT_S = 6


class Left(BaseException):
    """This process would be gone."""


class Gone(jax.errors.JaxRuntimeError):
    """What the real store raises without process 0."""


class Store:
    def __init__(self):
        self.values = {}
        self.gone = False
        self.hangs = False

    def _check(self):
        assert not self.hangs, "this would never return"
        if self.gone:
            raise Gone("UNAVAILABLE: failed to connect to all addresses")

    def set(self, key, value):
        self._check()
        self.values[key] = value

    def get(self, key):
        self._check()
        return self.values.get(key)

    def barrier(self, key, timeout_ms):
        self._check()
        self.values[f"barrier/{key}"] = ""

    def below(self, prefix):
        self._check()
        return {key.removeprefix(prefix): value for key, value in self.values.items() if key.startswith(prefix)}


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def pod(store):
    """Peers of three processes; each says how it left."""
    left = {}

    def peer(process):
        def leave(status, line):
            left[process] = (status, line)
            raise Left

        # While one waits, the others live on.
        return Peers(store, process, 3, TIMEOUT_S, leave, lambda seconds: live(), within)

    def within(seconds, call):
        if not store.hangs:
            call()

    alive = {0, 1, 2}
    all_peers = [peer(process) for process in range(3)]
    busy = []

    def live():
        if busy:
            return
        busy.append(True)
        for process in sorted(alive - left.keys(), reverse=True):
            if not all_peers[process]._ending.locked():
                look(process)
        busy.clear()

    def look(process):
        try:
            all_peers[process].tell_and_look()
        except Left:
            alive.discard(process)

    class Pod:
        peers = all_peers

        @staticmethod
        def freeze(process):
            alive.discard(process)

        @staticmethod
        def thaw(process):
            alive.add(process)

        @staticmethod
        def live(times):
            for _ in range(times):
                live()

    Pod.left = left
    return Pod


def test_silence_is_counted_in_looks():
    signs = Signs({1, 2})
    for look in range(4):
        signs.look({1: str(look), 2: "0"})
    assert signs.silent(3) == [2]
    assert signs.silent(4) == []
    signs.look({1: "4", 2: "1"})
    assert signs.silent(1) == []
    for _ in range(2):
        signs.look({})  # one that never was there is silent too
    assert signs.silent(2) == [1, 2]


def test_as_long_as_all_live_nothing_happens(pod):
    pod.live(5 * TIMEOUT_S)
    assert pod.left == {}


@pytest.mark.parametrize("lost", [1, 2])
def test_a_silent_process_is_lost_and_all_say_so(pod, lost):
    pod.live(2)
    pod.freeze(lost)
    pod.live(TIMEOUT_S - 1)
    assert pod.left == {}
    pod.live(3)
    reason = f"lost process {lost} of 3 (no sign of life for 6 s)"
    assert pod.left == {
        0: (RUN_AGAIN, f"process 0: {reason}"),
        3 - lost: (RUN_AGAIN, f"process 0 ended the run: {reason}"),
    }


def test_several_lost_are_all_named(pod):
    pod.live(1)
    pod.freeze(1)
    pod.freeze(2)
    pod.live(TIMEOUT_S + 2)
    assert "lost processes 1, 2 of 3" in pod.left[0][1]


def test_a_short_silence_is_forgiven(pod):
    for _ in range(3):
        pod.freeze(1)
        pod.live(TIMEOUT_S - 1)
        pod.thaw(1)
        pod.live(1)
    assert pod.left == {}


def test_the_others_watch_process_0(pod):
    pod.live(2)
    pod.freeze(0)
    pod.live(TIMEOUT_S + 1)
    assert {status for status, _ in pod.left.values()} == {RUN_AGAIN}
    assert pod.left.keys() == {1, 2}
    assert "lost process 0 of 3" in pod.left[1][1]


def test_a_store_that_hangs_is_a_lost_process_0(pod, store):
    pod.live(1)
    store.hangs = True
    for _ in range(TIMEOUT_S):
        pod.peers[2].count_unanswered()
    with pytest.raises(Left):
        pod.peers[2].count_unanswered()
    assert pod.left[2] == (RUN_AGAIN, "process 2: lost process 0 of 3 (no answer for 6 s)")
    for _ in range(3 * TIMEOUT_S):
        pod.peers[0].count_unanswered()  # keeps it itself


def test_answers_start_the_count_anew(pod):
    for _ in range(3):
        for _ in range(TIMEOUT_S):
            pod.peers[1].count_unanswered()
        pod.peers[1].tell_and_look()
    assert pod.left == {}


@pytest.mark.parametrize(("error", "status"), [(InputError("no such file"), 2), (RunError("too many NaN"), 1)])
def test_an_error_ends_all_with_its_status(pod, capfd, error, status):
    with pytest.raises(Left):
        pod.peers[2].part(error, status)
    pod.live(2)
    assert pod.left[2] == (status, "")
    assert pod.left[0] == pod.left[1] == (status, f"process 2 ended the run: {error}")
    assert "Traceback" not in capfd.readouterr().err


def test_an_unforeseen_error_is_shown_in_full(pod, capfd):
    try:
        raise ZeroDivisionError("of what")
    except ZeroDivisionError as error:
        with pytest.raises(Left):
            pod.peers[1].part(error, 1)
    assert "test_peers.py" in capfd.readouterr().err
    assert pod.left[1] == (1, "")


@pytest.mark.parametrize("error", [ValueError("UNKNOWN: Gloo AllGather failed"), Gone("INTERNAL: a peer has closed")])
@pytest.mark.parametrize("lost", [0, 1])
def test_where_a_collective_fails_the_silent_one_is_to_blame(pod, capfd, error, lost):
    pod.live(1)
    pod.freeze(lost)
    with pytest.raises(Left):
        pod.peers[2].part(error, 1)
    assert pod.left[2][0] == RUN_AGAIN
    assert f"lost process {lost} of 3" in pod.left[2][1]
    assert "Traceback" not in capfd.readouterr().err


def test_the_runtime_may_have_failed_below_another_error(pod):
    pod.live(1)
    pod.freeze(1)
    try:
        try:
            raise ValueError("UNKNOWN: Gloo AllGather failed")
        except ValueError as cause:
            raise OSError("nothing was saved") from cause
    except OSError as error:
        with pytest.raises(Left):
            pod.peers[2].part(error, 1)
    assert pod.left[2][0] == RUN_AGAIN


def test_a_store_that_hangs_keeps_nobody():
    held = threading.Event()
    started = time.monotonic()
    peers._within(0.1, held.wait)
    held.set()
    assert time.monotonic() - started < 60


def test_where_a_collective_fails_without_a_store_process_0_is_to_blame(pod, store):
    store.gone = True
    with pytest.raises(Left):
        pod.peers[1].part(Gone("INTERNAL: a peer has closed"), 1)
    assert pod.left[1] == (RUN_AGAIN, "process 1: lost process 0 of 3 (it does not answer)")


def test_a_runtime_error_with_all_alive_is_its_own(pod, capfd):
    with pytest.raises(Left):
        pod.peers[1].part(Gone("RESOURCE_EXHAUSTED: out of memory"), 1)
    assert pod.left[1] == (1, "")
    assert "Gone: RESOURCE_EXHAUSTED" in capfd.readouterr().err


def test_the_first_to_end_decides(pod):
    with pytest.raises(Left):
        pod.peers[1].part(RunError("first"), 1)
    with pytest.raises(Left):
        pod.peers[2].part(InputError("second"), 2)
    assert pod.left[2] == (1, "process 1 ended the run: first")


def test_at_the_end_all_wait_for_all_and_the_watch_is_over(pod, store):
    peer = pod.peers[0]
    peer.start()
    peer.finish()
    assert "barrier/polyepo/finished" in store.values
    assert not any(thread.is_alive() for thread in peer._threads)
    assert pod.left == {}


def test_a_signal_to_one_is_heard_by_all(pod):
    pod.live(2)
    assert not any(peer.stop_requested for peer in pod.peers)
    pod.peers[2].request_stop()
    pod.live(2)
    assert all(peer.stop_requested for peer in pod.peers)
    assert pod.left == {}


@pytest.mark.parametrize("name", [peers.TIMEOUT, peers.JOIN_TIMEOUT])
@pytest.mark.parametrize("value", ["soon", "1", "inf", "nan", "-5"])
def test_a_timeout_that_is_none_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=rf"{name} must be a number of seconds, at least 2, got '{value}'"):
        peers.start({})


def test_a_process_by_itself_has_no_peers(monkeypatch):
    monkeypatch.setattr(errors, "part_with", None)
    peers.start({})
    assert not peers.stop_requested()
    peers.request_stop()
    assert not peers.stop_requested()


def test_commands_part_from_their_peers_on_every_error(monkeypatch, capsys):
    parted = []
    monkeypatch.setattr(errors, "_part", lambda error, status: parted.append((str(error), status)))
    all_errors = InputError("a"), RunError("b"), TransientError("c"), KeyError("d"), KeyboardInterrupt("e")
    for error, status in zip(all_errors, (2, 1, 75, 1, 130), strict=True):

        def main(arguments, error=error):
            raise error

        with pytest.raises(SystemExit) as exited:
            errors.run_command(main, [])
        assert exited.value.code == status
    assert [status for _, status in parted] == [2, 1, 75, 1, 130]
    assert "error: a" in capsys.readouterr().err
