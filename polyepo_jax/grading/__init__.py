"""Rollouts in, grades out: decode, verify, cluster."""

from polyepo_jax.grading.grader import Gradable as Gradable
from polyepo_jax.grading.grader import Grader as Grader
from polyepo_jax.grading.grader import GradingStopped as GradingStopped
from polyepo_jax.grading.grader import Submitted as Submitted
from polyepo_jax.grading.grader import grade as grade
from polyepo_jax.grading.grades import Grading as Grading
from polyepo_jax.grading.grades import add_counts as add_counts
from polyepo_jax.grading.grades import decode as decode
from polyepo_jax.grading.grades import join as join
from polyepo_jax.grading.judge_config import BY_THE_TASK as BY_THE_TASK
from polyepo_jax.grading.judge_config import JudgeConfig as JudgeConfig
