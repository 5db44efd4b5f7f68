"""A model directory on benchmarks, by their names alone: the config that evaluates it is made here."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from polyepo_jax.config import EvaluationConfig, Math, RunConfig
from polyepo_jax.errors import InputError
from polyepo_jax.model.chat_template import has_chat_template
from polyepo_jax.model.config import Dtype
from polyepo_jax.runs.model_directory import read_shape
from polyepo_jax.tasks import benchmarks
from polyepo_jax.training.data import prompt_lengths

NUM_SAMPLES = 16
_COMPLETION = 4096  # tokens, where the model has as many positions


def benchmark_config(
    model_dir: Path, names: Sequence[str], max_completion_length: int | None, dtype: Dtype | None
) -> RunConfig:
    """Prompts as long as the longest, in the model's chat template where it has one.

    Args:
      names: as of `benchmarks.by_name`.
      max_completion_length: tokens; None for 4,096, or as many as the model's positions leave.
      dtype: of the weights and of computing; None for float32 on a CPU, else bfloat16.

    Raises:
      InputError: an unknown name, a set that cannot be had, a directory that is not a model's, no room to answer.
    """
    try:
        first, *others = map(benchmarks.by_name, names)
        task = Math(
            train="",  # which is never read
            test=first,
            benchmarks=tuple(others),
            tokenizer_dir=str(model_dir),
            chat=has_chat_template(model_dir),
        )
        shape = read_shape(model_dir)
        problems = [problem for part in (task, *task.benchmark_tasks) for problem in part.problems("test")]
        longest = max(prompt_lengths(problems, task.tokenizer))
    except ValueError as error:
        raise InputError(str(error)) from error
    room = shape.max_position_embeddings - longest
    sizes = f"the longest prompt has {longest} tokens and {model_dir} {shape.max_position_embeddings} positions"
    if room < 1:
        raise InputError(f"{sizes}: none is left for an answer; expected a model of more positions")
    if max_completion_length is None:
        max_completion_length = min(_COMPLETION, room)
    if not 1 <= max_completion_length <= room:
        raise InputError(
            f"{sizes}: expected --max-completion-length from 1 to the {room} that are left, got {max_completion_length}"
        )
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return RunConfig(
        task=task,
        model=dataclasses.replace(shape, dtype=dtype, param_dtype=dtype),
        max_prompt_length=longest,
        max_completion_length=max_completion_length,
        evaluation=EvaluationConfig(num_samples=NUM_SAMPLES),
        # Nothing is trained.
        max_steps=1,
        prompts_per_step=1,
        learning_rate=0.0,
    )
