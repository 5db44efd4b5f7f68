"""Which generations of a step are kept, and what is left out of them, against brute force."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polyepo_jax.training.metrics import Completions
from polyepo_jax.training.samples import LEFT_OUT, Excerpt, SamplesSpec, excerpts, sample_rows
from polyepo_jax.types import Grades, Problem

# Letters, what JSON escapes, what it takes 6 or 12 bytes for, and halves of characters.
TEXTS = st.text(st.sampled_from('ab "\\\n\té漢😀\ud83d\ude00\x00'), max_size=60)


def size_of(text):
    return len(json.dumps(text)) - 2


def is_character_cut(head, tail):
    return "\ud800" <= head[-1:] <= "\udbff" or "\udc00" <= tail[:1] <= "\udfff"


@given(TEXTS, st.integers(len(LEFT_OUT), 300))
@example("\ud83d\ud83d\\é😀", 31)
def test_a_text_is_cut_no_more_than_it_has_to_be(text, num_bytes):
    cut = Excerpt.of(text).cut(num_bytes)
    assert cut.characters == len(text)
    if size_of(text) <= num_bytes:
        assert cut.text == text
        return
    assert cut.text == cut.head + LEFT_OUT + cut.tail
    assert size_of(cut.text) <= num_bytes
    assert text.startswith(cut.head)
    assert text.endswith(cut.tail)
    room = (num_bytes - len(LEFT_OUT)) // 2
    heads = [text[:n] for n in range(len(text)) if size_of(text[:n]) <= room]
    tails = [text[n:] for n in range(1, len(text) + 1) if size_of(text[n:]) <= room]
    halves = max(heads, key=len), max(tails, key=len)
    assert not is_character_cut(cut.head, cut.tail)
    assert all("\ud800" <= character <= "\udbff" for character in halves[0].removeprefix(cut.head))
    assert all("\udc00" <= character <= "\udfff" for character in halves[1].removesuffix(cut.tail))
    assert (cut.head, cut.tail) == halves or is_character_cut(*halves)


@given(TEXTS, st.integers(20, 300), st.integers(20, 300))
def test_cut_twice_is_cut_once(text, first, second):
    assert Excerpt.of(text).cut(max(first, second)).cut(min(first, second)) == Excerpt.of(text).cut(min(first, second))


def test_short_texts_leave_their_room_to_long_ones():
    short, long = "s" * 10, "l" * 1000
    cut = excerpts([short, long, long], 110)
    assert cut[0].text == short
    assert [size_of(text.text) for text in cut[1:]] == [49, 49]  # 50 each, of which the halves and the mark take 49
    assert cut[1] == Excerpt("l" * 21, "l" * 21, 1000)


def batch(responses, prompts):
    """Problems, their texts, completions, grades and advantages; numbers tell their place."""
    shape = len(prompts), len(responses[0])
    numbers_PN = np.arange(shape[0] * shape[1]).reshape(shape)
    problems = [Problem(id=100 + i, prompt=prompt, reference="") for i, prompt in enumerate(prompts)]
    completions = Completions(numbers_PN + 5, np.zeros(shape), numbers_PN % 2 == 1)
    grades = Grades(numbers_PN.astype(np.float32), -numbers_PN, np.full(shape, True))
    grades.valid_PN[-1, -1] = False
    return problems, completions, grades, numbers_PN / 3


def rows_of(spec, responses, prompts):
    problems, completions, grades, advantages_PN = batch(responses, prompts)
    count = spec.num_generations(len(responses[0]))
    kept = [responses[row][:count] for row in spec.rows(len(prompts), len(responses[0]))]
    cut = excerpts([text for own in kept for text in own], spec.num_bytes)
    texts = [cut[i * count : (i + 1) * count] for i in range(len(kept))]
    return sample_rows(spec, problems, texts, completions, grades, advantages_PN)


def test_rows_by_hand():
    rows = rows_of(SamplesSpec(2, 10_000), [["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"]], ["P", "Q", "R", "S"])
    assert [(row["id"], row["prompt"], row["response"]) for row in rows] == [
        *((100, "P", "a"), (100, "P", "b")),
        *((102, "R", "e"), (102, "R", "f")),
    ]
    assert list(rows[3].items()) == [
        ("id", 102),
        ("prompt", "R"),
        ("sample", 1),
        ("response", "f"),
        ("reward", 5.0),
        ("cluster", -5),
        ("advantage", 1.66667),
        ("length", 10),
        ("truncated", True),
    ]
    failed = rows_of(SamplesSpec(4, 10_000), [["a", "b"], ["c", "d"]], ["P", "Q"])[-1]
    assert (failed["reward"], failed["cluster"], failed["sample"]) == (None, None, 1)


@given(st.data(), st.integers(1, 5), st.integers(2, 6), st.integers(0, 6), st.integers(512, 6000))
def test_a_step_stays_within_its_bytes(data, num_prompts, num_generations, wanted, num_bytes):
    texts = TEXTS.map(lambda text: text * 20)
    prompts = data.draw(st.lists(texts, min_size=num_prompts, max_size=num_prompts))
    responses = [
        data.draw(st.lists(texts, min_size=num_generations, max_size=num_generations)) for _ in range(num_prompts)
    ]
    spec = SamplesSpec(wanted, num_bytes)
    rows = rows_of(spec, responses, prompts)
    lines = [json.dumps({"step": 1_000_000_000, **row}) + "\n" for row in rows]
    assert sum(map(len, lines)) <= num_bytes
    kept = min(wanted, num_prompts)
    while kept > 1 and kept * num_generations * 512 > num_bytes:
        kept -= 1
    assert len(rows) == kept * min(num_generations, num_bytes // 512)
    for row in rows:
        whole = responses[row["id"] - 100][row["sample"]]
        assert row.get("characters", len(whole)) == len(whole)
        assert ("characters" in row) == (row["response"] != whole)


@pytest.mark.parametrize("owners", [[0, 0, 0], [0, 1, 2], [1, 0, 1]])
def test_who_has_the_texts_plays_no_part(owners):
    prompts = ["p" * 50, "q" * 3000, "r"]
    responses = [["x" * 10, "é" * 700], ["y" * 5000, "z"], ["", "w" * 2000]]
    spec = SamplesSpec(3, 4000)
    cut = {}
    for process in set(owners):  # each cuts what it has before it says so
        own = [row for row, owner in enumerate(owners) if owner == process]
        found = excerpts([text for row in own for text in responses[row]], spec.num_bytes)
        cut |= {row: found[2 * i : 2 * i + 2] for i, row in enumerate(own)}
    problems, *numbers = batch(responses, prompts)
    rows = sample_rows(spec, problems, [cut[row] for row in range(3)], *numbers)
    assert rows == rows_of(spec, responses, prompts)
    assert sum(len(json.dumps({"step": 1, **row})) + 1 for row in rows) > 0.9 * 4000
