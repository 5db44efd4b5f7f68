"""Mean reward, and something more for different strategies that succeed, on multiplication: ../polynomial/mixture.py's.

python -m polyepo_jax.train --config configs/multiplication/mixture.py

Needs runs/multiplication/warm_start. All else is as in poly_epo.py. Not run: no expected score.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    polynomials = load(Path(__file__).parents[1] / "polynomial" / "mixture.py", Config)
    return dataclasses.replace(config, algorithm=polynomials.algorithm)
