"""GRPO, without the division by the standard deviation, with SmolLM2-135M; everything else as in poly_epo.py.

python -m polyepo_jax.train --config configs/smollm/grpo.py

Needs runs/smollm/warm_start. On validation, one run: pass@1 0.66, which is all that can be had without knowing what is
a multiple of 3, after 20 steps; then 8.7 distinct correct answers in 64, after 60 steps 6.8. Held out 0.68 and 6.9.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import GRPO, Config, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    return dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, advantage=GRPO()))
