"""The generations of a step that samples.jsonl keeps: all of some prompts, in a bounded number of bytes."""

import bisect
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyepo_jax.training.metrics import Completions
from polyepo_jax.types import Grades, Problem

# In place of what is left out of a text.
LEFT_OUT = " [...] "
# Of a row with its texts: with fewer, the texts would say nothing beside the numbers, which take half of it at most.
LEAST_ROW_BYTES = 512
# As many digits as a step's number, or that of a text's characters, may have.
_LARGEST = 10**9
# Of pairs of surrogates, which are no characters alone.
_FIRST_HALVES = "".join(map(chr, range(0xD800, 0xDC00)))
_SECOND_HALVES = "".join(map(chr, range(0xDC00, 0xE000)))


@dataclasses.dataclass(frozen=True)
class SamplesSpec:
    """What is kept of a step.

    num_prompts: of which all generations are kept; fewer where a row would have less than LEAST_ROW_BYTES.
    num_bytes: of all rows of a step, as JSON lines.
    """

    num_prompts: int
    num_bytes: int

    def rows(self, num_prompts: int, num_generations: int) -> list[int]:
        """Which of a step's prompts, evenly spaced: batches are shuffled. The same in every process."""
        fitting = max(self.num_bytes // LEAST_ROW_BYTES // num_generations, 1)
        kept = min(self.num_prompts, num_prompts, fitting)
        return [index * num_prompts // kept for index in range(kept)]

    def num_generations(self, num_generations: int) -> int:
        """Of each of these prompts: all, unless those of a single one are too many."""
        return min(num_generations, self.num_bytes // LEAST_ROW_BYTES)


class Excerpt(NamedTuple):
    """A text, or its head and its tail. characters: of the whole text."""

    head: str
    tail: str
    characters: int

    @classmethod
    def of(cls, text: str) -> "Excerpt":
        """All of a text."""
        return cls(text, "", len(text))

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return len(self.head) + len(self.tail) == self.characters

    @property
    def text(self) -> str:
        """With LEFT_OUT in its middle, if that is left out."""
        return self.head if self.is_whole else self.head + LEFT_OUT + self.tail

    def cut(self, num_bytes: int) -> "Excerpt":
        """Of so many bytes at most; what is cut twice is as if cut once, to the smaller number."""
        if _num_bytes(self.text) <= num_bytes:
            return self
        room = max(num_bytes - len(LEFT_OUT), 0) // 2
        head, tail = (self.head, self.head) if self.is_whole else (self.head, self.tail)
        head = head[: _fitting(lambda count: head[:count], len(head), room)]
        tail = tail[len(tail) - _fitting(lambda count: tail[len(tail) - count :], len(tail), room) :]
        return Excerpt(head.rstrip(_FIRST_HALVES), tail.lstrip(_SECOND_HALVES), self.characters)


def _num_bytes(text: str) -> int:
    """Of a text in a JSON file, without its quotes."""
    return len(json.dumps(text)) - 2


def _fitting(part: Callable[[int], str], longest: int, num_bytes: int) -> int:
    """The largest number of characters, `longest` at most, whose part takes at most so many bytes."""
    longest = min(longest, num_bytes)  # a character takes one at least
    return bisect.bisect_right(range(1, longest + 1), num_bytes, key=lambda count: _num_bytes(part(count)))


def _level(sizes: Sequence[int], room: int) -> int:
    """The bytes that a text may have at most, so that all of such sizes fit in `room`: short ones leave theirs to the
    long."""
    level = room
    for index, size in enumerate(sorted(sizes)):
        level = room // (len(sizes) - index)
        if size > level:
            break
        room -= size
    return level


def excerpts(texts: Sequence[str], num_bytes: int) -> list[Excerpt]:
    """The texts, cut so that all together have so many bytes at most; each is cut as little as that allows."""
    whole = [Excerpt.of(text) for text in texts]
    level = _level([_num_bytes(text) for text in texts], num_bytes)
    return [excerpt.cut(level) for excerpt in whole]


def sample_rows(
    spec: SamplesSpec,
    problems: Sequence[Problem],
    responses: Sequence[Sequence[Excerpt]],
    completions: Completions,
    grades: Grades,
    advantages_PN: np.ndarray,
) -> list[dict[str, Any]]:
    """Rows of samples.jsonl, without their step, of the prompts that are kept.

    The middle of responses, and of prompts, is left out where they are too long; `characters` of such a response are
    those of all of it. Reward and cluster are None where our own grading failed.

    Args:
      problems: of the batch.
      responses: of those that are kept, in their order, as `excerpts` may have cut them.
      completions, grades, advantages_PN: of the batch, on the host.
    """
    kept = spec.rows(len(problems), advantages_PN.shape[1])
    places = [(row, n) for row, own in zip(kept, responses, strict=True) for n in range(len(own))]
    rows = [_without_texts(problems[row].id, row, n, completions, grades, advantages_PN) for row, n in places]
    fixed = sum(len(json.dumps({"step": _LARGEST, **row, "characters": _LARGEST})) + 1 for row in rows)
    prompts = {row: Excerpt.of(problems[row].prompt) for row in kept}
    texts = [excerpt for own in responses for excerpt in own]
    sizes = {row: _num_bytes(prompt.text) for row, prompt in prompts.items()}
    all_sizes = [sizes[row] for row, _ in places] + [_num_bytes(excerpt.text) for excerpt in texts]
    level = _level(all_sizes, spec.num_bytes - fixed)
    prompts = {row: prompt.cut(level) for row, prompt in prompts.items()}
    for row, (of_batch, _), response in zip(rows, places, (text.cut(level) for text in texts), strict=True):
        row |= {"prompt": prompts[of_batch].text, "response": response.text}
        if not response.is_whole:
            row["characters"] = response.characters
    return rows


def _without_texts(
    problem_id: int, row: int, n: int, completions: Completions, grades: Grades, advantages_PN: np.ndarray
) -> dict[str, Any]:
    valid = bool(grades.valid_PN[row, n])
    return {
        "id": problem_id,
        "prompt": "",
        "sample": n,
        "response": "",
        "reward": _number(grades.rewards_PN[row, n]) if valid else None,
        "cluster": int(grades.clusters_PN[row, n]) if valid else None,
        "advantage": _number(advantages_PN[row, n]),
        "length": int(completions.lengths_PN[row, n]),
        "truncated": bool(completions.truncated_PN[row, n]),
    }


def _number(value: Any) -> float | None:
    """With the digits of a float32 that do not depend on how it was computed; JSON knows no NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
