"""Rollouts in, grades out: decode, verify, cluster. On the host, beside the devices.

A `Grader` takes each wave of prompts as soon as it is sampled and grades it in threads while the next is sampled; the
step waits for what is left at its end. What fails on our side becomes an invalid grade, is counted, and is never made
up.
"""

import collections
import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Literal, Protocol

import jax
import numpy as np

from polyepo_jax.errors import GradeFailure, InputError, Interrupted
from polyepo_jax.judges.judge import Clusters, Surroundings
from polyepo_jax.model.tokenizer import Tokenizer
from polyepo_jax.pods import collectives
from polyepo_jax.rewards.verdict import Verdict
from polyepo_jax.tasks import Problem
from polyepo_jax.types import Grades, Rollouts

GRACE_S = 10.0  # for the calls under way when a run is asked to end: machines are taken away half a minute later
_MAX_LINE = 600  # characters of a message on a failure


class Gradable(Protocol):
    """What grading asks of a Task."""

    def verify(self, problem: Problem, response: str) -> float | Verdict: ...
    def cluster(self, problem: Problem, responses: Sequence[str]) -> Sequence[int]: ...


class GradingStopped(Exception):
    """Grading cannot go on, and neither can the run; what was done before is worth a checkpoint."""


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """Who says which responses to a problem follow the same strategy, and what becomes of a failure.

    Attributes:
      clusterer: HTTPJudge, MeshJudge, Answers or Rules of polyepo_jax.judges, or a function (problem, responses) ->
        ids of your own; None for the task's own.
      on_failure: what becomes of a group whose judge failed. "drop": no gradient; "answers": the task clusters it,
        tasks in mathematics by final answers; "stop": the run ends with a checkpoint.
      max_failure_frac: the run ends, with a checkpoint, when a larger share of the last judge calls failed, or of the
        last verifier calls.
      failure_window: how many calls these are.
    """

    clusterer: Any = None
    on_failure: Literal["drop", "answers", "stop"] = "drop"
    max_failure_frac: float = 0.5
    failure_window: int = 64

    def __post_init__(self):
        if not 0 <= self.max_failure_frac <= 1:
            raise ValueError(f"max_failure_frac must be in [0, 1], got {self.max_failure_frac}")
        if self.on_failure == "answers" and self.clusterer is None:
            raise ValueError(
                "on_failure = 'answers' needs a clusterer: a task that clusters by itself has no other way"
            )
        if isinstance(self.clusterer, type):
            raise ValueError(f"clusterer must be an instance, got the class {self.clusterer.__name__}: call it")
        if self.failure_window < 1:
            raise ValueError(f"failure_window must be at least 1, got {self.failure_window}")
        offered = callable(self.clusterer), hasattr(self.clusterer, "open"), hasattr(self.clusterer, "cluster")
        if self.clusterer is not None and not any(offered):
            raise ValueError(
                "clusterer must be a judge of polyepo_jax.judges or a function (problem, responses) -> ids, got "
                f"{self.clusterer!r}"
            )


# For what is measured rather than trained on: no share of failures is above 1, so none ends it.
BY_THE_TASK = JudgeConfig(max_failure_frac=1.0)


def decode(tokenizer: Tokenizer, rollouts: Rollouts) -> list[list[str]]:
    """The text of each generation, its end token included: lists [P][N]."""
    tokens_PNT, mask_PNT = np.asarray(rollouts.tokens_PNT), np.asarray(rollouts.completion_mask_PNT)
    return [
        [tokenizer.decode(row[mask].tolist()) for row, mask in zip(rows, masks, strict=True)]
        for rows, masks in zip(tokens_PNT, mask_PNT, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Grading:
    """Grades of one or several prompts, with what went wrong.

    grades: NumPy arrays.
    failures: one line for each failed verifier call and each failed judge call.
    counts: under the names they are logged by; those of several gradings add up.
    latencies_s: seconds that each judge call took.
    """

    grades: Grades
    failures: tuple[str, ...]
    counts: Mapping[str, float]
    latencies_s: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """What another process needs to have it too."""
        fields = ("rewards_PN", "clusters_PN", "valid_PN")
        grades = {name: np.asarray(getattr(self.grades, name)).tolist() for name in fields}
        return {**grades, "failures": self.failures, "counts": dict(self.counts), "latencies_s": self.latencies_s}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Grading":
        """Of `to_json`."""
        dtypes = {"rewards_PN": np.float32, "clusters_PN": np.int32, "valid_PN": bool}
        arrays = [np.array(value[name], dtype) for name, dtype in dtypes.items()]
        grades = Grades(*arrays)  # type: ignore[arg-type]
        return cls(grades, tuple(value["failures"]), value["counts"], tuple(value["latencies_s"]))

    def metrics(self) -> dict[str, float]:
        """Shares of failed calls, seconds of a judge call, and the counts."""

        def num_failed(caller: str) -> float:
            return sum(count for name, count in self.counts.items() if name.startswith(f"{caller}/failures/"))

        return {
            "judge/failure_frac": num_failed("judge") / len(self.latencies_s),
            "judge/latency_s": float(np.mean(self.latencies_s)),
            "judge/latency_max_s": max(self.latencies_s),
            "verifier/failure_frac": num_failed("verifier") / np.size(self.grades.rewards_PN),
            **self.counts,
        }


def add_counts(gradings: Sequence[Grading]) -> dict[str, float]:
    """The counts of several gradings, added up."""
    counts: collections.Counter[str] = collections.Counter()
    for grading in gradings:
        counts.update(grading.counts)  # unlike +, keeps zeros
    return dict(counts)


def join(gradings: Sequence[Grading]) -> Grading:
    """The gradings of successive prompts in one; all have equally many responses."""
    fields = (
        np.concatenate([getattr(grading.grades, name) for grading in gradings])
        for name in ("rewards_PN", "clusters_PN", "valid_PN")
    )
    return Grading(
        Grades(*fields),  # type: ignore[arg-type]
        tuple(line for grading in gradings for line in grading.failures),
        add_counts(gradings),
        tuple(seconds for grading in gradings for seconds in grading.latencies_s),
    )


@dataclasses.dataclass(frozen=True)
class _Judged:
    """What came of one judge call, and the seconds it took."""

    result: Clusters | GradeFailure
    seconds: float
    instead: Clusters | GradeFailure | None = None  # what the task makes of the group, where it is to step in


@dataclasses.dataclass(frozen=True)
class Submitted:
    """One prompt's responses, and the calls that grade them; no `judged` where the judge takes all at once."""

    problem: Problem
    responses: Sequence[str]
    verdicts: Future
    judged: Future | None


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
        window = self._config.failure_window
        self._recent: dict[str, collections.deque[bool]] = {
            caller: collections.deque(maxlen=window) for caller in ("judge", "verifier")
        }
        self._untold: list[tuple[str, str | None]] = []  # calls of which other processes have not heard
        self._lock = threading.Lock()
        self._stopped: str | None = None
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
        self._stopped = self._stopped or "grading was given up"  # calls that wait return at once
        self._stack.__exit__(*exception)

    def submit(
        self, problems: Sequence[Problem], responses: Sequence[Sequence[str]], truncated_PN: np.ndarray
    ) -> list[Submitted]:
        """Starts to grade N responses to each problem, and returns at once; `collect` has the grades."""
        submitted = []
        for problem, texts, truncated_N in zip(problems, responses, truncated_PN, strict=True):
            verdicts = self._verifying.submit(self._verify, problem, texts, truncated_N)
            judged = None if self._cluster_batch is not None else self._judging.submit(self._judge, problem, texts)
            submitted.append(Submitted(problem, texts, verdicts, judged))
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
                self._stopped = "the run was asked to end"
                return f"grading took more than {GRACE_S:.0f} s after the run was asked to end"
        return None

    def _end_together(self, interrupted: str | None) -> None:
        """Raises in every process what one of them has to raise."""
        if jax.process_count() > 1:
            self._hear_others()
        for interruption, stop in collectives.gather([interrupted, self._stopped]):
            if interruption is not None:
                raise Interrupted(interruption)
            if stop is not None:
                raise GradingStopped(stop)

    def _verify(self, problem: Problem, responses: Sequence[str], truncated_N: np.ndarray) -> list[Any]:
        """A Verdict or GradeFailure for each response; of a truncated one nobody is asked."""

        def verify(response: str) -> Verdict | GradeFailure:
            if self._stopped is not None:
                return GradeFailure("stopped", self._stopped)
            result: Verdict | GradeFailure
            try:
                result = _checked_verdict(self._task.verify(problem, response))
            except (Exception, SystemExit) as error:  # the user's code: a failed grade, whatever it raises
                result = _to_failure(error)
            self._watch("verifier", result)
            return result

        return [Verdict(0.0) if cut else verify(text) for text, cut in zip(responses, truncated_N, strict=True)]

    def _judge(self, problem: Problem, responses: Sequence[str]) -> _Judged:
        started = time.perf_counter()
        if self._stopped is not None:
            return _Judged(GradeFailure("stopped", self._stopped), 0.0)
        result = _judge_once(self._cluster, problem, responses)
        self._watch("judge", result)
        return self._judged(problem, responses, result, time.perf_counter() - started)

    def _judged(
        self, problem: Problem, responses: Sequence[str], result: Clusters | GradeFailure, seconds: float
    ) -> _Judged:
        instead = None
        if isinstance(result, GradeFailure) and self._config.on_failure == "answers":
            instead = _judge_once(self._task.cluster, problem, responses)
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
            results = [_to_failure(error)] * len(problems)
        seconds = (time.perf_counter() - started) / len(problems)
        judged = []
        for group, returned in zip(submitted, results[first : first + len(submitted)], strict=True):
            result = _judge_once(_returns(returned), group.problem, group.responses)
            self._watch("judge", result)
            judged.append(self._judged(group.problem, group.responses, result, seconds))
        return judged

    def _watch(self, caller: str, result: Clusters | Verdict | GradeFailure) -> None:
        """Stops all further calls once too many have failed."""
        failure = _line(str(result)) if isinstance(result, GradeFailure) else None
        with self._lock:
            if jax.process_count() > 1:
                self._untold.append((caller, failure))
            self._count(caller, failure)

    def _hear_others(self) -> None:
        """Counts the calls of other processes too: each of many makes few."""
        with self._lock:
            untold, self._untold = self._untold, []
        for process, calls in enumerate(collectives.gather(untold)):
            if process != jax.process_index():
                with self._lock:
                    for caller, failure in calls:
                        self._count(caller, failure)

    def _count(self, caller: str, failure: str | None) -> None:
        config, recent = self._config, self._recent[caller]
        recent.append(failure is not None)
        num_failed, num_calls = sum(recent), len(recent)
        if failure is None or self._stopped is not None:
            return
        if config.on_failure == "stop" and caller == "judge":
            self._stopped = f"a judge call failed, and judge.on_failure is 'stop': {failure}"
        elif num_calls == config.failure_window and num_failed > config.max_failure_frac * num_calls:
            self._stopped = (
                f"{num_failed} of the last {num_calls} {caller} calls failed, more than judge.max_failure_frac = "
                f"{config.max_failure_frac} allows; the last one: {failure}"
            )

    def _to_grading(self, group: Submitted, judged: _Judged) -> Grading:
        size, result = len(group.responses), judged.result
        rewards_N, clusters_N, valid_N = np.zeros(size, np.float32), np.zeros(size, np.int32), np.ones(size, bool)
        counts = collections.Counter(self._zeros())
        failures = []
        counts.update({f"judge/{name}": count for name, count in result.counts.items()})
        if isinstance(result, GradeFailure):
            counts[f"judge/failures/{result.kind}"] += 1
            failures.append(_line(f"clustering problem {group.problem.id}: {result}"))
            result = result if judged.instead is None else judged.instead
        if isinstance(result, GradeFailure):
            valid_N[:] = False
        else:
            clusters_N[:] = result.ids
        for n, verdict in enumerate(group.verdicts.result()):
            if isinstance(verdict, GradeFailure):
                valid_N[n] = False
                counts[f"verifier/failures/{verdict.kind}"] += 1
                failures.append(_line(f"verifying problem {group.problem.id}: {verdict}"))
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


def _to_failure(error: BaseException) -> GradeFailure:
    if isinstance(error, GradeFailure):
        return error
    return GradeFailure("exception", f"{type(error).__name__}: {error}")


def _judge_once(cluster: Callable, problem: Problem, responses: Sequence[str]) -> Clusters | GradeFailure:
    try:
        result = cluster(problem, responses)
        result = result if isinstance(result, Clusters) else Clusters(result)
        return dataclasses.replace(result, ids=_checked_ids(result.ids, len(responses)))
    except (Exception, SystemExit) as error:  # the user's code, too
        return _to_failure(error)


def _returns(result: Clusters | GradeFailure) -> Callable:
    """A judge of one group whose result is there."""

    def cluster(problem: Problem, responses: Sequence[str]) -> Clusters:
        if isinstance(result, GradeFailure):
            raise result
        return result

    return cluster


def _line(message: str) -> str:
    """One line that a terminal can take."""
    line = " ".join(message.split())
    return line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]} ..."


def _checked_verdict(verdict: float | Verdict) -> Verdict:
    verdict = verdict if isinstance(verdict, Verdict) else Verdict(verdict)
    if not math.isfinite(verdict.reward) or abs(verdict.reward) > np.finfo(np.float32).max:
        raise ValueError(f"the reward must be finite in float32, got {verdict.reward}")
    return verdict


def _checked_ids(ids: Sequence[int], num_responses: int) -> tuple[int, ...]:
    ids_N = np.asarray(ids)
    if ids_N.shape != (num_responses,) or not np.issubdtype(ids_N.dtype, np.integer):
        raise ValueError(f"expected {num_responses} integer cluster ids, got {ids!r:.200}")
    info = np.iinfo(np.int32)
    if np.any((ids_N < info.min) | (ids_N > info.max)):
        raise ValueError("cluster ids must fit int32")
    return tuple(ids_N.tolist())
