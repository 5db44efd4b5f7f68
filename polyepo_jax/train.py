"""Set reinforcement learning: python -m polyepo_jax.train --config configs/.../....py [--run-dir DIR]

Prompts become rollouts, rollouts get grades, grades become advantages, advantages become an update. The same
command again resumes. Every config field can be overridden as --section.field value.
"""

from collections.abc import Sequence
from pathlib import Path

import jax

from polyepo_jax.config import Config
from polyepo_jax.config.static_arguments import draw_spec, stream, update_spec
from polyepo_jax.errors import InputError, Interrupted, run_command
from polyepo_jax.grading import Grader, GradingStopped
from polyepo_jax.judges.judge import Surroundings
from polyepo_jax.runs.preparation import check_judge
from polyepo_jax.runs.session import Session
from polyepo_jax.sets import check_advantage
from polyepo_jax.sharding import shard_rows
from polyepo_jax.shared_by_commands.start import start
from polyepo_jax.training.batch import Groups, flatten, keep_informative, num_informative
from polyepo_jax.training.data import PromptBatch
from polyepo_jax.training.rollouts import Draw, draw, summarize, trains_on_nothing
from polyepo_jax.training.start_kl import kl_to_start
from polyepo_jax.training.update import UpdateSpec, pass_step, train_step
from polyepo_jax.types import Array

SHOWN = {
    "rewards/mean": ("reward", ".3f"),
    "clusters/distinct_correct": ("distinct correct", ".2f"),
    "throughput/rollout_tokens_per_s": ("tokens/s", ",.0f"),
}


def draw_groups(
    config: Config, session: Session, grader: Grader, batch: PromptBatch, step_key: Array
) -> tuple[Groups, list[Draw]]:
    """The groups that a step trains on, and all that were drawn for it; settles the previous step meanwhile.

    Raises:
      GradingStopped: grading cannot go on.
      Interrupted: the run is asked to end.
    """
    spec = draw_spec(config, session.mesh)

    def stop_requested() -> bool:
        return session.stopping.requested

    def another(batch: PromptBatch, index: int) -> Draw:
        wanted = index == 0 and session.wants_samples()
        return draw(spec, grader, session.params, batch, step_key, index, wanted, session.settle, stop_requested)

    draws = [another(batch, 0)]
    groups = draws[0].groups
    while len(draws) < config.algorithm.max_prompt_batches and num_informative(groups) < config.prompts_per_step:
        session.stopping.raise_if_requested("further prompts were to be drawn")
        draws.append(another(session.next_prompts(), len(draws)))
        groups = keep_informative(groups, draws[-1].groups)
    return groups, draws


def update_on(
    config: Config, session: Session, spec: UpdateSpec, groups: Groups, trains_on_nothing: bool
) -> dict[str, Array]:
    """Dispatches the step's update of the session's state; the numbers that it says of itself, being computed."""
    passes = trains_on_nothing and not spec.loss.needs_reference
    numbers: dict[str, Array] = {}
    if passes and not session.wants_kl():
        session.ask_whether_to_stop()
    else:
        mask_truncated = config.algorithm.truncated == "mask"
        rows = flatten(mask_truncated, groups.prompts, groups.rollouts, groups.advantages_PN)
        rows = shard_rows(session.mesh, rows)
        session.ask_whether_to_stop()
    if session.wants_kl():
        # Of the policy that sampled, which is the one before the update.
        start_params, frozen = session.reference_params, session.frozen
        numbers["start_kl"] = kl_to_start(spec, session.state.params, start_params, rows, frozen)
    if passes:
        session.state, stats = pass_step(session.state)
    else:
        reference_params = session.reference_params if spec.loss.needs_reference else ()
        session.state, stats = train_step(spec, session.state, rows, reference_params, session.frozen)
    return stats | numbers


def train(config: Config, directory: Path, resume_command: str, profile: bool = False) -> bool:
    """Runs, or goes on with, the run in `directory`.

    Returns:
      Whether it came to its end, and was not stopped before.

    Raises:
      InputError: bad input, found before anything is written.
      RunError: a run that cannot go on.
    """
    algorithm, update = config.algorithm, update_spec(config)
    try:
        check_advantage(algorithm.advantage, config.num_generations)
    except ValueError as error:
        raise InputError(f"algorithm.advantage: {error}") from error
    root_key = stream(config.seed, "rollouts")
    check_judge(config.judge, config.num_generations)
    with (
        Session(config, directory, update, resume_command, SHOWN, profile) as session,
        Grader(
            config.task, config.judge, Surroundings(directory, session.mesh), lambda: session.stopping.requested
        ) as grader,
    ):
        for step, batch in session.steps():
            step_key = jax.random.fold_in(root_key, step)
            try:
                groups, draws = draw_groups(config, session, grader, batch, step_key)
            except GradingStopped as stopped:
                raise session.give_up_step(str(stopped)) from stopped
            except Interrupted as interrupted:
                session.stop_before_step(str(interrupted))
                return False

            counts = {}
            if algorithm.max_prompt_batches > 1:
                # Asked before the update is dispatched, which every later question to the devices would wait for.
                counts["dynamic_sampling/prompt_batches"] = float(len(draws))
                counts["dynamic_sampling/informative_frac"] = num_informative(groups) / config.prompts_per_step
            stats = update_on(config, session, update, groups, trains_on_nothing(draws))
            session.defer(step + 1, stats, summarize(draws) | counts)
            session.write_samples(step + 1, draws[0].samples)
            failures = [line for d in draws for line in d.grading.failures]
            if failures:
                session.say(f"step {step + 1}: {len(failures)} grading calls failed: {failures[0]}")
        return session.complete


def main(arguments: Sequence[str]) -> None:
    """The command."""
    start("polyepo_jax.train", Config, train, arguments, __doc__)


if __name__ == "__main__":
    run_command(main)
