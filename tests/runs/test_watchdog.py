"""Slow steps, on a clock that tests set; the threads of real processes: test_pod_faults.py."""

import concurrent.futures
import threading

import pytest

from polyepo_jax.runs.watchdog import Watchdog, stacks


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


class Store(dict):
    def set(self, key, value):
        self[key] = value

    def below(self, prefix):
        return {key.removeprefix(prefix): value for key, value in self.items() if key.startswith(prefix)}

    def delete(self, prefix):
        for key in [key for key in self if key.startswith(prefix)]:
            del self[key]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def reports():
    return []


def watchdog(clock, reports, factor=10.0, **options):
    return Watchdog(factor, reports.append, clock=clock, pause=clock.wait, **options)


def steps(dog, clock, *durations):
    for duration in durations:
        clock.wait(duration)
        dog.step_done(duration)


def elsewhere(call):
    """What it yields in another thread."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_a_step_of_ten_times_the_median_is_reported_once(clock, reports):
    dog = watchdog(clock, reports)
    steps(dog, clock, 90, 2, 2, 2)
    clock.wait(19)
    dog.look()
    assert reports == []
    clock.wait(1)
    for _ in range(3):
        elsewhere(dog.look)
    [report] = reports
    assert "taken 20 s so far, 10 times the median of 2 s" in report
    assert "--- process 0\nthread MainThread:" in report
    assert "test_watchdog.py" in report


def test_it_is_reported_again_when_twice_as_much_time_is_gone(clock, reports):
    dog = watchdog(clock, reports)
    steps(dog, clock, 2, 2, 2)
    for _ in range(95):
        clock.wait(1)
        dog.look()
    assert [report.split()[4] for report in reports] == ["20", "40", "80"]


def test_the_next_step_is_watched_anew(clock, reports):
    dog = watchdog(clock, reports)
    steps(dog, clock, 2, 2, 2)
    for _ in range(2):
        clock.wait(20)
        dog.look()
        dog.step_done(20)
    assert len(reports) == 2


def test_short_steps_may_take_ten_seconds(clock, reports):
    dog = watchdog(clock, reports)
    steps(dog, clock, *[0.01] * 5)
    clock.wait(9.9)
    dog.look()
    assert reports == []
    clock.wait(0.2)
    dog.look()
    assert len(reports) == 1


def test_the_first_steps_compile_and_have_half_an_hour(clock, reports):
    dog = watchdog(clock, reports)
    steps(dog, clock, 1, 1)
    clock.wait(1799)
    dog.look()
    assert reports == []
    clock.wait(1)
    dog.look()
    assert "this step has taken 1800 s so far, longer than one should" in reports[0]


def test_evaluating_and_saving_are_no_part_of_a_step(clock, reports):
    dog = watchdog(clock, reports)
    steps(dog, clock, 2, 2, 2)
    clock.wait(10)
    with dog.aside("save"):
        clock.wait(1000)
        dog.look()
    clock.wait(9)
    dog.look()
    assert reports == []
    clock.wait(1)
    dog.look()
    assert "this step has taken 20 s so far" in reports[0]
    with dog.aside("save"):
        clock.wait(1000)
    dog.look()
    assert len(reports) == 1  # of the step no more than before


def test_they_are_compared_with_their_like(clock, reports):
    dog = watchdog(clock, reports)
    steps(dog, clock, 2, 2, 2)
    for duration in (100, 100, 100, 999):
        with dog.aside("evaluation"):
            clock.wait(duration)
            dog.look()
        with dog.aside("save"):
            clock.wait(10)
            dog.look()
    assert reports == []
    with dog.aside("evaluation"):
        clock.wait(1000)
        dog.look()
    with dog.aside("save"):
        clock.wait(100)
        dog.look()
    assert [report.partition(" (")[0] for report in reports] == [
        "this evaluation has taken 1000 s so far, 10 times the median of 100 s",
        "this save has taken 100 s so far, 10 times the median of 10 s",
    ]


def test_all_processes_say_what_they_do_and_the_silent_are_named(clock, reports, monkeypatch):
    store = Store()
    dogs = [watchdog(clock, reports, process=i, num_processes=6, store=store) for i in range(6)]
    steps(dogs[0], clock, 2, 2, 2)
    clock.wait(20)
    doing = iter(["asks\n", *["waits\n"] * 3, "reads a disk\n"])
    monkeypatch.setattr("polyepo_jax.runs.watchdog.stacks", lambda: next(doing))
    real, asked = clock.wait, []

    def others_look(seconds):
        real(seconds)
        if not asked:
            asked.append(True)
            for dog in (dogs[1], dogs[2], dogs[3], dogs[5]):
                dog.look()
                dog.look()  # answers once

    dogs[0]._pause = others_look
    dogs[0].look()
    [report] = reports
    assert report.partition(":\n")[2] == (
        "--- process 0\nasks\n--- processes 1-3\nwaits\n--- process 5\nreads a disk\n--- no answer from process 4\n"
    )
    assert set(store) == {"polyepo/stacks/asked"}


def test_the_main_thread_comes_first_idle_workers_are_counted_and_a_flood_is_cut(monkeypatch):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        pool.submit(lambda: None).result()
        found = elsewhere(stacks)
    assert found.startswith("thread MainThread:")
    assert "idle workers" in found
    assert ", in _worker" not in found
    lines = ["line\n" * 10_000]
    monkeypatch.setattr("traceback.format_stack", lambda frame: lines)
    assert len(elsewhere(stacks)) < 16_100


def test_the_thread_reports_and_ends():
    reported = threading.Event()
    dog = Watchdog(10.0, lambda report: reported.set(), clock=(clock := Clock()))
    steps(dog, clock, 1, 1, 1)
    clock.wait(11)
    dog.start()
    try:
        assert reported.wait(30)
    finally:
        dog.close()
    assert not dog._thread.is_alive()


def test_a_factor_of_0_starts_nothing():
    dog = Watchdog(0.0, print)
    dog.start()
    dog.close()
    assert dog._thread.ident is None
