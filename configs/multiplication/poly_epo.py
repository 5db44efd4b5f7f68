"""Poly-EPO (arXiv:2604.17654) on multiplication: sets of 4 among 8 generations, scored by reward times diversity.

python -m polyepo_jax.train --config configs/multiplication/poly_epo.py

Needs runs/multiplication/warm_start. About two minutes on two CPU cores. Held out, one run: pass@1 0.54, pass@8 0.97,
7.8 distinct correct strategies in 64. The baselines beside it change the advantage and nothing else.
"""

from pathlib import Path

from polyepo_jax.config import (
    AlgorithmConfig,
    Config,
    EvaluationConfig,
    InitConfig,
    LoggingConfig,
    OptimizerConfig,
    Polychromic,
    SetAdvantage,
    SFTConfig,
    load,
)


def get_config() -> Config:
    warm_start = load(Path(__file__).with_name("warm_start.py"), SFTConfig)
    return Config(
        task=warm_start.task,
        model=warm_start.model,
        init=InitConfig(run_dir="runs/multiplication/warm_start"),
        max_steps=150,
        save_interval_steps=50,
        eval_interval_steps=25,
        prompts_per_step=32,
        num_generations=8,
        max_prompt_length=warm_start.max_prompt_length,
        max_completion_length=warm_start.max_completion_length,
        learning_rate=1e-4,
        algorithm=AlgorithmConfig(advantage=SetAdvantage(Polychromic(set_size=4)), micro_batch_size=64),
        optimizer=OptimizerConfig(b2=0.99),
        logging=LoggingConfig(kl_interval_steps=10),
        evaluation=EvaluationConfig(num_samples=64, num_prompts=128, num_validation_prompts=32),
    )
