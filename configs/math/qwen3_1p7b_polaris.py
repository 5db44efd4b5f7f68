"""Poly-EPO on POLARIS-53K with Qwen3-1.7B-Base; everything else as in qwen3_4b_polaris.py.

python -m polyepo_jax.plan  --config configs/math/qwen3_1p7b_polaris.py --topology v5e:2x4
python -m polyepo_jax.train --config configs/math/qwen3_1p7b_polaris.py

Needs models/Qwen3-1.7B-Base, and the problems as said there. The mesh is for 8 TPU v5e chips or more. Not run at full
size yet: no expected score.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, InitConfig, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("qwen3_4b_polaris.py"), Config)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
        ),
        init=InitConfig(model_dir="models/Qwen3-1.7B-Base"),
    )
