"""After Poly-EPO: mean reward, and a little for different answers that are correct, on hard polynomials.

python -m polyepo_jax.train --config configs/polynomial_hard/settled.py

Needs runs/polynomial_hard/poly_epo, at its end. As ../polynomial/settled.py; docs/results.md has what it reaches.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, InitConfig, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    polynomials = load(Path(__file__).parents[1] / "polynomial" / "settled.py", Config)
    return dataclasses.replace(
        config,
        init=InitConfig(run_dir="runs/polynomial_hard/poly_epo"),
        max_steps=polynomials.max_steps,
        algorithm=dataclasses.replace(config.algorithm, advantage=polynomials.algorithm.advantage),
        optimizer=polynomials.optimizer,
    )
