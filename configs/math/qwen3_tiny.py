r"""Poly-EPO on sums: qwen3_4b_polaris.py at a size for two CPU cores, every part of it in use.

python -m polyepo_jax.train --config configs/math/qwen3_tiny.py
python -m polyepo_jax.evaluate --run-dir runs/math/qwen3_tiny
python -m polyepo_jax.convert hf-export runs/math/qwen3_tiny

Needs runs/math/qwen3_tiny_warm_start. A minute and a half on two busy CPU cores. Held out, one run: pass@1 0.84 (warm
start 0.55), 4.0 distinct correct strategies in 16 (3.3), greedy 0.97. `transformers` writes the same answers with the
export and its tokenizer.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, EvaluationConfig, InitConfig, OptimizerConfig, SFTConfig, load


def get_config() -> Config:
    warm_start = load(Path(__file__).with_name("qwen3_tiny_warm_start.py"), SFTConfig)
    large = load(Path(__file__).with_name("qwen3_4b_polaris.py"), Config)
    return Config(
        task=warm_start.task,
        init=InitConfig(run_dir="runs/math/qwen3_tiny_warm_start"),
        max_steps=60,
        save_interval_steps=20,
        eval_interval_steps=20,
        long_prompts=large.long_prompts,
        prompts_per_step=32,
        num_generations=large.num_generations,
        max_prompt_length=warm_start.max_prompt_length,
        max_completion_length=warm_start.max_completion_length,
        temperature=large.temperature,
        learning_rate=2e-4,
        sampling=dataclasses.replace(large.sampling, max_rows=128),
        algorithm=dataclasses.replace(large.algorithm, mini_batch_size=16, micro_batch_size=64),
        optimizer=OptimizerConfig(b1=0.9, b2=0.99, max_grad_norm=1.0),
        evaluation=EvaluationConfig(num_samples=16, num_validation_prompts=32),
    )
