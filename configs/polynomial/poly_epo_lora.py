"""Poly-EPO on polynomials with adapters of rank 16 in place of all weights; else as poly_epo.py.

python -m polyepo_jax.train --config configs/polynomial/poly_epo_lora.py

Needs runs/polynomial/warm_start, whose weights stay as they are. About two minutes on two CPU cores: the model is too
small for adapters to save anything, and is there to try them on. With --max-steps 400, three seeds, held out: pass@1
0.86-0.89, 11-13 distinct correct answers in 64 (all weights: 0.84-0.88, 13-15).
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, LoRA, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    return dataclasses.replace(
        config,
        learning_rate=10 * config.learning_rate,  # adapters take about ten times that of all weights
        model=dataclasses.replace(config.model, lora=LoRA(rank=16)),
    )
