r"""Poly-EPO on POLARIS-53K with Qwen3-4B-Base: the settings of the paper (arXiv:2604.17654) and of its official code.

python -m polyepo_jax.plan  --config configs/math/qwen3_4b_polaris.py --topology v5e:4x4
python -m polyepo_jax.train --config configs/math/qwen3_4b_polaris.py

Needs models/Qwen3-4B-Base, a Hugging Face directory (docs/models.md). The problems come from the Hugging Face hub
(pip install -e '.[hub]'), or from a local copy: --task.train.path data/polaris_53k.parquet, and for the benchmarks
--task.benchmarks.0.path data/beyond_aime.parquet and so on. The mesh is for 16 TPU v5e chips or 4 H200; `plan` says
what another machine takes. 16 v5e chips are four hosts: docs/pods.md starts the command on all. Not run at full size
yet: no expected score.

N = 8 and n = 4 make 70 sets: the paper's K = 70 are all of them, and their mean is taken in closed form. As in the
paper a language model clusters the generations by strategy; its server is started beside the run (docs/judges.md):

vllm serve Qwen/Qwen3-4B-Instruct-2507 --max-model-len 49152

A copy of this config without `judge` clusters by final answers, and needs none.
"""

from polyepo_jax.config import (
    AIME_2025,
    AIME_2026,
    BEYOND_AIME,
    HMMT_FEB_2025,
    HMMT_NOV_2025,
    MINERVA,
    POLARIS_53K,
    AlgorithmConfig,
    Config,
    EvaluationConfig,
    HTTPJudge,
    InitConfig,
    JudgeConfig,
    Math,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PolicyLoss,
    Polychromic,
    SamplingConfig,
    SetAdvantage,
)


def get_config() -> Config:
    return Config(
        task=Math(
            train=POLARIS_53K,
            benchmarks=(BEYOND_AIME, AIME_2025, AIME_2026, HMMT_FEB_2025, HMMT_NOV_2025, MINERVA),
            num_validation=128,
        ),
        # ModelNumerics(dtype="bfloat16", remat="full") would do: with the shape stated, `plan` needs no directory yet.
        model=ModelConfig(
            vocab_size=151_936,
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            rope_theta=1e6,
            tie_word_embeddings=True,
            max_position_embeddings=32_768,
            dtype="bfloat16",
            param_dtype="float32",
            remat="full",
        ),
        init=InitConfig(model_dir="models/Qwen3-4B-Base"),
        max_steps=850,
        save_interval_steps=50,
        eval_interval_steps=50,
        long_prompts="drop",
        prompts_per_step=128,
        num_generations=8,
        max_prompt_length=1024,
        max_completion_length=4096,
        temperature=1.0,
        learning_rate=1e-6,
        sampling=SamplingConfig(top_p=1.0, max_rows=128),
        algorithm=AlgorithmConfig(
            advantage=SetAdvantage(Polychromic(set_size=4)),
            loss=PolicyLoss(epsilon=0.2, epsilon_high=0.28, denominator="max_length", dual_clip=3.0),
            mini_batch_size=64,
            micro_batch_size=16,
        ),
        optimizer=OptimizerConfig(b1=0.9, b2=0.999, weight_decay=0.01, max_grad_norm=0.3),
        judge=JudgeConfig(HTTPJudge("Qwen/Qwen3-4B-Instruct-2507", max_tokens=8192)),
        mesh=MeshConfig(data=1, fsdp=-1, tensor=4),
        evaluation=EvaluationConfig(num_samples=8, num_validation_prompts=128, max_rows=128),
    )
