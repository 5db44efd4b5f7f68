"""The config of a run."""

from polyepo_jax.config.sections import AlgorithmConfig as AlgorithmConfig
from polyepo_jax.config.sections import Config as Config
from polyepo_jax.config.sections import EvaluationConfig as EvaluationConfig
from polyepo_jax.config.sections import InitConfig as InitConfig
from polyepo_jax.config.sections import LoggingConfig as LoggingConfig
from polyepo_jax.config.sections import RunConfig as RunConfig
from polyepo_jax.config.sections import SamplingConfig as SamplingConfig
from polyepo_jax.config.sections import SFTConfig as SFTConfig
