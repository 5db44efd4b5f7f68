"""A run of seconds, for processes that tests start; POD_JUDGE and POD_RUBRIC give it a judge on the mesh."""

import os

from polyepo_jax.config import Config
from polyepo_jax.grading import JudgeConfig
from polyepo_jax.judges import MeshJudge, Rubric
from tests.tiny import rl_config


def get_config() -> Config:
    judge = JudgeConfig()
    if "POD_JUDGE" in os.environ:
        rubric = Rubric(path=os.environ["POD_RUBRIC"])
        judge = JudgeConfig(MeshJudge(os.environ["POD_JUDGE"], reply="ids", rubric=rubric, max_prompt_length=1024))
    return rl_config(prompts_per_step=8, save_interval_steps=2, judge=judge)
