"""Set RL that pays for different answers that are correct, on polynomials; everything else as in poly_epo.py.

python -m polyepo_jax.train --config configs/polynomial/distinct_correct.py

Needs runs/polynomial/warm_start. docs/results.md has what it reaches.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, DistinctCorrect, SetAdvantage, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    advantage = SetAdvantage(DistinctCorrect(set_size=4))
    return dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, advantage=advantage))
