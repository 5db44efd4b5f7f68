"""Sampling and grading held-out problems."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from polyepo_jax.evaluation.problems import defined, describe, powers_of_two
from polyepo_jax.evaluation.variety import branching, first_divergence
from polyepo_jax.grading import BY_THE_TASK, Grader, Grading, Submitted, decode
from polyepo_jax.pods import collectives
from polyepo_jax.sampling import GenerationSpec, Rollout, own_prompts, until_stopped
from polyepo_jax.sharding import Mesh
from polyepo_jax.tasks import Problem, Task
from polyepo_jax.training.data import to_prompts
from polyepo_jax.types import Rollouts

# Tokens, at most, of the problems whose texts go from process to process at a time; one problem may have more.
_BLOCK = 2**22


@dataclasses.dataclass(frozen=True)
class Sampled:
    """All generations of a problem, not graded yet; what JSON can hold.

    row: of the problem, among those sampled. lengths: tokens, the end token included. truncated: cut at the length
    limit. variety: branching, first_divergence, identical_pairs_frac.
    """

    row: int
    responses: list[str]
    lengths: list[int]
    truncated: list[bool]
    variety: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A problem, sampled and graded; what JSON can hold.

    description: its numbers, as of `describe` and of `Sampled.variety`, and mean_length in tokens; None where a
      generation could not be graded.
    samples: its generations, each with sample (its index), response, reward, cluster, length and truncated; reward and
      cluster are None where our own grading failed. Empty where texts are not wanted.
    failures: of our own grading, a line each.
    """

    description: dict[str, Any] | None
    samples: list[dict[str, Any]]
    failures: list[str]


@dataclasses.dataclass(frozen=True)
class Samples:
    """What one process has of all generations of all problems.

    most_tokens: of all generations of a problem. problems: those of all processes. own: by row.
    """

    task: Task
    most_tokens: int
    problems: Sequence[Problem]
    own: Mapping[int, tuple[Sampled, Grading]]

    def descriptions(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Those of the problems that could be graded, and the failures of all; all processes call this at one point."""
        own = [dataclasses.asdict(self._outcome(row, {}, with_texts=False)) for row in self.own]
        outcomes = [Outcome(**outcome) for outcome in collectives.gather_rows(list(self.own), own)]
        described = [outcome.description for outcome in outcomes if outcome.description is not None]
        return described, [line for outcome in outcomes for line in outcome.failures]

    def outcomes(self) -> Iterator[Outcome]:
        """Those of all problems, in their order, in all processes; all of them go through it at the same point."""
        size = max(_BLOCK // self.most_tokens, 1)
        for start in range(0, len(self.problems), size):
            rows = [row for row in range(start, min(start + size, len(self.problems))) if row in self.own]
            own = [dataclasses.asdict(self._outcome(row, self._hidden(row), with_texts=True)) for row in rows]
            for outcome in collectives.gather_rows([row - start for row in rows], own):
                yield Outcome(**outcome)

    def _hidden(self, row: int) -> dict[str, Any]:
        """Which correct responses meet the task's requirement that is unknown in training; nothing if it has none."""
        meets = getattr(self.task, "meets_hidden_requirement", None)
        if meets is None:
            return {}
        sampled, grading = self.own[row]
        rewards_M = np.asarray(grading.grades.rewards_PN)[0].tolist()
        pairs = zip(sampled.responses, rewards_M, strict=True)
        try:
            return {"hidden_M": [reward > 0 and bool(meets(self.problems[row], text)) for text, reward in pairs]}
        except Exception as error:  # the user's code, of whatever kind
            return {"fault": f"meets_hidden_requirement: {type(error).__name__}: {error}"}

    def _outcome(self, row: int, hidden: Mapping[str, Any], with_texts: bool) -> Outcome:
        sampled, grading = self.own[row]
        rewards_M, clusters_M, valid_M = (
            np.asarray(getattr(grading.grades, name))[0] for name in ("rewards_PN", "clusters_PN", "valid_PN")
        )
        description = None
        if np.all(valid_M):
            description = describe(rewards_M, clusters_M, sampled.truncated, hidden.get("hidden_M"))
            if "fault" in hidden:
                description["hidden_at_k"] = {}  # so that no benchmark has the mean of some problems
            description |= sampled.variety | {"mean_length": float(np.mean(sampled.lengths))}
        columns = sampled.responses, rewards_M, clusters_M, valid_M, sampled.lengths, sampled.truncated
        samples = [
            {
                "sample": index,
                "response": response,
                "reward": float(reward) if valid else None,
                "cluster": int(cluster) if valid else None,
                "length": length,
                "truncated": truncated,
            }
            for index, (response, reward, cluster, valid, length, truncated) in enumerate(zip(*columns, strict=True))
        ]
        failures = [*grading.failures, *([hidden["fault"]] if "fault" in hidden else [])]
        return Outcome(description, samples if with_texts else [], failures)


def _variety(tokens_MT: np.ndarray, mask_MT: np.ndarray) -> dict[str, Any]:
    prefixes_T = branching(tokens_MT, mask_MT)
    parting, identical = first_divergence(tokens_MT, mask_MT)
    numbers = {
        "branching": {str(t): float(prefixes_T[t - 1]) for t in powers_of_two(prefixes_T.size)},
        "first_divergence": parting,
        "identical_pairs_frac": identical,
    }
    return defined(numbers)


def _sampled(rows: Sequence[int], texts: Sequence[list[str]], rollouts: Rollouts) -> Iterator[Sampled]:
    tokens_PMT, mask_PMT = np.asarray(rollouts.tokens_PNT), np.asarray(rollouts.completion_mask_PNT)
    truncated_PM = np.asarray(rollouts.truncated_PN)
    for i, row in enumerate(rows):
        lengths = mask_PMT[i].sum(axis=1).tolist()
        yield Sampled(row, texts[i], lengths, truncated_PM[i].tolist(), _variety(tokens_PMT[i], mask_PMT[i]))


def sample(
    spec: GenerationSpec,
    params: Any,
    task: Task,
    problems: Sequence[Problem],
    max_prompt_length: int,
    max_rows: int,
    key: jax.Array,
    mesh: Mesh,
    stop_requested: Callable[[], bool] = lambda: False,
    kept: Sequence[Sampled] = (),
    on_sampled: Callable[[Sampled], None] = lambda sampled: None,
) -> Samples:
    """Samples `spec.num_generations` responses to each problem, `max_rows` rows at a time, and grades them meanwhile.

    Strategies are the task's own, whatever judge the run trains by: no judge reads hundreds of responses at once.

    Args:
      stop_requested: whether this process is asked to end, wherefore all of them do.
      kept: problems that this process has the generations of already, with the same parameters and key.
      on_sampled: called with each problem that this process deals with, when its generations are there.

    Raises:
      Interrupted: in all processes; they are asked to end, and this is not done.
    """
    done: set[int] = set()
    own: dict[int, Sampled] = {}
    for process, rows in enumerate(collectives.gather([sampled.row for sampled in kept])):
        if process == jax.process_index():
            own = {sampled.row: sampled for sampled in kept if sampled.row not in done}
        done |= set(rows)
    rest = [row for row in range(len(problems)) if row not in done]
    submitted: dict[int, Submitted] = {}
    with Grader(task, BY_THE_TASK, stop_requested=stop_requested) as grader:

        def submit(sampled: Sampled) -> None:
            submitted[sampled.row], *_ = grader.submit(
                [problems[sampled.row]], [sampled.responses], np.array([sampled.truncated])
            )

        for sampled in own.values():
            submit(sampled)
        if rest:
            prompts = to_prompts(
                [problems[row] for row in rest],
                task.tokenizer,
                max_prompt_length,
                own_prompts(len(rest), spec.num_generations, mesh),
            )
            rollout = Rollout(spec, params, prompts, key, mesh, max_rows)
            for ended in until_stopped(rollout.finished(), mesh, stop_requested):
                rows = [rest[index] for index in ended.prompts]
                for sampled in _sampled(rows, decode(task.tokenizer, ended.rollouts), ended.rollouts):
                    own[sampled.row] = sampled
                    submit(sampled)
                    on_sampled(sampled)
        gradings = grader.collect([submitted[row] for row in own])
    most_tokens = spec.num_generations * spec.max_completion_length
    return Samples(task, most_tokens, problems, dict(zip(own, zip(own.values(), gradings, strict=True), strict=True)))
