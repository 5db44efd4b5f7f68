"""Set RL that pays for different strategies that succeed, on multiplication: ../polynomial/distinct_correct.py's.

python -m polyepo_jax.train --config configs/multiplication/distinct_correct.py

Needs runs/multiplication/warm_start. All else is as in poly_epo.py. `make results` measures what it reaches.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    polynomials = load(Path(__file__).parents[1] / "polynomial" / "distinct_correct.py", Config)
    return dataclasses.replace(config, algorithm=polynomials.algorithm)
