"""Nothing is traced or compiled again between the steps of a run, however long its generations are."""

import logging
import sys
from pathlib import Path

import jax
import pytest

from polyepo_jax import train
from polyepo_jax.config import AlgorithmConfig, SamplingConfig
from polyepo_jax.sets import Polychromic, SetAdvantage
from polyepo_jax.training import rollouts
from tests.tiny import metrics_of, rl_config


@pytest.mark.parametrize("micro_batch_size", [None, 8])
def test_nothing_is_compiled_after_the_second_step(tmp_path: Path, monkeypatch, caplog, micro_batch_size):
    compiled = []

    class Counted(rollouts.Rollout):
        def __init__(self, *arguments):
            compiled.append(sum("Compiling" in record.message for record in caplog.records))
            super().__init__(*arguments)

    monkeypatch.setattr(rollouts, "Rollout", Counted)
    monkeypatch.setattr(sys.modules["polyepo_jax.sampling.generate"], "LEAST_RING", (2, 2))
    config = rl_config(
        max_steps=12,
        save_interval_steps=100,
        # Half of the rows at a time: slots are refilled, and rings of 2, 4 and 8 slots are needed.
        sampling=SamplingConfig(max_rows=8),
        algorithm=AlgorithmConfig(SetAdvantage(Polychromic(2)), micro_batch_size=micro_batch_size),
    )
    jax.clear_caches()  # other tests may have run the same programs
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        train.train(config, tmp_path, "")
    assert len(compiled) == 12
    assert compiled[1] > 0  # the first step compiles, and is seen to
    assert compiled[2:] == compiled[2:3] * 10
    lengths = [line["completions/mean_length"] for line in metrics_of(tmp_path)]
    assert len(set(lengths)) > 6
