"""Poly-EPO on POLARIS-53K with adapters to Qwen3-1.7B-Base; everything else as in qwen3_4b_lora.py.

python -m polyepo_jax.plan  --config configs/math/qwen3_1p7b_lora.py --topology gpu:h100x1
python -m polyepo_jax.train --config configs/math/qwen3_1p7b_lora.py

Needs models/Qwen3-1.7B-Base, and the rest as said there. More is sampled at a time, as there is room for it. Not run at
full size yet: no expected score.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("qwen3_4b_lora.py"), Config)
    full = load(Path(__file__).with_name("qwen3_1p7b_polaris.py"), Config)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(full.model, lora=config.model.lora),
        init=full.init,
        sampling=dataclasses.replace(config.sampling, max_rows=64),
    )
