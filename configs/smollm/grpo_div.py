"""GRPO with an additive bonus for rare answers, with SmolLM2-135M; everything else as in poly_epo.py.

python -m polyepo_jax.train --config configs/smollm/grpo_div.py

Needs runs/smollm/warm_start. A step takes as long as there. Not run yet: no expected score.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, GRPODiv, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    return dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, advantage=GRPODiv(weight=0.5)))
