"""Rollouts in another dtype than training's."""

import dataclasses

from polyepo_jax import train
from polyepo_jax.config import AlgorithmConfig, PolicyLoss, SamplingConfig
from polyepo_jax.sets import Polychromic, SetAdvantage
from tests.tiny import metrics_of, rl_config


def test_rollouts_in_bfloat16_leave_a_gap_that_importance_weights_see(tmp_path):
    algorithm = AlgorithmConfig(SetAdvantage(Polychromic(2)), PolicyLoss(importance_cap=1.0))
    config = rl_config(max_steps=2, algorithm=algorithm)
    lines = {}
    for dtype in (None, "bfloat16"):
        run = dataclasses.replace(config, sampling=SamplingConfig(dtype=dtype))
        train.train(run, tmp_path / str(dtype), "")
        lines[dtype] = metrics_of(tmp_path / str(dtype))[0]
    assert lines[None]["logprobs/sampler_gap"] < 1e-5
    assert 1e-4 < lines["bfloat16"]["logprobs/sampler_gap"] < 0.1
    # About half of the tokens are likelier to the trainer, however little.
    assert 0.2 < lines["bfloat16"]["loss/importance_capped_frac"] < 0.8
