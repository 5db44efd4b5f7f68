"""After Poly-EPO: mean reward, and a little for different strategies that succeed, on multiplication.

python -m polyepo_jax.train --config configs/multiplication/settled.py

Needs runs/multiplication/poly_epo, at its end. As ../polynomial/settled.py. Held out, three seeds: pass@1
0.69 to 0.74, 6.3 to 6.9 distinct correct strategies in 64.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, InitConfig, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    polynomials = load(Path(__file__).parents[1] / "polynomial" / "settled.py", Config)
    return dataclasses.replace(
        config,
        init=InitConfig(run_dir="runs/multiplication/poly_epo"),
        max_steps=polynomials.max_steps,
        algorithm=dataclasses.replace(config.algorithm, advantage=polynomials.algorithm.advantage),
        optimizer=polynomials.optimizer,
    )
