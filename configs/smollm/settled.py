"""After Poly-EPO: mean reward, and a little for different years that are right, with SmolLM2-135M.

python -m polyepo_jax.train --config configs/smollm/settled.py

Needs runs/smollm/poly_epo, at its end. As ../polynomial/settled.py. Held out, one run: pass@1 0.68, 9.0
distinct correct answers in 64.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, InitConfig, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    polynomials = load(Path(__file__).parents[1] / "polynomial" / "settled.py", Config)
    return dataclasses.replace(
        config,
        init=InitConfig(run_dir="runs/smollm/poly_epo"),
        max_steps=20,
        algorithm=dataclasses.replace(config.algorithm, advantage=polynomials.algorithm.advantage),
        optimizer=dataclasses.replace(config.optimizer, decay_steps=20),
    )
