"""Sampling with and without a judge: python benchmarks/grading_overlap.py

A rollout of 16 waves, alone and with a serial judge that takes as long for a wave as the devices do (its answers are
made up after a pause). Prints the ratio of both: 2 if grading waited for sampling, little above 1 + 1/16 if it does
not.
"""

import dataclasses
import statistics
import time

import jax
import numpy as np

from polyepo_jax.grading import Grader, JudgeConfig, Submitted, decode
from polyepo_jax.model import ModelConfig, init
from polyepo_jax.sampling import GenerationSpec, Rollout
from polyepo_jax.sharding import MeshConfig, make_mesh
from polyepo_jax.tasks import Polynomial
from polyepo_jax.types import Prompts

NUM_WAVES, PROMPTS_A_WAVE, NUM_GENERATIONS, LENGTH, REPEATS = 16, 8, 8, 64, 5
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
class Pausing:
    """A judge for one call at a time, which takes a while and says nothing."""

    seconds: float

    def cluster(self, problem, responses):
        time.sleep(self.seconds)
        return [0] * len(responses)


def main() -> None:
    """Measures both side by side."""
    task, mesh = Polynomial(), make_mesh(MeshConfig())
    params = init(MODEL, jax.random.key(0))
    problems = task.problems("train")[: NUM_WAVES * PROMPTS_A_WAVE]
    # No stop token: every completion has its full length, and so all waves take equally long.
    spec = GenerationSpec(MODEL, NUM_GENERATIONS, LENGTH, stop_ids=(), pad_id=0)
    shape = len(problems), 6
    prompts = Prompts(
        np.ones(shape, np.int32),  # type: ignore[arg-type]
        np.ones(shape, bool),  # type: ignore[arg-type]
        np.arange(len(problems), dtype=np.int32),  # type: ignore[arg-type]
    )

    def rollout(grader: Grader | None) -> float:
        started = time.perf_counter()
        submitted: list[Submitted] = []
        rows = PROMPTS_A_WAVE * NUM_GENERATIONS
        for ended in Rollout(spec, params, prompts, jax.random.key(0), mesh, rows).finished():
            texts = decode(task.tokenizer, ended.rollouts)
            if grader is not None:
                chosen = [problems[row] for row in ended.prompts]
                submitted += grader.submit(chosen, texts, np.asarray(ended.rollouts.truncated_PN))
        if grader is not None:
            grader.collect(submitted)
        return time.perf_counter() - started

    rollout(None)
    alone = statistics.median(rollout(None) for _ in range(REPEATS))
    judge = JudgeConfig(Pausing(alone / NUM_WAVES / PROMPTS_A_WAVE))
    ratios, seconds = [], []
    with Grader(task, judge) as grader:
        for _ in range(REPEATS):
            alone = rollout(None)
            seconds.append(rollout(grader))
            ratios.append(seconds[-1] / alone)
    print(f"rollout of {NUM_WAVES} waves alone {alone:.2f} s, with a judge {statistics.median(seconds):.2f} s")
    print(f"ratio, median of {REPEATS}: {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
