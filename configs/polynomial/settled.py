"""After Poly-EPO: mean reward, and a little for different answers that are correct, on polynomials.

python -m polyepo_jax.train --config configs/polynomial/settled.py

Needs runs/polynomial/poly_epo, at its end. Poly-EPO has kept many answers and made them better; some more steps on
little but the reward now choose among them. docs/results.md has what it reaches, docs/objectives.md why it works.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, DistinctCorrect, InitConfig, MeanReward, SetAdvantage, Sum, load

NUM_STEPS = 150


def get_config() -> Config:
    config = load(Path(__file__).with_name("poly_epo.py"), Config)
    advantage = SetAdvantage(Sum((MeanReward(set_size=6), DistinctCorrect(set_size=6)), weights=(0.88, 0.12)))
    return dataclasses.replace(
        config,
        init=InitConfig(run_dir="runs/polynomial/poly_epo"),
        max_steps=NUM_STEPS,
        algorithm=dataclasses.replace(config.algorithm, advantage=advantage),
        optimizer=dataclasses.replace(config.optimizer, decay_steps=NUM_STEPS),
    )
