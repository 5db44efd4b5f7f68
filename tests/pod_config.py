"""A run of seconds, for processes that tests start; POD_JUDGE and POD_RUBRIC give it a judge on the mesh, POD_GATE, a
directory, has each process note there that it reads its config, and wait for a file `open`."""

import os
import time
from pathlib import Path

from polyepo_jax.config import Config
from polyepo_jax.grading import JudgeConfig
from polyepo_jax.judges import MeshJudge, Rubric
from tests.tiny import rl_config


def get_config() -> Config:
    if "POD_GATE" in os.environ:
        gate = Path(os.environ["POD_GATE"])
        (gate / os.environ["JAX_PROCESS_ID"]).touch()
        while not (gate / "open").exists():
            time.sleep(0.02)
    judge = JudgeConfig()
    if "POD_JUDGE" in os.environ:
        rubric = Rubric(path=os.environ["POD_RUBRIC"])
        judge = JudgeConfig(MeshJudge(os.environ["POD_JUDGE"], reply="ids", rubric=rubric, max_prompt_length=1024))
    return rl_config(prompts_per_step=8, save_interval_steps=2, judge=judge)
