"""Generations in a run directory's files: read, chosen, shown in a terminal. For people and reports: no JAX."""

from polyepo_jax.generations.rows import DEGENERATE as DEGENERATE
from polyepo_jax.generations.rows import Generation as Generation
from polyepo_jax.generations.rows import evaluated_file as evaluated_file
from polyepo_jax.generations.rows import read_generations as read_generations
from polyepo_jax.generations.rows import training_file as training_file
from polyepo_jax.generations.selection import Selection as Selection
from polyepo_jax.generations.selection import parse_steps as parse_steps
from polyepo_jax.generations.terminal import Printer as Printer
from polyepo_jax.generations.terminal import escaped as escaped
from polyepo_jax.generations.terminal import paged as paged
