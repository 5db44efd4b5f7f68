"""Set RL that pays a set for one correct generation (pass@n), on multiplication: ../polynomial/pass_at_n.py's.

python -m polyepo_jax.train --config configs/multiplication/pass_at_n.py

Needs runs/multiplication/warm_start. All else is as in poly_epo.py. `make results` measures what it reaches.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    polynomials = load(Path(__file__).parents[1] / "polynomial" / "pass_at_n.py", Config)
    return dataclasses.replace(config, algorithm=polynomials.algorithm)
