"""Which generations to show."""

import dataclasses
import re
from typing import Literal

from polyepo_jax.errors import InputError
from polyepo_jax.generations.rows import Generation

# |advantage| below this is rounding, as sets.SIGNAL_THRESHOLD says; no import, for JAX would come with it.
SIGNAL = 1e-6


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a generation has to meet, None for no matter what; it does not meet what its file says nothing of.

    steps: first and last. prompt: the problem's id, or a text that the prompt contains.
    correct: whether the reward is above 0.
    """

    steps: tuple[int, float] | None = None
    benchmark: str | None = None
    prompt: str | None = None
    cluster: int | None = None
    correct: bool | None = None
    advantage: Literal["positive", "negative", "zero"] | None = None

    def takes(self, generation: Generation) -> bool:
        """Whether it meets all."""
        step, reward = generation.step, generation.reward
        return (
            (self.steps is None or (step is not None and self.steps[0] <= step <= self.steps[1]))
            and (self.benchmark is None or generation.benchmark == self.benchmark)
            and (self.prompt is None or _is_of(self.prompt, generation))
            and (self.cluster is None or generation.cluster == self.cluster)
            and (self.correct is None or (reward is not None and (reward > 0) == self.correct))
            and (self.advantage is None or sign(generation.advantage) == self.advantage)
        )


def _is_of(prompt: str, generation: Generation) -> bool:
    if prompt.isdecimal() and generation.id is not None:
        return str(generation.id) == prompt
    return prompt in generation.prompt


def sign(advantage: float | None) -> Literal["positive", "negative", "zero"] | None:
    """Of an advantage."""
    if advantage is None:
        return None
    return "zero" if abs(advantage) < SIGNAL else "positive" if advantage > 0 else "negative"


def parse_steps(text: str) -> tuple[int, float]:
    """First and last step of "12", "10:20", "10:" or ":20".

    Raises:
      InputError: it is none of these.
    """
    match = re.fullmatch(r"(\d{1,18})|(\d{0,18}):(\d{0,18})", text, re.ASCII)
    if match is None or text == ":":
        raise InputError(f"--step: expected a step, a range such as 10:20, or last, got {text!r}")
    if match[1]:
        return int(match[1]), int(match[1])
    steps = int(match[2] or 0), int(match[3]) if match[3] else float("inf")
    if steps[0] > steps[1]:
        raise InputError(f"--step: the range {text} ends before it begins")
    return steps
