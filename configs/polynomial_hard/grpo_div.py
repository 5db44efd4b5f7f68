"""GRPO with an additive bonus for rare answers, on hard polynomials; everything else as in poly_epo.py.

python -m polyepo_jax.train --config configs/polynomial_hard/grpo_div.py

Needs runs/polynomial_hard/warm_start. About a minute on two CPU cores. Held out, one run: pass@1 0.26, pass@8 0.63,
pass@128 0.87.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, GRPODiv, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    return dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, advantage=GRPODiv(weight=0.5)))
