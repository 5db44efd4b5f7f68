"""Poly-EPO on POLARIS-53K with adapters to Qwen3-4B-Base, on one GPU of 80 GB or on 8 TPU v5e chips.

python -m polyepo_jax.plan  --config configs/math/qwen3_4b_lora.py --topology gpu:h100x1
python -m polyepo_jax.train --config configs/math/qwen3_4b_lora.py

Needs models/Qwen3-4B-Base, the problems, and a judge's server, all as said in qwen3_4b_polaris.py. Differs from it by
adapters of rank 16 and a learning rate of ten times as much, as adapters take; by 32 prompts a step in one update, for
one device; and by rollouts that are sampled a step ahead, so that the judge is not waited for. Mesh and slots are for a
GPU of 80 GB; 8 TPU v5e chips take --mesh.tensor 4 --sampling.max-rows 64. docs/one_device.md has its plans. Not run at
full size yet: no expected score.
"""

import dataclasses
from pathlib import Path

from polyepo_jax.config import Config, LoRA, MeshConfig, load


def get_config() -> Config:
    config = load(Path(__file__).with_name("qwen3_4b_polaris.py"), Config)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, lora=LoRA(rank=16, alpha=32.0)),
        prompts_per_step=32,
        learning_rate=1e-5,
        sampling=dataclasses.replace(config.sampling, max_rows=32),
        algorithm=dataclasses.replace(
            config.algorithm,
            mini_batch_size=None,
            staleness=1,
        ),
        mesh=MeshConfig(data=1, fsdp=-1, tensor=1),
    )
