r"""Warm start on sums: a Qwen3 of 0.34 M parameters that knows four ways to add, and is often wrong.

python configs/math/make_tiny.py
python -m polyepo_jax.sft --config configs/math/qwen3_tiny_warm_start.py
python -m polyepo_jax.evaluate --run-dir runs/math/qwen3_tiny_warm_start

A minute and a half on two busy CPU cores. Held out, one run: pass@1 0.55, pass@8 0.995, 3.3 distinct correct
strategies in 16. Starts from a Hugging Face directory, whose shape and tokenizer it takes, and reads its problems from
JSON lines, as a run with a real model does.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from polyepo_jax.config import (
    DEGENERATE,
    EvaluationConfig,
    InitConfig,
    Math,
    OptimizerConfig,
    Problem,
    SFTConfig,
)
from polyepo_jax.rewards.answers import boxed

# Ways to write a + b as a row of sums, the last of which has the answer.
STRATEGIES: tuple[Callable[[int, int], list[tuple[int, int]]], ...] = (
    lambda a, b: [(a % 10, b % 10), (a - a % 10, b - b % 10), (a - a % 10 + b - b % 10, a % 10 + b % 10)],
    lambda a, b: [(a - a % 10, b - b % 10), (a % 10, b % 10), (a - a % 10 + b - b % 10, a % 10 + b % 10)],
    lambda a, b: [(a, b - b % 10), (a + b - b % 10, b % 10)],
    lambda a, b: [(b, a - a % 10), (b + a - a % 10, a % 10)],
)


def _terms(problem: Problem) -> tuple[int, int]:
    a, b = map(int, re.findall("[0-9]+", problem.prompt)[:2])
    return a, b


@dataclasses.dataclass(frozen=True)
class TinyMath(Math):
    r"""Sums of two numbers of two digits, with worked answers: `7+5=12, 10+20=30, 30+12=42. \boxed{42}`.

    Attributes:
      error_rate: share of demonstrations with one wrong digit in the final answer, for reinforcement learning to
        correct.
    """

    instruction: str = " End with \\boxed{}."
    error_rate: float = 0.4

    def cluster(self, problem: Problem, responses: Sequence[str]) -> Sequence[int]:
        r"""The strategy, by its first sum; one more for what is none of them; DEGENERATE without \boxed{}."""
        firsts = ["{}+{}".format(*strategy(*_terms(problem))[0]) for strategy in STRATEGIES]
        found = [firsts.index(f) if (f := text.partition("=")[0]) in firsts else len(firsts) for text in responses]
        return [DEGENERATE if boxed(text) is None else way for text, way in zip(responses, found, strict=True)]

    def demonstrate(self, problem: Problem, rng: np.random.Generator) -> str:
        """An answer by a random strategy."""
        sums = STRATEGIES[rng.integers(len(STRATEGIES))](*_terms(problem))
        answer = problem.reference
        if rng.random() < self.error_rate:
            place = int(rng.integers(len(answer)))
            digit = (int(answer[place]) + int(rng.integers(1, 10))) % 10
            answer = f"{answer[:place]}{digit}{answer[place + 1 :]}"
        return ", ".join(f"{a}+{b}={a + b}" for a, b in sums) + f". \\boxed{{{answer}}}"


def get_config() -> SFTConfig:
    return SFTConfig(
        task=TinyMath(
            train="runs/math/tiny_train.jsonl",
            test="runs/math/tiny_test.jsonl",
            num_validation=32,
        ),
        init=InitConfig(model_dir="runs/math/tiny_model"),
        max_steps=400,
        save_interval_steps=200,
        prompts_per_step=64,
        max_prompt_length=24,
        max_completion_length=36,
        learning_rate=3e-3,
        optimizer=OptimizerConfig(b2=0.98, weight_decay=0.01, warmup_steps=30, decay_steps=400),
        evaluation=EvaluationConfig(num_samples=16),
    )
