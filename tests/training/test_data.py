"""Prompt batches: order, resumption, refusals."""

import dataclasses
import itertools

import numpy as np
import pytest

from polyepo_jax.model.tokenizer import CharacterTokenizer, HFTokenizer
from polyepo_jax.tasks import Polynomial, Problem
from polyepo_jax.training.data import (
    admit,
    demonstration_batch,
    fingerprint,
    prompt_dataset,
    prompts_fingerprint,
    to_prompts,
)
from tests.tiny_hf import write_tokenizer

TOKENIZER = CharacterTokenizer("abc$", "$")
PROBLEMS = tuple(Problem(100 + i, "abc"[: 1 + i % 3], "") for i in range(10))


def take(dataset, count):
    return list(itertools.islice(iter(dataset), count))


def test_batches_are_distinct_and_cover_an_epoch_before_the_next():
    batches = take(prompt_dataset(PROBLEMS, TOKENIZER, 3, 4, seed=1), 6)
    ids = [batch.prompts.ids_P.tolist() for batch in batches]
    assert all(len(set(batch)) == 3 for batch in ids)
    assert len({i for batch in ids[:3] for i in batch}) == 9  # nine of ten problems an epoch, none twice
    assert ids[:3] != ids[3:]  # reshuffled
    for batch in batches:
        assert [p.id for p in batch.problems] == batch.prompts.ids_P.tolist()


def test_prompts_are_left_padded():
    prompts = to_prompts(PROBLEMS[:3], TOKENIZER, 4)
    np.testing.assert_array_equal(prompts.tokens_PT, [[0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3]])
    np.testing.assert_array_equal(prompts.mask_PT, np.asarray(prompts.tokens_PT) > 0)


def test_a_restored_iterator_goes_on_in_the_same_order():
    dataset = prompt_dataset(PROBLEMS, TOKENIZER, 3, 4, seed=1)
    iterator = iter(dataset)
    for _ in range(4):
        next(iterator)
    position = iterator.get_state()
    expected = [next(iterator).prompts.ids_P.tolist() for _ in range(5)]
    resumed = iter(prompt_dataset(PROBLEMS, TOKENIZER, 3, 4, seed=1))
    resumed.set_state(position)
    assert [next(resumed).prompts.ids_P.tolist() for _ in range(5)] == expected
    other_seed = take(prompt_dataset(PROBLEMS, TOKENIZER, 3, 4, seed=2), 9)[4:]
    assert [b.prompts.ids_P.tolist() for b in other_seed] != expected


def test_fingerprint_changes_with_whatever_changes_the_order():
    prints = {
        fingerprint(PROBLEMS, 3, 1),
        fingerprint(PROBLEMS, 3, 2),
        fingerprint(PROBLEMS, 4, 1),
        fingerprint(PROBLEMS[::-1], 3, 1),
        fingerprint((*PROBLEMS[:-1], Problem(109, "a", "other")), 3, 1),
    }
    assert len(prints) == 5
    assert fingerprint(PROBLEMS, 3, 1) in prints
    turned = (*PROBLEMS[:-1], dataclasses.replace(PROBLEMS[-1], turns=(("system", "Be brief."),)))
    assert fingerprint(turned, 3, 1) not in prints


def test_fingerprints_are_those_of_older_checkpoints():
    assert fingerprint(PROBLEMS, 3, 1) == "0864efc6b2d78d54"
    assert fingerprint(Polynomial().problems("train"), 4, 0) == "5b7542ac8fcb2904"


def test_prompts_alone_have_a_fingerprint_that_answers_do_not_change():
    same = prompts_fingerprint(PROBLEMS, 3, 1)
    corrected = (*PROBLEMS[:-1], Problem(109, "a", "other"))
    assert fingerprint(corrected, 3, 1) != fingerprint(PROBLEMS, 3, 1)
    assert prompts_fingerprint(corrected, 3, 1) == same
    turned = (*PROBLEMS[:-1], dataclasses.replace(PROBLEMS[-1], turns=(("system", "Be brief."),)))
    others = [(PROBLEMS, 3, 2), (PROBLEMS, 4, 1), (PROBLEMS[::-1], 3, 1), (turned, 3, 1)]
    assert len({same, *(prompts_fingerprint(*other) for other in others)}) == 5


def test_long_prompts_are_refused_with_their_number_or_dropped():
    with pytest.raises(ValueError, match=r"3 of 10 prompts are longer than max_prompt_length = 2 tokens .*has 3"):
        admit(PROBLEMS, TOKENIZER, 2, "refuse")
    kept = admit(PROBLEMS, TOKENIZER, 2, "drop")
    assert kept == tuple(p for p in PROBLEMS if len(p.prompt) <= 2)
    with pytest.raises(ValueError, match="none of the 3 prompts fits"):
        admit(PROBLEMS[2::3], TOKENIZER, 2, "drop")


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        ([Problem(1, "a", ""), Problem(1, "b", "")], "distinct"),
        ([Problem(-1, "a", "")], "between 0"),
        ([Problem(2**31, "a", "")], "between 0"),
        ([Problem(7, "", "")], "problem 7 has an empty prompt"),
        ([Problem(7, "ax", "")], "not in the alphabet"),
    ],
)
def test_unusable_problems_are_refused(problems, message):
    with pytest.raises(ValueError, match=message):
        admit(problems, TOKENIZER, 4, "refuse")


def test_more_prompts_a_step_than_there_are_is_refused():
    with pytest.raises(ValueError, match="prompts_per_step = 11 is more than the 10"):
        prompt_dataset(PROBLEMS, TOKENIZER, 11, 4, seed=0)


def test_demonstrations_follow_their_prompts():
    task = Polynomial(error_rate=0.0)
    (batch,) = take(prompt_dataset(task.problems("train"), task.tokenizer, 5, 8, seed=0), 1)
    rows = demonstration_batch(task, batch, 25, np.random.default_rng(0))
    for b, problem in enumerate(batch.problems):
        text = task.tokenizer.decode(rows.tokens_BT[b][rows.mask_BT[b]].tolist())
        prompt, response = text[:6], text[6:]
        assert prompt == problem.prompt
        assert task.verify(problem, response) == 1
        trained = task.tokenizer.decode(rows.tokens_BT[b][rows.loss_mask_BT[b]].tolist())
        assert trained == response
    with pytest.raises(ValueError, match="more than max_completion_length = 5"):
        demonstration_batch(task, batch, 5, np.random.default_rng(0))


@dataclasses.dataclass(frozen=True)
class Echo:
    """A task whose demonstrations repeat the reference."""

    tokenizer: HFTokenizer

    def demonstrate(self, problem, rng):
        return problem.reference


def test_models_see_prompts_and_demonstrations_as_chat_turns(tmp_path):
    write_tokenizer(tmp_path)
    task, problem = Echo(HFTokenizer(str(tmp_path))), Problem(3, "1 + 1", "2")
    prompt, completion = task.tokenizer.encode_prompt("1 + 1"), task.tokenizer.encode_completion("2")
    assert len(prompt) > len(task.tokenizer.encode("1 + 1"))
    with pytest.raises(ValueError, match=rf"the longest has {len(prompt)}\)"):
        admit([problem], task.tokenizer, len(prompt) - 1, "refuse")
    kept = admit([problem], task.tokenizer, len(prompt), "refuse")
    (batch,) = take(prompt_dataset(kept, task.tokenizer, 1, len(prompt), seed=0), 1)
    rows = demonstration_batch(task, batch, 4, np.random.default_rng(0))
    assert rows.tokens_BT[0].tolist() == [*prompt, *completion, *[task.tokenizer.pad_id] * (4 - len(completion))]
    assert rows.tokens_BT[0][rows.loss_mask_BT[0]].tolist() == completion
    assert completion[-1] in task.tokenizer.stop_ids
