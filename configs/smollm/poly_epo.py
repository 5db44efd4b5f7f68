"""Poly-EPO (arXiv:2604.17654) with SmolLM2-135M: sets of 4 among 8 generations, scored by reward times diversity.

python -m polyepo_jax.train --config configs/smollm/poly_epo.py

Needs runs/smollm/warm_start. A step takes 15 s of one CPU core that is not shared, 1.4 s to sample 64 answers and the
rest to update; 6 GB of memory. The baselines beside it change the advantage and nothing else. Held out, one run:
pass@1 0.67, 9.3 distinct correct answers in 64, where the warm start has 0.35 and 9.7.
"""

from pathlib import Path

from polyepo_jax.config import (
    AlgorithmConfig,
    Config,
    InitConfig,
    OptimizerConfig,
    Polychromic,
    SamplingConfig,
    SetAdvantage,
    SFTConfig,
    load,
)


def get_config() -> Config:
    warm_start = load(Path(__file__).with_name("warm_start.py"), SFTConfig)
    return Config(
        task=warm_start.task,
        init=InitConfig(run_dir="runs/smollm/warm_start"),
        max_steps=60,
        save_interval_steps=20,
        eval_interval_steps=20,
        max_to_keep=warm_start.max_to_keep,
        prompts_per_step=8,
        num_generations=8,
        max_prompt_length=warm_start.max_prompt_length,
        max_completion_length=warm_start.max_completion_length,
        learning_rate=3e-5,
        sampling=SamplingConfig(max_rows=64),
        algorithm=AlgorithmConfig(advantage=SetAdvantage(Polychromic(set_size=4)), micro_batch_size=16),
        optimizer=OptimizerConfig(b2=0.99),
        evaluation=warm_start.evaluation,
    )
