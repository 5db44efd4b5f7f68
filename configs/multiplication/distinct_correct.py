"""Set RL that pays for different strategies that succeed, on multiplication: ../polynomial/distinct_correct.py's.

python -m polyepo_jax.train --config configs/multiplication/distinct_correct.py

Needs runs/multiplication/warm_start. All else is as in poly_epo.py. Held out, three seeds: pass@1 0.62 to 0.67,
9.7 to 10.7 distinct correct strategies in 64.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    polynomials = load(Path(__file__).parents[1] / "polynomial" / "distinct_correct.py", Config)
    return dataclasses.replace(config, algorithm=polynomials.algorithm)
