"""Jit-compiled sampling from a model."""

from polyepo_jax.sampling.choose import LabelSpec as LabelSpec
from polyepo_jax.sampling.choose import choose_labels as choose_labels
from polyepo_jax.sampling.generate import Finished as Finished
from polyepo_jax.sampling.generate import Rollout as Rollout
from polyepo_jax.sampling.generate import abstract_rollouts as abstract_rollouts
from polyepo_jax.sampling.generate import generate as generate
from polyepo_jax.sampling.generate import own_prompts as own_prompts
from polyepo_jax.sampling.methods import Sampling as Sampling
from polyepo_jax.sampling.methods import sample_token as sample_token
from polyepo_jax.sampling.schedule import slots_per_shard as slots_per_shard
from polyepo_jax.sampling.slots import GenerationSpec as GenerationSpec
from polyepo_jax.sampling.waves import in_waves as in_waves
from polyepo_jax.sampling.waves import prompts_per_wave as prompts_per_wave
from polyepo_jax.sampling.waves import until_stopped as until_stopped
