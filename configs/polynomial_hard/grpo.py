"""GRPO, without the division by the standard deviation, on hard polynomials; everything else as in poly_epo.py.

python -m polyepo_jax.train --config configs/polynomial_hard/grpo.py

Needs runs/polynomial_hard/warm_start. About a minute on two CPU cores. It falls below its base from k = 8 on; held
out, one run: pass@1 0.31, pass@8 0.41, pass@128 0.71.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import GRPO, Config, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    return dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, advantage=GRPO()))
