"""Mean reward, and something more for different years that are right, with SmolLM2-135M, as on polynomials.

python -m polyepo_jax.train --config configs/smollm/mixture.py

Needs runs/smollm/warm_start. All else is as in poly_epo.py. docs/results.md has what it reaches.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    polynomials = load(Path(__file__).parents[1] / "polynomial" / "mixture.py", Config)
    advantage = polynomials.algorithm.advantage
    return dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, advantage=advantage))
