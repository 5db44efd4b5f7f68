"""Warm start on polynomials of which each accepts some x only: 3,125 of them, 625 held out.

python -m polyepo_jax.sft --config configs/polynomial_hard/warm_start.py

About two minutes on two CPU cores. Held out, one run: pass@1 0.15, pass@8 0.53, pass@128 0.87.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import EvaluationConfig, OptimizerConfig, Polynomial, SFTConfig, load


def get_config() -> SFTConfig:
    return dataclasses.replace(
        load(Path(__file__).parents[1] / "polynomial" / "warm_start.py", SFTConfig),
        task=Polynomial(max_a=5, max_b=12, max_c=12, accepted=0.3),
        max_steps=1500,
        optimizer=OptimizerConfig(b2=0.98, weight_decay=0.01, warmup_steps=60, decay_steps=1500),
        max_prompt_length=8,
        max_completion_length=26,
        evaluation=EvaluationConfig(num_samples=128, num_prompts=512),
    )
