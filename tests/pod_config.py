"""A run of seconds, for processes that tests start.

POD_JUDGE and POD_RUBRIC give it a judge on the mesh, POD_JUDGE_URL one behind HTTP. POD_GATE, a directory, has each
process note there that it reads its config, and wait for a file `open`. POD_NO_DIRECTORY, the number of a step, has
orbax fail to make the directory of its checkpoint, after the disk was found to be writable. POD_EVALUATES, a file, is
made when an evaluation begins.
"""

import os
import time
from pathlib import Path

from orbax.checkpoint._src.path import async_path

from polyepo_jax.config import Config
from polyepo_jax.grading import JudgeConfig
from polyepo_jax.judges import HTTPJudge, MeshJudge, Rubric, Transport
from polyepo_jax.runs import evaluating
from tests import compilations
from tests.tiny import rl_config


def get_config() -> Config:
    compilations.kept_by_every_process()
    if "POD_GATE" in os.environ:
        gate = Path(os.environ["POD_GATE"])
        (gate / os.environ["JAX_PROCESS_ID"]).touch()
        while not (gate / "open").exists():
            time.sleep(0.02)
    if "POD_NO_DIRECTORY" in os.environ:
        make = async_path.mkdir

        def fail(path, **options):
            if path.name.startswith(f"{os.environ['POD_NO_DIRECTORY']}.orbax"):
                raise OSError(28, "No space left on device", str(path))
            return make(path, **options)

        async_path.mkdir = fail
    if "POD_EVALUATES" in os.environ:
        sample = evaluating.sample

        def sample_and_tell(*arguments):
            Path(os.environ["POD_EVALUATES"]).touch()
            return sample(*arguments)

        evaluating.sample = sample_and_tell
    judge = JudgeConfig()
    if "POD_JUDGE" in os.environ:
        rubric = Rubric(path=os.environ["POD_RUBRIC"])
        judge = JudgeConfig(MeshJudge(os.environ["POD_JUDGE"], reply="ids", rubric=rubric, max_prompt_length=1024))
    if "POD_JUDGE_URL" in os.environ:
        judge = JudgeConfig(HTTPJudge("judge", transport=Transport(os.environ["POD_JUDGE_URL"])))
    return rl_config(prompts_per_step=8, save_interval_steps=2, judge=judge)
