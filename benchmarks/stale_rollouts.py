"""A step with a slow judge, waited for and hidden: python benchmarks/stale_rollouts.py

Trains a small model three times over: without a judge, with one that takes 0.8 of such a step for each prompt (all
prompts at a time; its answers are made up after a pause), and with the same judge and algorithm.staleness 1. Prints the
time of a step with the judge as a multiple of the time without: 1.8 where it is waited for, little above 1 where it is
hidden.
"""

import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

from polyepo_jax.config import (
    GRPO,
    AlgorithmConfig,
    Config,
    EvaluationConfig,
    JudgeConfig,
    LoggingConfig,
    ModelConfig,
    Polynomial,
)
from polyepo_jax.train import train

NUM_PROMPTS, NUM_STEPS, REPEATS, SHARE = 8, 8, 3, 0.8
MODEL = ModelConfig(
    vocab_size=16,
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=32,
)


@dataclasses.dataclass(frozen=True)
class EvenLengths(Polynomial):
    """Pays for responses of an even number of characters, so that an untrained model has something to learn."""

    def verify(self, problem, response):
        return float(len(response) % 2 == 0)


@dataclasses.dataclass(frozen=True)
class Pausing:
    """A judge that takes a while and says nothing."""

    seconds: float
    concurrency = 2 * NUM_PROMPTS

    def cluster(self, problem, responses):
        time.sleep(self.seconds)
        return [0] * len(responses)


def config_of(judge_s: float | None, staleness: int) -> Config:
    """A run of a few small steps."""
    return Config(
        task=EvenLengths(),
        model=MODEL,
        max_steps=NUM_STEPS,
        prompts_per_step=NUM_PROMPTS,
        num_generations=8,
        max_prompt_length=6,
        max_completion_length=64,
        learning_rate=1e-4,
        algorithm=AlgorithmConfig(advantage=GRPO(), staleness=staleness),
        judge=JudgeConfig(None if judge_s is None else Pausing(judge_s)),
        evaluation=EvaluationConfig(num_samples=1, num_validation_prompts=1),
        logging=LoggingConfig(tensorboard=False, samples_prompts=0),
    )


def measure(judge_s: float | None, staleness: int = 0) -> tuple[float, float]:
    """Seconds of a step, and of them those that it waited for the judge; medians without the first two steps and the
    last, which compile, sample more than others, or less."""
    with tempfile.TemporaryDirectory() as directory:
        train(config_of(judge_s, staleness), Path(directory) / "run", "")
        lines = (Path(directory) / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines][2:-1]
    step_s, exposed_s = ([step.get(name, 0.0) for step in steps] for name in ("time/step_s", "judge/exposed_s"))
    return statistics.median(step_s), statistics.median(exposed_s)


def main() -> None:
    """Measures all three in turn."""
    for staleness in (0, 1):
        measure(None, staleness)  # compiles
    ratios: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(REPEATS):
        alone, _ = measure(None)
        print(f"no judge: a step takes {alone:.2f} s; a judge takes {SHARE * alone:.2f} s")
        for staleness, found in ratios.items():
            step_s, exposed_s = measure(SHARE * alone, staleness)
            found.append(step_s / alone)
            print(f"staleness {staleness}: a step takes {step_s:.2f} s, {exposed_s:.2f} s of them for the judge")
    for staleness, found in ratios.items():
        print(
            f"staleness {staleness}: {statistics.median(found):.3f} times the step without judge, median of {REPEATS} "
            f"(from {min(found):.3f} to {max(found):.3f})"
        )


if __name__ == "__main__":
    main()
