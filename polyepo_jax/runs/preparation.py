"""What is checked before a command starts: problems that fit, a judge that can work."""

import dataclasses
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from polyepo_jax.config import Config, RunConfig
from polyepo_jax.config.meshes import mesh_of, prompts_to_tokenize
from polyepo_jax.config.static_arguments import num_updates
from polyepo_jax.errors import InputError
from polyepo_jax.grading import JudgeConfig
from polyepo_jax.judges import Rubric
from polyepo_jax.pods import collectives
from polyepo_jax.runs import run_directory
from polyepo_jax.sharding import Mesh
from polyepo_jax.tasks import Problem, Split
from polyepo_jax.training import data


def admitted(config: RunConfig, split: Split) -> tuple[Problem, ...]:
    """The problems of a split whose prompts fit.

    Raises:
      InputError: as of `data.admit`.
    """
    try:
        _check_tokenizer(config)
        problems = config.task.problems(split)
        return data.admit(problems, config.task.tokenizer, config.max_prompt_length, config.long_prompts)
    except ValueError as error:
        raise InputError(str(error)) from error


def _check_tokenizer(config: RunConfig) -> None:
    """Reads the tokenizer's files, if it has any, before anything else does.

    Raises:
      ValueError: they are not what they should be, or have ids for which the model has no embedding.
    """
    tokenizer = config.task.tokenizer
    largest = max(tokenizer.vocab_size - 1, tokenizer.pad_id, *tokenizer.stop_ids)
    if largest >= config.model.vocab_size:
        raise ValueError(
            f"the tokenizer's largest id is {largest}, but the model's embedding has model.vocab_size = "
            f"{config.model.vocab_size} rows: this is another model's tokenizer"
        )


def check_judge(judge: JudgeConfig, num_responses: int) -> None:
    """Raises InputError where a judge that can tell beforehand could not work."""
    check = getattr(judge.clusterer, "check", None)
    if check is not None:
        try:
            check(num_responses)
        except ValueError as error:
            raise InputError(f"judge.clusterer: {error}") from error


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that was found to be possible before anything of it is written.

    problems, validation: those of the splits whose prompts fit.
    mesh: of all devices.
    data: the iterator over PromptBatch, at its start.
    fingerprint: of the problems in their order. prompts_fingerprint: the same without what they are graded by.
    rubric: of the text that the judge goes by; empty where there is none.
    notes: lines for the user.
    """

    config: RunConfig
    directory: Path
    problems: tuple[Problem, ...]
    validation: tuple[Problem, ...]
    mesh: Mesh
    data: Any
    fingerprint: str
    prompts_fingerprint: str
    rubric: str
    notes: tuple[str, ...]


def prepare(config: RunConfig, directory: Path) -> Prepared:
    """All that can be checked on the host, and that it is the same in all processes; writes nothing.

    Raises:
      InputError: in all processes, where one finds something that is not as it should be.
    """
    with collectives.agreed():
        prepared = _prepare(config, directory)
    collectives.check_same(
        training_problems=prepared.fingerprint,
        validation_problems=data.fingerprint(prepared.validation, 0, 0),
        rubric_of_the_judge=prepared.rubric,
    )
    return prepared


def _prepare(config: RunConfig, directory: Path) -> Prepared:
    """What each process checks for itself."""
    notes = [f"resumed with a changed {change}" for change in run_directory.check(directory, config)]
    problems = admitted(config, "train")
    validation = admitted(config, "validation")[: config.evaluation.num_validation_prompts]
    if config.eval_interval_steps and not validation:
        raise InputError(
            f"eval_interval_steps = {config.eval_interval_steps}, but the task has no validation problems: set it to 0"
        )
    num_dropped = len(config.task.problems("train")) - len(problems)
    if num_dropped:
        notes.append(f"{num_dropped} training prompts longer than max_prompt_length are left out")
    notes += getattr(config.task, "notes", ())
    if (updates := num_updates(config)) <= config.optimizer.warmup_steps:
        notes.append(
            f"the warm-up of {config.optimizer.warmup_steps} updates is not over when the run ends, after {updates}: "
            "the learning rate never reaches its peak"
        )
    mesh = mesh_of(config)
    try:
        dataset = data.prompt_dataset(
            problems,
            config.task.tokenizer,
            config.prompts_per_step,
            config.max_prompt_length,
            config.seed,
            prompts_to_tokenize(config, mesh),
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    if config.logging.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        raise InputError("logging.wandb_project needs the package wandb: pip install -e '.[wandb]', or leave it out")
    identity = problems, config.prompts_per_step, config.seed
    return Prepared(
        config=config,
        directory=directory,
        problems=problems,
        validation=validation,
        mesh=mesh,
        data=iter(dataset),
        fingerprint=data.fingerprint(*identity),
        prompts_fingerprint=data.prompts_fingerprint(*identity),
        rubric=_rubric_of(config),
        notes=tuple(notes),
    )


def _rubric_of(config: RunConfig) -> str:
    """What identifies the text that a judge goes by, which may be in a file; empty where there is none."""
    rubric = getattr(config.judge.clusterer, "rubric", None) if isinstance(config, Config) else None
    return "" if not isinstance(rubric, Rubric) else hashlib.sha256(rubric.template.encode()).hexdigest()[:16]
