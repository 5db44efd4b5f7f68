"""Problems in, prompt batches out: a grain pipeline whose position is checkpointed.

Every process goes through the same batches at the same pace, so that the position is one number, whatever the number of
processes; of a batch each tokenizes the prompts that its own devices sample.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import grain
import numpy as np

from polyepo_jax.model.tokenizer import Tokenizer
from polyepo_jax.tasks import Problem, TaskWithDemonstrations
from polyepo_jax.types import Batch, Prompts


class PromptBatch(NamedTuple):
    """The prompts of a step: arrays (NumPy) for the model, and problems, in the same order, for the host.

    Of several processes each has the tokens of its own rows only; those of the others are all padding.
    """

    prompts: Prompts
    problems: tuple[Problem, ...]


def admit(
    problems: Sequence[Problem], tokenizer: Tokenizer, max_prompt_length: int, long_prompts: Literal["refuse", "drop"]
) -> tuple[Problem, ...]:
    """The problems whose prompts fit; prompts are never cut. None of none.

    Raises:
      ValueError: prompts longer than `max_prompt_length` under "refuse", no problem left, an empty prompt, or
        ids that are repeated or not in 0 .. 2^31 - 1.
    """
    ids = [problem.id for problem in problems]
    if len(set(ids)) != len(ids) or any(not 0 <= i < 2**31 for i in ids):
        raise ValueError("problem ids must be distinct and between 0 and 2^31 - 1")
    lengths = prompt_lengths(problems, tokenizer)
    if 0 in lengths:
        raise ValueError(
            f"problem {problems[lengths.index(0)].id} has an empty prompt: the model needs a token to start"
        )
    num_long = sum(length > max_prompt_length for length in lengths)
    if num_long and long_prompts == "refuse":
        raise ValueError(
            f"{num_long} of {len(problems)} prompts are longer than max_prompt_length = {max_prompt_length} tokens "
            f"(the longest has {max(lengths)}): raise max_prompt_length, or set long_prompts = 'drop' to leave them out"
        )
    if problems and num_long == len(problems):
        raise ValueError(
            f"none of the {len(problems)} prompts fits max_prompt_length = {max_prompt_length} tokens: raise it"
        )
    return tuple(p for p, length in zip(problems, lengths, strict=True) if length <= max_prompt_length)


def to_prompts(
    problems: Sequence[Problem], tokenizer: Tokenizer, max_prompt_length: int, own_P: np.ndarray | None = None
) -> Prompts:
    """Left-padded prompts of `max_prompt_length` tokens, as NumPy arrays.

    Args:
      own_P: which of them to tokenize, as of `sampling.own_prompts`; the others' rows are all padding. None: all.
    """
    tokens_PT = np.full((len(problems), max_prompt_length), tokenizer.pad_id, np.int32)
    mask_PT = np.zeros(tokens_PT.shape, bool)
    for row in range(len(problems)) if own_P is None else np.flatnonzero(own_P).tolist():
        ids = _prompt_ids(problems[row], tokenizer)
        tokens_PT[row, max_prompt_length - len(ids) :] = ids
        mask_PT[row, max_prompt_length - len(ids) :] = True
    ids_P = np.array([problem.id for problem in problems], np.int32)
    return Prompts(tokens_PT, mask_PT, ids_P)  # type: ignore[arg-type]  # NumPy until it is placed on devices


def prompt_lengths(problems: Sequence[Problem], tokenizer: Tokenizer) -> list[int]:
    """Tokens of each prompt."""
    return [len(_prompt_ids(problem, tokenizer)) for problem in problems]


def _prompt_ids(problem: Problem, tokenizer: Tokenizer) -> list[int]:
    if problem.turns:  # a tokenizer of the user's own may know no turns
        return tokenizer.encode_prompt(problem.prompt, problem.turns)
    return tokenizer.encode_prompt(problem.prompt)


def prompt_dataset(
    problems: Sequence[Problem],
    tokenizer: Tokenizer,
    prompts_per_step: int,
    max_prompt_length: int,
    seed: int,
    own_P: np.ndarray | None = None,
) -> grain.IterDataset:
    """An endless stream of PromptBatch, reshuffled every epoch; the problems of a batch are distinct.

    An epoch's last, incomplete batch is left out. The state of its iterators is the same in every process.

    Args:
      own_P: as of `to_prompts`.

    Raises:
      ValueError: fewer problems than a batch takes.
    """
    if len(problems) < prompts_per_step:
        raise ValueError(f"prompts_per_step = {prompts_per_step} is more than the {len(problems)} training prompts")

    def to_batch(indices: np.ndarray) -> PromptBatch:
        chosen = tuple(problems[i] for i in indices)
        return PromptBatch(to_prompts(chosen, tokenizer, max_prompt_length, own_P), chosen)

    dataset = grain.MapDataset.range(len(problems)).shuffle(seed).batch(prompts_per_step, drop_remainder=True)
    return dataset.repeat().map(to_batch).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))


def fingerprint(problems: Sequence[Problem], prompts_per_step: int, seed: int) -> str:
    """Identifies a prompt order and the references: grain would resume another one without a word."""
    # Turns only where there are any, so that the checkpoints from before there were some can be resumed.
    shown = [(p.id, p.prompt, p.reference, *([p.turns] if p.turns else [])) for p in problems]
    return _digest([prompts_per_step, seed, shown])


def prompts_fingerprint(problems: Sequence[Problem], prompts_per_step: int, seed: int) -> str:
    """Identifies a prompt order alone: where `fingerprint` differs and this does not, only references do."""
    return _digest([prompts_per_step, seed, [(p.id, p.prompt, p.turns) for p in problems]])


def tokens_fingerprint(problems: Sequence[Problem], tokenizer: Tokenizer) -> str:
    """Identifies problems and their prompts as a model is given them."""
    return _digest([(problem.id, list(map(int, _prompt_ids(problem, tokenizer)))) for problem in problems])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def demonstration_batch(
    task: TaskWithDemonstrations, batch: PromptBatch, max_completion_length: int, rng: np.random.Generator
) -> Batch:
    """One demonstration of each prompt, as rows of a supervised update (NumPy arrays).

    Raises:
      ValueError: a demonstration longer than `max_completion_length`.
    """
    tokens_PT, mask_PT = np.asarray(batch.prompts.tokens_PT), np.asarray(batch.prompts.mask_PT)
    completions_PT = np.full((len(tokens_PT), max_completion_length), task.tokenizer.pad_id, np.int32)
    trained_PT = np.zeros(completions_PT.shape, bool)
    for row, problem in enumerate(batch.problems):
        ids = task.tokenizer.encode_completion(task.demonstrate(problem, rng))
        if len(ids) > max_completion_length:
            raise ValueError(
                f"a demonstration of problem {problem.id} has {len(ids)} tokens, more than max_completion_length = "
                f"{max_completion_length}: raise it"
            )
        completions_PT[row, : len(ids)] = ids
        trained_PT[row, : len(ids)] = True
    loss_mask_BT = np.concatenate([np.zeros_like(mask_PT), trained_PT], axis=1)
    unused_BT = np.zeros(loss_mask_BT.shape, np.float32)
    return Batch(
        tokens_BT=np.concatenate([tokens_PT, completions_PT], axis=1),  # type: ignore[arg-type]
        mask_BT=np.concatenate([mask_PT, trained_PT], axis=1),  # type: ignore[arg-type]
        loss_mask_BT=loss_mask_BT,  # type: ignore[arg-type]
        sampler_logprobs_BT=unused_BT,  # type: ignore[arg-type]
        proximal_logprobs_BT=unused_BT,  # type: ignore[arg-type]
        advantages_B=np.ones(len(tokens_PT), np.float32),  # type: ignore[arg-type]
    )
