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
from polyepo_jax.training.draws import Draw, collect, summarize, trains_on_nothing
from polyepo_jax.training.rollouts import InFlight, sample, submit_again
from polyepo_jax.training.start_kl import kl_to_start
from polyepo_jax.training.update import UpdateSpec, pass_step, train_step
from polyepo_jax.types import Array

SHOWN = {
    "rewards/mean": ("reward", ".3f"),
    "clusters/distinct_correct": ("distinct correct", ".2f"),
    "throughput/rollout_tokens_per_s": ("tokens/s", ",.0f"),
}


def step_key(config: Config, step: int) -> Array:
    """Of the random numbers of a step's rollouts and sets."""
    return jax.random.fold_in(stream(config.seed, "rollouts"), step)


def sample_next(config: Config, session: Session, grader: Grader, step: int, index: int = 0) -> InFlight:
    """The next prompts, sampled with the parameters at hand for `step`, whose batch `index` they are; settles the
    previous step meanwhile.

    Raises:
      Interrupted: the run is asked to end.
    """
    spec, key = draw_spec(config, session.mesh), step_key(config, step)
    prompts, params = session.next_prompts(), session.params

    def stop_requested() -> bool:
        return session.stopping.requested

    return sample(spec, grader, params, prompts, key, index, session.step, session.settle, stop_requested)


def sample_ahead(config: Config, session: Session, grader: Grader) -> float:
    """Samples for the step that comes `algorithm.staleness` steps after the present one; in a run's first step for all
    up to that one, in its last steps for none.

    Returns:
      Seconds that the host waited for the devices.

    Raises:
      Interrupted: the run is asked to end.
    """
    in_flight, end = session.in_flight, min(session.step + config.algorithm.staleness + 1, config.max_steps)
    waited_s = 0.0
    for step in range(session.step + len(in_flight), end):
        in_flight.append(sample_next(config, session, grader, step))
        waited_s += in_flight[-1].sampled.times["time/rollout_wait_s"]
    return waited_s


def draw_groups(config: Config, session: Session, grader: Grader) -> tuple[Groups, list[Draw]]:
    """The groups that the present step trains on, and all that were drawn for it.

    Raises:
      GradingStopped: grading cannot go on.
      Interrupted: the run is asked to end.
    """
    spec, step = draw_spec(config, session.mesh), session.step
    draws = [collect(spec, grader, session.in_flight.popleft(), step_key(config, step), 0, session.wants_samples())]
    groups = draws[0].groups
    while len(draws) < config.algorithm.max_prompt_batches and num_informative(groups) < config.prompts_per_step:
        session.stopping.raise_if_requested("further prompts were to be drawn")
        more = sample_next(config, session, grader, step, len(draws))
        draws.append(collect(spec, grader, more, step_key(config, step), len(draws)))
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
        # Of the policy before the update, which is the one that sampled, unless rollouts are stale.
        start_params, frozen = session.reference_params, session.frozen
        numbers["start_kl"] = kl_to_start(spec, session.state.params, start_params, rows, frozen)
    if passes:
        session.state, stats = pass_step(spec, session.state)
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
    check_judge(config.judge, config.num_generations)
    with (
        Session(config, directory, update, resume_command, SHOWN, profile) as session,
        Grader(
            config.task, config.judge, Surroundings(directory, session.mesh), lambda: session.stopping.requested
        ) as grader,
    ):
        spec = draw_spec(config, session.mesh)
        while session.restored:
            session.in_flight.append(submit_again(spec, grader, session.restored.pop(0)))
        for step in session.steps():
            try:
                waited_s = sample_ahead(config, session, grader)
                groups, draws = draw_groups(config, session, grader)
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
            if algorithm.staleness:
                # Of other rollouts than those that it trains on are the seconds that the step waited.
                counts |= {"policy/staleness": float(step - draws[0].num_steps), "time/rollout_wait_s": waited_s}
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
