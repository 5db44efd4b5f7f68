"""Grades, and what becomes of failures: the generation's are worth nothing, ours are invalid."""

import contextlib
import dataclasses
import threading
from typing import ClassVar

import numpy as np
import pytest

from polyepo_jax.errors import GradeFailure, Interrupted
from polyepo_jax.grading import Grader, GradingStopped, JudgeConfig, decode, grade, join
from polyepo_jax.grading import grader as grading_module
from polyepo_jax.judges import Clusters
from polyepo_jax.model.tokenizer import CharacterTokenizer
from polyepo_jax.rewards.verdict import Verdict
from polyepo_jax.tasks import Math, Problem
from polyepo_jax.types import DEGENERATE, Rollouts

PROBLEMS = [Problem(0, "a", ""), Problem(1, "b", "")]


@dataclasses.dataclass(frozen=True)
class Scripted:
    """Rewards by a table; clusters by length."""

    name = "scripted"
    tokenizer = CharacterTokenizer("ab$", "$")

    def verify(self, problem, response):
        value = {"raise": RuntimeError("verifier lost"), "nan": float("nan"), "good": 1.0}.get(response, 0.0)
        if isinstance(value, Exception):
            raise value
        return value

    def cluster(self, problem, responses):
        if "crash" in responses:
            raise OSError("judge away")
        if "short" in responses:
            return [1]
        if "text" in responses:
            return ["x"] * len(responses)
        return [len(response) for response in responses]


def graded(first, second, truncated=None):
    truncated = np.zeros((2, len(first)), bool) if truncated is None else truncated
    return grade(Scripted(), PROBLEMS, [first, second], truncated)


def test_rewards_and_clusters():
    grading = graded(["good", "bad"], ["worse", "good"])
    np.testing.assert_array_equal(grading.grades.rewards_PN, [[1, 0], [0, 1]])
    np.testing.assert_array_equal(grading.grades.clusters_PN, [[4, 3], [5, 4]])
    assert np.all(grading.grades.valid_PN)
    assert grading.failures == ()


def test_a_truncated_generation_is_worth_nothing():
    grading = graded(["good", "good"], ["good", "raise"], np.array([[True, False], [False, True]]))
    np.testing.assert_array_equal(grading.grades.rewards_PN, [[0, 1], [1, 0]])
    assert np.all(grading.grades.valid_PN)


def test_a_verifier_that_fails_makes_one_generation_invalid():
    grading = graded(["raise", "good"], ["nan", "bad"])
    np.testing.assert_array_equal(grading.grades.valid_PN, [[False, True], [False, True]])
    assert grading.failures[0] == "verifying problem 0: RuntimeError: verifier lost"
    assert "must be finite" in grading.failures[1]


def test_a_clusterer_that_fails_makes_its_group_invalid():
    for culprit in ("crash", "short", "text"):
        grading = graded(["good", culprit], ["good", "bad"])
        np.testing.assert_array_equal(grading.grades.valid_PN, [[False, False], [True, True]])
        assert grading.failures[0].startswith("clustering problem 0")


def test_decoding_keeps_the_end_and_drops_the_padding():
    tokens = np.array([[[1, 2, 3, 0], [2, 0, 1, 1]]])
    mask = np.array([[[True, True, True, False], [True, True, True, True]]])
    rollouts = Rollouts(tokens, mask, np.zeros(tokens.shape), np.array([[False, True]]))
    assert decode(Scripted.tokenizer, rollouts) == [["ab$", "b\ufffdaa"]]


class Gate:
    """A judge whose calls wait to be let through; `clusters` says what each returns or raises, by problem id."""

    concurrency = 4

    def __init__(self, clusters):
        self.clusters, self.inside, self.opened = clusters, threading.Semaphore(0), threading.Event()
        self.asked = []

    def cluster(self, problem, responses):
        self.asked.append(problem.id)
        self.inside.release()
        assert self.opened.wait(60)
        result = self.clusters[problem.id]
        if isinstance(result, Exception):
            raise result
        return result


def submit(grader, problems, responses=("good", "bad")):
    return grader.submit(problems, [list(responses)] * len(problems), np.zeros((len(problems), len(responses)), bool))


def test_calls_run_beside_the_caller_and_results_keep_their_order():
    problems = [Problem(i, "p", "") for i in range(4)]
    gate = Gate({i: [i, 7 + i] for i in range(4)})
    with Grader(Scripted(), JudgeConfig(gate)) as grader:
        submitted = submit(grader, problems)
        for _ in problems:
            assert gate.inside.acquire(timeout=60), "submit returns, and all four calls are on their way"
        gate.opened.set()
        gradings = grader.collect(submitted)
    np.testing.assert_array_equal(join(gradings).grades.clusters_PN, [[i, 7 + i] for i in range(4)])
    np.testing.assert_array_equal(join(gradings).grades.rewards_PN, [[1, 0]] * 4)


def graded_with(config, num_problems=4):
    with Grader(Scripted(), config) as grader:
        return join(grader.collect(submit(grader, [Problem(i, "p", "") for i in range(num_problems)])))


@dataclasses.dataclass(frozen=True)
class FailsOn:
    """A judge that opens, counts, and fails on some problems."""

    problems: tuple[int, ...]
    failures = ("server_error", "timeout")
    counted = ("attempts", "shortened")

    @contextlib.contextmanager
    def open(self, where):
        yield self

    def cluster(self, problem, responses):
        if problem.id in self.problems:
            raise GradeFailure("timeout", "no reply", {"attempts": 3})
        return Clusters((5, 6), {"attempts": 1})


def test_failures_are_dropped_and_every_kind_is_counted():
    grading = graded_with(JudgeConfig(FailsOn((1, 3))))
    np.testing.assert_array_equal(grading.grades.valid_PN, [[True] * 2, [False] * 2] * 2)
    np.testing.assert_array_equal(grading.grades.clusters_PN[::2], [[5, 6]] * 2)
    metrics = grading.metrics()
    assert {
        name: metrics[name] for name in metrics if name.startswith(("judge/", "verifier/")) if not name.endswith("_s")
    } == {
        "judge/failure_frac": 0.5,
        "judge/failures/timeout": 2,
        "judge/failures/server_error": 0,
        "judge/attempts": 8,
        "judge/shortened": 0,
        "verifier/failure_frac": 0,
    }
    assert metrics["judge/latency_max_s"] >= metrics["judge/latency_s"] >= 0
    assert grading.failures == tuple(f"clustering problem {i}: no reply" for i in (1, 3))


def verify_nothing(problem, response):
    return 0.0


def test_answers_stand_in_for_a_judge_that_failed():
    config = JudgeConfig(FailsOn((0,)), on_failure="answers")
    boxes = ["so \\boxed{1}", "so \\boxed{2}", "as \\boxed{1.0}", "nothing"]
    with Grader(Math("", "", verifier=verify_nothing), config) as grader:
        (grading,) = grader.collect(submit(grader, [Problem(0, "p", "")], boxes))
    np.testing.assert_array_equal(grading.grades.clusters_PN, [[0, 1, 0, DEGENERATE]])
    assert np.all(grading.grades.valid_PN)
    assert grading.metrics()["judge/failure_frac"] == 1


def test_one_failure_stops_where_that_is_asked_for():
    with pytest.raises(GradingStopped, match="'stop': no reply"):
        graded_with(JudgeConfig(FailsOn((2,)), on_failure="stop"))


def test_the_breaker_stops_when_the_share_of_failures_passes_its_limit():
    config = JudgeConfig(FailsOn((0, 1, 2)), max_failure_frac=0.5, failure_window=4)
    with pytest.raises(GradingStopped, match=r"3 of the last 4 .* 0.5 allows; the last one: no reply"):
        graded_with(dataclasses.replace(config, clusterer=FailsOn((0, 2, 3))))
    graded_with(dataclasses.replace(config, clusterer=FailsOn((0, 3))))
    graded_with(dataclasses.replace(config, failure_window=5))  # fewer calls than the window say nothing yet
    with Grader(Scripted(), config) as grader:
        grader.collect(submit(grader, [Problem(i, "p", "") for i in (5, 0)]))
        with pytest.raises(GradingStopped):  # the window spans steps
            grader.collect(submit(grader, [Problem(i, "p", "") for i in (1, 2)]))


def test_calls_of_other_processes_count_too(monkeypatch):
    """Each of many makes too few calls to fill the window."""
    told = []

    def gather(value):
        told.append(value)
        # The other process has seen three failures, and nothing that ends it.
        return [value, [["judge", "no reply"]] * 3 if len(told) % 2 else [None, None]]

    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("polyepo_jax.pods.collectives.gather", gather)
    monkeypatch.setattr("polyepo_jax.pods.collectives.agreed", contextlib.nullcontext)
    config = JudgeConfig(FailsOn((0,)), max_failure_frac=0.5, failure_window=4)
    with pytest.raises(GradingStopped, match=r"3 of the last 4 judge calls failed.*the last one: no reply"):
        graded_with(config)
    assert sorted(outcome for caller, outcome in told[0] if caller == "judge" and outcome) == ["no reply"]


def test_once_stopped_no_further_call_is_made():
    problems = [Problem(i, "p", "") for i in range(40)]
    gate = Gate({i: OSError("down") for i in range(40)})
    gate.concurrency = 1
    gate.opened.set()
    with Grader(Scripted(), JudgeConfig(gate, failure_window=3)) as grader, pytest.raises(GradingStopped):
        grader.collect(submit(grader, problems))
    assert gate.asked == [0, 1, 2]


def test_a_judge_on_the_devices_is_asked_once_for_all_from_this_thread():
    class Batched:
        calls: ClassVar[list] = []

        def cluster_batch(self, problems, responses_PN):
            self.calls.append((threading.current_thread(), len(problems)))
            return [Clusters((p.id, 0)) if p.id != 1 else GradeFailure("cut_off", "too long") for p in problems]

        @contextlib.contextmanager
        def open(self, where):
            yield self

    with Grader(Scripted(), JudgeConfig(Batched())) as grader:
        grading = join(grader.collect(submit(grader, [Problem(i, "p", "") for i in range(3)])))
    assert Batched.calls == [(threading.main_thread(), 3)]
    np.testing.assert_array_equal(grading.grades.clusters_PN, [[0, 0], [0, 0], [2, 0]])
    np.testing.assert_array_equal(grading.grades.valid_PN, [[True] * 2, [False] * 2, [True] * 2])


def test_faults_of_responses_are_worth_nothing_and_counted_and_ours_are_invalid():
    class Verdicts(Scripted):
        verify_faults, verify_failures = ("deadline", "memory"), ("reference",)

        def verify(self, problem, response):
            if response == "ours":
                raise GradeFailure("reference", "unusable")
            return Verdict(0.0, "deadline") if response == "slow" else 1.0

    grading = grade(Verdicts(), PROBLEMS[:1], [["slow", "ours", "fine"]], np.zeros((1, 3), bool))
    np.testing.assert_array_equal(grading.grades.rewards_PN, [[0, 0, 1]])
    np.testing.assert_array_equal(grading.grades.valid_PN, [[True, False, True]])
    metrics = grading.metrics()
    assert metrics["verifier/failure_frac"] == pytest.approx(1 / 3)
    counts = {name: metrics[f"verifier/{name}"] for name in ("faults/deadline", "faults/memory", "failures/reference")}
    assert counts == {"faults/deadline": 1, "faults/memory": 0, "failures/reference": 1}


def test_a_judge_config_says_what_it_cannot_take():
    with pytest.raises(ValueError, match="max_failure_frac"):
        JudgeConfig(max_failure_frac=1.5)
    with pytest.raises(ValueError, match="failure_window"):
        JudgeConfig(failure_window=0)
    with pytest.raises(ValueError, match="clusterer must be a judge"):
        JudgeConfig("http://localhost")
    with pytest.raises(ValueError, match="instance, got the class FailsOn"):
        JudgeConfig(FailsOn)
    with pytest.raises(ValueError, match="needs a clusterer"):
        JudgeConfig(on_failure="answers")


def test_a_verifier_that_only_fails_stops_the_run():
    config = JudgeConfig(FailsOn(()), failure_window=6)
    with Grader(Scripted(), config) as grader, pytest.raises(GradingStopped, match="6 of the last 6 verifier calls"):
        grader.collect(submit(grader, [Problem(i, "p", "") for i in range(3)], ["raise", "nan"]))


@pytest.mark.parametrize("results", [[Clusters((5,))], [], OSError("no memory"), [Clusters((0, 1)), Clusters((0, 1))]])
def test_clusters_of_a_batch_that_do_not_fit_are_failures(results):
    class Batched:
        @contextlib.contextmanager
        def open(self, where):
            yield self

        def cluster_batch(self, problems, responses_PN):
            if isinstance(results, Exception):
                raise results
            return results

    with Grader(Scripted(), JudgeConfig(Batched())) as grader:
        (grading,) = grader.collect(submit(grader, [Problem(0, "p", "")]))
    assert not np.any(grading.grades.valid_PN)
    assert grading.counts["judge/failures/exception"] == 1


def test_a_run_that_is_asked_to_end_does_not_wait_for_its_judge(monkeypatch):
    monkeypatch.setattr(grading_module, "GRACE_S", 0.0)
    gate = Gate({0: [0, 0]})

    class Opened:
        @contextlib.contextmanager
        def open(self, where):
            yield gate
            gate.opened.set()  # as a judge that is closed lets go of its calls

    asked = threading.Event()
    with Grader(Scripted(), JudgeConfig(Opened()), stop_requested=asked.is_set) as grader:
        submitted = submit(grader, PROBLEMS[:1])
        asked.set()
        try:
            with pytest.raises(Interrupted, match="asked to end"):
                grader.collect(submitted)
        finally:
            gate.opened.set()


def test_a_run_that_gives_up_what_it_does_waits_for_no_verifier():
    released, ended = threading.Event(), threading.Event()

    class Slow(Scripted):
        def verify(self, problem, response):
            released.wait(60)
            ended.set()
            return 0.0

    try:
        with contextlib.suppress(Interrupted), Grader(Slow()) as grader:
            submit(grader, PROBLEMS[:1])
            raise Interrupted("a wave is done")
        assert not ended.is_set()
    finally:
        released.set()


def test_what_user_code_raises_is_one_short_line():
    class Verbose(Scripted):
        def verify(self, problem, response):
            raise SystemExit("\n".join(["no"] * 5000))

    grading = grade(Verbose(), PROBLEMS[:1], [["a"]], np.zeros((1, 1), bool))
    (line,) = grading.failures
    assert line.startswith("verifying problem 0: SystemExit: no no")
    assert len(line) < 700


def test_what_is_only_measured_is_never_stopped_by_failures():
    problems = [Problem(i, "p", "") for i in range(80)]
    grading = grade(Scripted(), problems, [["raise", "crash"]] * 80, np.zeros((80, 2), bool))
    assert len(grading.failures) == 160
    assert not np.any(grading.grades.valid_PN)
