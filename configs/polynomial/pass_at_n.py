"""Set RL that pays a set for one correct generation (pass@n), on polynomials; everything else as in poly_epo.py.

python -m polyepo_jax.train --config configs/polynomial/pass_at_n.py

Needs runs/polynomial/warm_start. docs/results.md has what it reaches.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, PassAtN, SetAdvantage, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    advantage = SetAdvantage(PassAtN(set_size=4))
    return dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, advantage=advantage))
