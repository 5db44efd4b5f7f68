"""Warm start on multiplication: a model of 0.64 M parameters that knows 24 ways to decompose a product of two numbers.

python -m polyepo_jax.sft --config configs/multiplication/warm_start.py

About 11 minutes of one CPU core. Held out, three seeds: pass@1 0.34 to 0.36, pass@8 0.94, 7.7 to 8.1 distinct correct
strategies in 64.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Multiplication, OptimizerConfig, SFTConfig, load


def get_config() -> SFTConfig:
    polynomials = load(Path(__file__).parents[1] / "polynomial" / "warm_start.py", SFTConfig)
    task = Multiplication()
    return dataclasses.replace(
        polynomials,
        task=task,
        # With two layers sums that carry are learned late, and with some seeds not at all.
        model=dataclasses.replace(polynomials.model, vocab_size=task.tokenizer.vocab_size, num_hidden_layers=3),
        max_steps=1500,
        save_interval_steps=500,
        max_completion_length=53,
        micro_batch_size=64,
        optimizer=OptimizerConfig(b2=0.98, weight_decay=0.01, warmup_steps=60, decay_steps=1500),
    )
