"""A warm start of seconds, for processes that tests start."""

from polyepo_jax.config import SFTConfig
from tests.tiny import sft_config


def get_config() -> SFTConfig:
    return sft_config()
