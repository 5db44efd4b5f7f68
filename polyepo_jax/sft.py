"""Supervised warm start on a task's demonstrations: python -m polyepo_jax.sft --config configs/.../....py

The same command again resumes. Every config field can be overridden as --section.field value.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyepo_jax.config import SFTConfig
from polyepo_jax.errors import RunError, run_command
from polyepo_jax.losses import SupervisedLoss
from polyepo_jax.runs.session import Session
from polyepo_jax.sharding import shard_rows
from polyepo_jax.shared_by_commands.start import start
from polyepo_jax.training.data import demonstration_batch
from polyepo_jax.training.update import UpdateSpec, train_step

SHOWN = {"loss/supervised": ("loss", ".4f"), "throughput/train_tokens_per_s": ("tokens/s", ",.0f")}


def update_spec(config: SFTConfig) -> UpdateSpec:
    """What each step updates."""
    return UpdateSpec(
        model=config.model,
        loss=SupervisedLoss(),
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        prompt_length=config.max_prompt_length,
        micro_batch_rows=config.micro_batch_size,
    )


def sft(config: SFTConfig, directory: Path, resume_command: str, profile: bool = False) -> bool:
    """Runs, or goes on with, the run in `directory`.

    Returns:
      Whether it came to its end, and was not stopped before.

    Raises:
      InputError: bad input, found before anything is written.
      RunError: a run that cannot go on.
    """
    update = update_spec(config)
    with Session(config, directory, update, resume_command, SHOWN, profile) as session:
        for step in session.steps():
            prompts = session.next_prompts()
            rng = np.random.default_rng([config.seed, step])
            try:
                batch = demonstration_batch(config.task, prompts, config.max_completion_length, rng)
            except ValueError as error:
                raise RunError(str(error)) from error
            rows = shard_rows(session.mesh, batch)
            session.ask_whether_to_stop()
            session.state, stats = train_step(update, session.state, rows, frozen=session.frozen)
            session.settle()
            stats = {name: value for name, value in stats.items() if name not in ("clip_frac", "sampler_gap")}
            stats["supervised"] = stats.pop("loss")
            session.defer(step + 1, stats, {})
        return session.complete


def main(arguments: Sequence[str]) -> None:
    """The command."""
    start("polyepo_jax.sft", SFTConfig, sft, arguments, __doc__)


if __name__ == "__main__":
    run_command(main)
