"""Mean reward, and something more for different answers that are correct, on polynomials; else as in poly_epo.py.

python -m polyepo_jax.train --config configs/polynomial/mixture.py

Needs runs/polynomial/warm_start. More accurate than Poly-EPO, with fewer answers: docs/results.md has what it reaches,
docs/objectives.md why.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, DistinctCorrect, MeanReward, SetAdvantage, Sum, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    advantage = SetAdvantage(Sum((MeanReward(set_size=6), DistinctCorrect(set_size=6)), weights=(0.75, 0.25)))
    return dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, advantage=advantage))
