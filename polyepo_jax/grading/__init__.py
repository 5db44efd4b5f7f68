"""Rollouts in, grades out: decode, verify, cluster."""

from polyepo_jax.grading.grader import BY_THE_TASK as BY_THE_TASK
from polyepo_jax.grading.grader import Gradable as Gradable
from polyepo_jax.grading.grader import Grader as Grader
from polyepo_jax.grading.grader import Grading as Grading
from polyepo_jax.grading.grader import GradingStopped as GradingStopped
from polyepo_jax.grading.grader import JudgeConfig as JudgeConfig
from polyepo_jax.grading.grader import Submitted as Submitted
from polyepo_jax.grading.grader import add_counts as add_counts
from polyepo_jax.grading.grader import decode as decode
from polyepo_jax.grading.grader import grade as grade
from polyepo_jax.grading.grader import join as join
