"""A warm start of seconds, for processes that tests start."""

from polyepo_jax.config import SFTConfig
from tests import compilations
from tests.tiny import sft_config


def get_config() -> SFTConfig:
    compilations.kept_by_every_process()
    return sft_config()
