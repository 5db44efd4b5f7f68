"""Rollouts in, grades out: decode, verify, cluster. On the host, beside the devices.

A `Grader` takes each wave of prompts as soon as it is sampled and grades it in threads while the next is sampled; the
step waits for what is left at its end. What fails on our side becomes an invalid grade, is counted, and is never made
up.
"""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

import jax
import numpy as np

from polyepo_jax.errors import GradeFailure, InputError, Interrupted
from polyepo_jax.grading.calls import call_judge, checked_verdict, judge_that_returns, one_line, to_failure
from polyepo_jax.grading.failures import Failures
from polyepo_jax.grading.grades import Grading, join
from polyepo_jax.grading.judge_config import BY_THE_TASK, JudgeConfig
from polyepo_jax.judges.judge import Clusters, Surroundings
from polyepo_jax.pods import collectives
from polyepo_jax.rewards.verdict import Verdict
from polyepo_jax.tasks import Problem
from polyepo_jax.types import Grades

GRACE_S = 10.0  # for the calls under way when a run is asked to end: machines are taken away half a minute later


class Gradable(Protocol):
    """What grading asks of a Task."""

    def verify(self, problem: Problem, response: str) -> float | Verdict: ...
    def cluster(self, problem: Problem, responses: Sequence[str]) -> Sequence[int]: ...


class GradingStopped(Exception):
    """Grading cannot go on, and neither can the run; what was done before is worth a checkpoint."""


@dataclasses.dataclass(frozen=True)
class _Judged:
    """What came of one judge call, and the seconds it took."""

    result: Clusters | GradeFailure
    seconds: float
    instead: Clusters | GradeFailure | None = None  # what the task makes of the group, where it is to step in


@dataclasses.dataclass(frozen=True)
class Submitted:
    """One prompt's responses, and the calls that grade them; no `judged` where the judge takes all at once.

    by_task: those of the calls that are the task's own.
    """

    problem: Problem
    responses: Sequence[str]
    verdicts: Future
    judged: Future | None
    by_task: tuple[Future, ...]


class Grader:
    """Grades responses in threads of its own. Use as a context manager, from one thread.

    Args:
      task: verifies, and clusters where the config names no clusterer. Its `verify_concurrency` says how many threads
        may verify, or cluster, at a time (1 if it has none), `verify_faults` and `verify_failures` what they can count.
      config: the judge.
      where: the judge works.
      stop_requested: whether the run is asked to end; grading then has GRACE_S seconds left.
    """

    def __init__(
        self,
        task: Gradable,
        config: JudgeConfig | None = None,
        where: Surroundings | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ):
        self._task, self._config = task, config or JudgeConfig()
        self._where = where or Surroundings()
        self._clusterer: Any = task if self._config.clusterer is None else self._config.clusterer
        self._stop_requested = stop_requested
        self._failures = Failures(self._config)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Grader":
        """Opens the judge.

        Raises:
          InputError: it cannot work.
        """
        judge = self._clusterer
        with contextlib.ExitStack() as opened, contextlib.ExitStack() as stack:
            # Together: a cache is read before another process can write to it.
            with collectives.agreed():
                if hasattr(judge, "open"):
                    try:
                        judge = opened.enter_context(judge.open(self._where))
                    except ValueError as error:
                        raise InputError(f"judge.clusterer: {error}") from error
            self._cluster_batch: Callable | None = getattr(judge, "cluster_batch", None)
            self._cluster: Callable = getattr(judge, "cluster", judge)
            verify_concurrency = getattr(self._task, "verify_concurrency", 1)
            own = verify_concurrency if judge is self._task else 1
            self._judging = _threads(stack, "judge", getattr(judge, "concurrency", own))
            self._verifying = _threads(stack, "verify", verify_concurrency)
            stack.enter_context(opened.pop_all())  # closed first: threads that wait for the judge end with it
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._failures.stopped = self._failures.stopped or "grading was given up"  # calls that wait return at once
        self._stack.__exit__(*exception)

    @property
    def has_judge(self) -> bool:
        """Whether another than the task clusters."""
        return self._config.clusterer is not None

    def submit(
        self, problems: Sequence[Problem], responses: Sequence[Sequence[str]], truncated_PN: np.ndarray
    ) -> list[Submitted]:
        """Starts to grade N responses to each problem, and returns at once; `collect` has the grades."""
        submitted = []
        for problem, texts, truncated_N in zip(problems, responses, truncated_PN, strict=True):
            verdicts = self._verifying.submit(self._verify, problem, texts, truncated_N)
            judged = None if self._cluster_batch is not None else self._judging.submit(self._judge, problem, texts)
            by_task = (verdicts,) if judged is None or self.has_judge else (verdicts, judged)
            submitted.append(Submitted(problem, texts, verdicts, judged, by_task))
        return submitted

    def collect(self, submitted: Sequence[Submitted]) -> list[Grading]:
        """The grades of each problem that was submitted, in their order, once all are there.

        Of several processes each collects what it submitted, at the same point; they end together if one has to.

        A truncated response has reward 0. A failure of ours (an exception in verifier or judge, a reward that is not
        finite, a wrong number of cluster ids) makes the generation, or the group, invalid; no grade is made up.

        Raises:
          GradingStopped: judge or verifier failed too often, or the judge at all where `on_failure` is "stop".
          Interrupted: the run is asked to end, and this takes too long.
        """
        interrupted = self._wait(
            [future for group in submitted for future in (group.verdicts, group.judged) if future is not None]
        )
        self._end_together(interrupted)
        if self._cluster_batch is None:
            judged = [group.judged.result() for group in submitted if group.judged is not None]
        else:
            judged = self._judge_batch(self._cluster_batch, submitted)
            self._end_together(None)
        return [self._to_grading(group, outcome) for group, outcome in zip(submitted, judged, strict=True)]

    def _wait(self, futures: Sequence[Future]) -> str | None:
        """Why this was not waited for until the end, if so."""
        requested_at = None
        while wait(futures, timeout=1.0).not_done:
            if requested_at is None and self._stop_requested():
                requested_at = time.perf_counter()
            if requested_at is not None and time.perf_counter() - requested_at >= GRACE_S:
                self._failures.stopped = "the run was asked to end"
                return f"grading took more than {GRACE_S:.0f} s after the run was asked to end"
        return None

    def _end_together(self, interrupted: str | None) -> None:
        """Raises in every process what one of them has to raise."""
        if jax.process_count() > 1:
            self._failures.hear_others()
        for interruption, stop in collectives.gather([interrupted, self._failures.stopped]):
            if interruption is not None:
                raise Interrupted(interruption)
            if stop is not None:
                raise GradingStopped(stop)

    def _verify(self, problem: Problem, responses: Sequence[str], truncated_N: np.ndarray) -> list[Any]:
        """A Verdict or GradeFailure for each response; of a truncated one nobody is asked."""

        def verify(response: str) -> Verdict | GradeFailure:
            if self._failures.stopped is not None:
                return GradeFailure("stopped", self._failures.stopped)
            result: Verdict | GradeFailure
            try:
                result = checked_verdict(self._task.verify(problem, response))
            except (Exception, SystemExit) as error:  # the user's code: a failed grade, whatever it raises
                result = to_failure(error)
            self._failures.watch("verifier", result)
            return result

        return [Verdict(0.0) if cut else verify(text) for text, cut in zip(responses, truncated_N, strict=True)]

    def _judge(self, problem: Problem, responses: Sequence[str]) -> _Judged:
        started = time.perf_counter()
        if self._failures.stopped is not None:
            return _Judged(GradeFailure("stopped", self._failures.stopped), 0.0)
        result = call_judge(self._cluster, problem, responses)
        self._failures.watch("judge", result)
        return self._judged(problem, responses, result, time.perf_counter() - started)

    def _judged(
        self, problem: Problem, responses: Sequence[str], result: Clusters | GradeFailure, seconds: float
    ) -> _Judged:
        instead = None
        if isinstance(result, GradeFailure) and self._config.on_failure == "answers":
            instead = call_judge(self._task.cluster, problem, responses)
        return _Judged(result, seconds, instead)

    def _judge_batch(self, cluster_batch: Callable, submitted: Sequence[Submitted]) -> list[_Judged]:
        """Judges the groups of all processes, for the judge works on the devices of all; returns this one's."""
        started = time.perf_counter()
        everywhere = collectives.gather([[dataclasses.asdict(g.problem), list(g.responses)] for g in submitted])
        first = sum(len(groups) for groups in everywhere[: jax.process_index()])
        problems = [Problem(**problem) for groups in everywhere for problem, _ in groups]
        responses_PN = [responses for groups in everywhere for _, responses in groups]
        try:
            results = list(cluster_batch(problems, responses_PN))
            if len(results) != len(problems):
                raise ValueError(f"expected the clusters of {len(problems)} groups, got those of {len(results)}")
        except Exception as error:
            if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
                raise  # of this process's devices: the others are still computing, and cannot go on without it
            results = [to_failure(error)] * len(problems)
        seconds = (time.perf_counter() - started) / len(problems)
        judged = []
        for group, returned in zip(submitted, results[first : first + len(submitted)], strict=True):
            result = call_judge(judge_that_returns(returned), group.problem, group.responses)
            self._failures.watch("judge", result)
            judged.append(self._judged(group.problem, group.responses, result, seconds))
        return judged

    def _to_grading(self, group: Submitted, judged: _Judged) -> Grading:
        size, result = len(group.responses), judged.result
        rewards_N, clusters_N, valid_N = np.zeros(size, np.float32), np.zeros(size, np.int32), np.ones(size, bool)
        counts = collections.Counter(self._zeros())
        failures = []
        counts.update({f"judge/{name}": count for name, count in result.counts.items()})
        if isinstance(result, GradeFailure):
            counts[f"judge/failures/{result.kind}"] += 1
            failures.append(one_line(f"clustering problem {group.problem.id}: {result}"))
            result = result if judged.instead is None else judged.instead
        if isinstance(result, GradeFailure):
            valid_N[:] = False
        else:
            clusters_N[:] = result.ids
        for n, verdict in enumerate(group.verdicts.result()):
            if isinstance(verdict, GradeFailure):
                valid_N[n] = False
                counts[f"verifier/failures/{verdict.kind}"] += 1
                failures.append(one_line(f"verifying problem {group.problem.id}: {verdict}"))
            else:
                rewards_N[n] = verdict.reward
                if verdict.fault:
                    counts[f"verifier/faults/{verdict.fault}"] += 1
        grades = Grades(rewards_N[None], clusters_N[None], valid_N[None])  # type: ignore[arg-type]
        return Grading(grades, tuple(failures), counts, (judged.seconds,))

    def _zeros(self) -> dict[str, float]:
        """All that can be counted: a log without a name should not have to be read as 0."""
        names = [f"judge/{name}" for name in getattr(self._clusterer, "counted", ())]
        names += [f"judge/failures/{kind}" for kind in getattr(self._clusterer, "failures", ())]
        for what in ("faults", "failures"):
            names += [f"verifier/{what}/{kind}" for kind in getattr(self._task, f"verify_{what}", ())]
        return dict.fromkeys(names, 0.0)


def grade(
    task: Gradable, problems: Sequence[Problem], responses: Sequence[Sequence[str]], truncated_PN: np.ndarray
) -> Grading:
    """Grades of these responses, clustered by the task itself; however many fail, they are data."""
    with Grader(task, BY_THE_TASK) as grader:
        return join(grader.collect(grader.submit(problems, responses, truncated_PN)))


def _threads(stack: contextlib.ExitStack, name: str, count: int) -> ThreadPoolExecutor:
    executor = ThreadPoolExecutor(count, thread_name_prefix=name)

    def close(kind: type[BaseException] | None, *_: object) -> None:
        # What is under way ends before the process does: not before the run is saved, where that is in a hurry.
        executor.shutdown(wait=kind is not Interrupted, cancel_futures=True)

    stack.push(close)
    return executor
