"""Warm start on polynomials: a 0.43 M parameter model that knows many answers, and is often wrong.

python -m polyepo_jax.sft --config configs/polynomial/warm_start.py

About 150 s on two CPU cores. Held out, four runs: pass@1 0.37-0.42, pass@8 0.97-0.98, 14-16 distinct correct
answers in 64.
"""

from polyepo_jax.config import EvaluationConfig, ModelConfig, OptimizerConfig, Polynomial, SFTConfig


def get_config() -> SFTConfig:
    task = Polynomial()
    return SFTConfig(
        task=task,
        model=ModelConfig(
            vocab_size=task.tokenizer.vocab_size,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            rope_theta=10_000.0,
        ),
        max_steps=1000,
        save_interval_steps=250,
        prompts_per_step=128,
        max_prompt_length=6,
        max_completion_length=25,
        learning_rate=2e-3,
        optimizer=OptimizerConfig(b2=0.98, weight_decay=0.01, warmup_steps=60, decay_steps=1000),
        evaluation=EvaluationConfig(num_samples=64, num_prompts=128),
    )
