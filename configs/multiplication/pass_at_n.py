"""Set RL that pays a set for one correct generation (pass@n), on multiplication: ../polynomial/pass_at_n.py's.

python -m polyepo_jax.train --config configs/multiplication/pass_at_n.py

Needs runs/multiplication/warm_start. All else is as in poly_epo.py. Held out, three seeds: pass@1 0.59 to 0.64,
5.5 to 6.0 distinct correct strategies in 64.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    polynomials = load(Path(__file__).parents[1] / "polynomial" / "pass_at_n.py", Config)
    return dataclasses.replace(config, algorithm=polynomials.algorithm)
