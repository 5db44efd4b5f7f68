"""Saved generations, and what grades them: shared by the commands `grade` and `audit_judge`."""

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import rich.console
import rich.progress
import tyro

from polyepo_jax.config import Config
from polyepo_jax.config.files import load
from polyepo_jax.errors import InputError, RunError, warn_on_stderr
from polyepo_jax.grading import Gradable, Grader, Grading, GradingStopped, JudgeConfig
from polyepo_jax.judges import HTTPJudge, MeshJudge, Rubric, Surroundings, Transport
from polyepo_jax.rewards.math import MathVerifier
from polyepo_jax.runs.preparation import check_judge
from polyepo_jax.sets import Advantage
from polyepo_jax.tasks import Math, Problem, Task, references

_AT_A_TIME = 64  # rows between two updates of the progress line
# Settings of a judge that errors name, and the options that stand for some of them.
_OPTIONS = {"transport.base_url": "--judge-url", "transport.api_key_env": "--judge-key-env"}
_SETTING = re.compile(
    r"\b(transport\.[a-z_]+|rubric\.(?:max_characters|degenerate_id)|judge\.(?:max_failure_frac|on_failure)"
    r"|max_(?:prompt_length|completion_length|tokens)\b|chat_template_kwargs|structured_output|reply(?= = 'json'))"
)
_RETRY_FOR_S = 60.0  # somebody waits: that a server is down should be said soon, and what was answered is kept


@dataclasses.dataclass(frozen=True)
class SavedRow:
    """Responses to one problem. content: the row as it was read. The problem's id is the number of its line."""

    content: dict[str, Any]
    problem: Problem
    responses: list[str]


@dataclasses.dataclass(frozen=True)
class SavedOptions:
    """What is graded, and by whom.

    Attributes:
      responses: JSON lines of {"problem", "answer", "responses": [...]}; other fields are kept.
      config: a config of polyepo_jax.train whose task verifies, whose judge clusters and whose algorithm.advantage
        weighs. Without it answers in \\boxed{} are compared as mathematics, and clusters are final answers.
      judge_url: in place of these, ask the model at this OpenAI-compatible address, e.g. http://localhost:8000/v1.
      judge_model: that model's name there.
      judge_key_env: the name of the environment variable that holds the key for it.
      judge_temperature: of that model, or of judge_dir's; 0 always takes its likeliest reply.
      judge_dir: in place of these, a model directory in Hugging Face's format, to be run on this machine's devices.
      rubric: a rubric file for either; the shipped one if not given.
    """

    responses: Annotated[Path, tyro.conf.Positional]
    config: Path | None = None
    judge_url: str | None = None
    judge_model: str | None = None
    judge_key_env: str | None = None
    judge_dir: str | None = None
    judge_temperature: float = 0.0
    rubric: str | None = None

    def read(self) -> "Saved":
        """The rows, and what grades them.

        Raises:
          InputError: a file, row or option that is not as described.
        """
        rows = read_rows(self.responses)
        most = max(len(row.responses) for row in rows)
        judge = self._judge(most)
        if judge is not None:
            check_judge(judge, most)
        if self.config is None:
            # Only its verifier and its clusters are used, and it reads files only for its problems.
            task = Math(train="")
            return Saved(_with_final_answers(rows, task), task, judge or JudgeConfig(), None)
        config = load(self.config, Config)
        if judge is None:
            judge = config.judge
            check_judge(judge, most)
        return Saved(_with_final_answers(rows, config.task), config.task, judge, config.algorithm.advantage)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Errors within say as of `explain` what they mean here."""
        try:
            yield
        except (InputError, RunError) as error:
            raise type(error)(self.explain(str(error))) from error

    def explain(self, text: str) -> str:
        """A text that may name settings of a judge, with what they are called where options took the judge's place."""
        if self.judge_url is None and self.judge_dir is None:
            return text
        found = list(dict.fromkeys(_SETTING.findall(text)))
        notes = [f"{name} is {_OPTIONS[name]}" for name in found if name in _OPTIONS]
        others = [name for name in found if name not in _OPTIONS]
        if others:
            notes.append(f"{' and '.join(others)} can be set for the judge of a --config")
        return f"{text} ({'; '.join(notes)})" if notes else text

    def _judge(self, most: int) -> JudgeConfig | None:
        """The judge that the options name, if they do.

        Args:
          most: responses of a problem.
        """
        if (self.judge_url is None) != (self.judge_model is None):
            raise InputError("--judge-url and --judge-model belong together: the address, and the model's name there")
        if self.judge_url is not None and self.judge_dir is not None:
            raise InputError("--judge-url and --judge-dir exclude each other: name one judge")
        if self.judge_url is None and self.judge_dir is None:
            if self.rubric is not None or self.judge_key_env is not None or self.judge_temperature:
                raise InputError("--rubric and --judge-key-env are for a judge: give --judge-url or --judge-dir")
            return None
        rubric = Rubric(path=self.rubric)
        try:
            if self.judge_url is None:
                mesh_judge = MeshJudge(str(self.judge_dir), rubric=rubric, temperature=self.judge_temperature)
                judge = JudgeConfig(mesh_judge.fitted(most))
            else:
                transport = Transport(self.judge_url, self.judge_key_env, retry_for_s=_RETRY_FOR_S)
                judge = JudgeConfig(HTTPJudge(str(self.judge_model), rubric, transport, self.judge_temperature))
        except ValueError as error:
            raise InputError(str(error)) from error
        return judge


@dataclasses.dataclass(frozen=True)
class Saved:
    """Rows with their task (of which only the grading is used), judge, and the config's advantage, if there is one."""

    rows: list[SavedRow]
    task: Task
    judge: JudgeConfig
    advantage: Advantage | None


def read_rows(path: Path) -> list[SavedRow]:
    """All rows of a file of saved generations.

    Raises:
      InputError: it cannot be read, or a row is not as described.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected JSON lines in UTF-8") from error
    rows = [_row(line, f"{path}, line {n}", n) for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"{path}: there is no row in it")
    return rows


def _with_final_answers(rows: list[SavedRow], task: Task) -> list[SavedRow]:
    """Rows whose references are read as those of problem sets are; one that has no single answer is left empty.

    An empty one is a failure of ours to the verifier, and no reward of 0 to the responses.
    """
    if not isinstance(getattr(task, "verifier", None), MathVerifier):
        return rows
    read = [references.read(str(row.problem.reference)) for row in rows]
    lacking = [(row.problem.id, found.why) for row, found in zip(rows, read, strict=True) if found.why]
    if lacking:
        line, why = lacking[0]
        warn_on_stderr(f"{len(lacking)} of {len(rows)} references hold no answer to compare with (line {line}: {why})")
    return [
        dataclasses.replace(row, problem=dataclasses.replace(row.problem, reference="" if found.why else found.answer))
        for row, found in zip(rows, read, strict=True)
    ]


def _row(line: str, where: str, number: int) -> SavedRow:
    try:
        row = json.loads(line, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object of 'problem', 'answer' and 'responses', got {line!r:.80}")
    for field in ("problem", "answer", "responses"):
        if field not in row:
            raise InputError(f"{where}: no field {field!r}; there are {', '.join(map(repr, row)) or 'none'}")
    problem, answer, responses = row["problem"], row["answer"], row["responses"]
    # As it is spelled: Python would make 1e+22 of ten to the 22nd.
    spelled = answer if isinstance(answer, str) else json.loads(line, parse_int=str, parse_float=str)["answer"]
    if not isinstance(problem, str) or not isinstance(answer, (str, int, float)) or isinstance(answer, bool):
        raise InputError(f"{where}: 'problem' must be a text and 'answer' a text or a number, got {line!r:.80}")
    if not isinstance(responses, list) or not responses or not all(isinstance(text, str) for text in responses):
        raise InputError(f"{where}: 'responses' must be a list of texts, at least one, got {responses!r:.80}")
    return SavedRow(row, Problem(number, problem, spelled), responses)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    """What is infinite as a float could not be written back."""
    return number if math.isfinite(number := float(text)) else _refuse(text)


def check_output(path: Path, source: Path) -> None:
    """Raises InputError where a file could not be written, or would replace `source` or what is no file."""
    directory = path.absolute().parent
    if not os.access(directory, os.W_OK) or (path.exists() and not path.is_file()):
        raise InputError(f"--out {path} cannot be written: name a file in a directory that is there and can be written")
    if path.exists() and path.samefile(source):
        raise InputError(f"--out {path} is the file that is read: name another")


@dataclasses.dataclass(frozen=True)
class Unverified:
    """A task that only clusters: what is correct is not asked."""

    task: Task

    def verify(self, problem: Problem, response: str) -> float:
        return 0.0

    def cluster(self, problem: Problem, responses: Sequence[str]) -> Sequence[int]:
        return self.task.cluster(problem, responses)

    @property
    def verify_concurrency(self) -> int:
        return getattr(self.task, "verify_concurrency", 1)


def grade_groups(
    task: Gradable,
    judge: JudgeConfig,
    groups: Sequence[tuple[Problem, Sequence[str]]],
    directory: Path | None = None,
    label: str = "grading",
) -> list[Grading]:
    """The grades of each problem's responses, with a progress line on a terminal.

    Args:
      directory: where a judge keeps its replies.

    Raises:
      InputError: the judge cannot work.
      RunError: it failed too often.
    """
    gradings: list[Grading] = []
    console = rich.console.Console(stderr=True)
    with (
        Grader(task, judge, Surroundings(directory)) as grader,
        rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task(label, total=len(groups))
        submitted = [
            grader.submit([problem], [responses], np.zeros((1, len(responses)), bool))[0]
            for problem, responses in groups
        ]
        for start in range(0, len(groups), _AT_A_TIME):
            try:
                gradings += grader.collect(submitted[start : start + _AT_A_TIME])
            except GradingStopped as stopped:
                raise RunError(
                    f"{_one_line(str(stopped))}; nothing was written: mend the judge and give the same command again "
                    "(what a server has answered is not asked again)"
                ) from stopped
            progress.update(bar, completed=len(gradings))
    return gradings


def said_of_failures(gradings: Sequence[Grading]) -> str | None:
    """How many calls failed, and how the first did, in one line; None where none failed."""
    failures = [line for grading in gradings for line in grading.failures]
    return f"{len(failures)} grading calls failed, the first: {_one_line(failures[0])}" if failures else None


def _one_line(text: str) -> str:
    """What the user's code raises may be of any length."""
    return " ".join(text.split())[:600]
