"""Poly-EPO (arXiv:2604.17654) on polynomials of which each accepts some x only, so that coverage decides.

python -m polyepo_jax.train --config configs/polynomial_hard/poly_epo.py

Needs runs/polynomial_hard/warm_start. About a minute on two CPU cores. Held out, one run: pass@1 0.27, pass@8 0.63,
pass@128 0.87.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, EvaluationConfig, InitConfig, SFTConfig, load


def get_config() -> Config:
    warm_start = load(Path(__file__).with_name("warm_start.py"), SFTConfig)
    return dataclasses.replace(
        load(Path(__file__).parents[1] / "polynomial" / "poly_epo.py", Config),
        task=warm_start.task,
        init=InitConfig(run_dir="runs/polynomial_hard/warm_start"),
        max_prompt_length=warm_start.max_prompt_length,
        max_completion_length=warm_start.max_completion_length,
        evaluation=EvaluationConfig(num_samples=128, num_prompts=512, num_validation_prompts=32),
    )
