"""GRPO with an additive bonus for rare answers, on polynomials; everything else as in poly_epo.py.

python -m polyepo_jax.train --config configs/multiplication/grpo_div.py

Needs runs/multiplication/warm_start. About two minutes on two CPU cores. Held out, one run: pass@1 0.89, 12 distinct
correct answers in 64.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, GRPODiv, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    return dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, advantage=GRPODiv(weight=0.5)))
