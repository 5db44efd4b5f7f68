"""Warm start on multiplication: a model of 0.43 M parameters that knows 24 ways to decompose a product of two numbers.

python -m polyepo_jax.sft --config configs/multiplication/warm_start.py

About 5 minutes on two CPU cores. Held out, one run: pass@1 0.30, pass@8 0.90, 7.0 distinct correct strategies in 64.
"""

from polyepo_jax.config import EvaluationConfig, ModelConfig, Multiplication, OptimizerConfig, SFTConfig


def get_config() -> SFTConfig:
    task = Multiplication()
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
        max_steps=1500,
        save_interval_steps=500,
        prompts_per_step=128,
        max_prompt_length=6,
        max_completion_length=53,
        learning_rate=2e-3,
        micro_batch_size=64,
        optimizer=OptimizerConfig(b2=0.98, weight_decay=0.01, warmup_steps=60, decay_steps=1500),
        evaluation=EvaluationConfig(num_samples=64, num_prompts=128),
    )
