"""Jit-compiled sampling from a model."""

from polyepo_jax.sampling.generate import GenerationSpec as GenerationSpec
from polyepo_jax.sampling.generate import generate as generate
from polyepo_jax.sampling.methods import Sampling as Sampling
from polyepo_jax.sampling.methods import sample_token as sample_token
