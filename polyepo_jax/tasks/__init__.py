"""Domains: prompts, verifier and clusterer together."""

from polyepo_jax.tasks.dataset import Dataset as Dataset
from polyepo_jax.tasks.math import Math as Math
from polyepo_jax.tasks.multiplication import Multiplication as Multiplication
from polyepo_jax.tasks.polynomial import Polynomial as Polynomial
from polyepo_jax.tasks.task import Split as Split
from polyepo_jax.tasks.task import Task as Task
from polyepo_jax.tasks.task import TaskWithDemonstrations as TaskWithDemonstrations
from polyepo_jax.types import Problem as Problem
