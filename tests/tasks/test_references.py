"""Final answers of references: read where they are worked, left out and counted where a right response would get 0."""

import json
from pathlib import Path

import pytest

from polyepo_jax.rewards.answers import boxed
from polyepo_jax.rewards.math import MathVerifier
from polyepo_jax.tasks import Dataset, Math, Problem
from polyepo_jax.tasks.references import check, read
from polyepo_jax.tasks.rows import load

DATA = Path(__file__).parents[3] / "shared" / "data"
VERIFIER = MathVerifier()

# A reference as people write it, and what a right response has in its box.
READ = [
    ("We add 3 and 4.\n#### 7", "7"),
    ("#### 1\nNo:\n#### 1,000 \n\nChecked.", "1000"),
    ("First \\boxed{3}, so\n#### \\boxed{7}", "7"),
    ("#### $\\frac{1}{2}$", "0.5"),
    ("#### 7 apples", "7"),
    ("We add: \\boxed{3} and 4 is \\boxed{7}.", "7"),
    ("The answer is 3. No, the answer is \\boxed{7}.", "7"),
    ("#### Step 1\nAdd.\n#### Solution\nThe answer is 7.", "7"),
    ("#### Solution\nThe sum is \\boxed{7}.\n", "7"),
    ("so it is $2^{4}$, or \\boxed{16}.", "16"),
    ("first \\boxed{3}, then 3 + 4, or \\boxed{7}", "7"),
    ("The answer is 7", "7"),
    ("The answer is 7.", "7"),
    ("3 + 4 = 7, so the answer is 3. The final answer is 7. I hope it is correct.", "7"),
    ("So the answer is: \\(x=3\\).", "3"),
    ("the answer is $7.$", "7"),
    ("The answer is\n\\[ \\frac{1}{2} \\]", "\\frac12"),
    ("The answer is 3.5.", "7/2"),
    ("**Answer:** 7", "7"),
    ("**Answer: 7**", "7"),
    ("The answer is **(B)**.", "B"),
    ("The answer is D. None of these", "D"),
    ("The answers are 3 and 5", "3,5"),
    ("答案是7", "7"),
]

# No single answer, or one that would not be graded 1.
REFUSED = [
    "We add 3 and 4 to get 7",
    "Thus there are 7 ways",
    "First we compute x.\nThen y=4.",
    "7 is the answer",
    "the sum is 5; the product is 6",
    "The answer is obvious because 3+4=7",
    "The answer is",
    "We see that the final value must be exactly fourteen.",
    "####",
    "#### We get 3 and then 4, so 7",
    "#### Step 1\nAdd.\n#### Solution\nIt follows.",
    "so \\boxed{2} or $\\boxed{3}$",
    "\\boxed{2}, \\boxed{3}",
    "\\boxed{We get 3 and then 4}",
    "3 + 4 = 8",
    "\\boxed{}",
    "so \\boxed{7",
    "The answer is \\boxed{",
]

# Answers, in words or with words in them, that stay as they are.
LEFT = [
    *("7", " 7 ", "12 cm", "12 square meters per second", "x = 3 or x = 5", "no solution", "infinitely many", "Monday"),
    *("\\text{if } x>0", "all real numbers except 2", "3 hours and 20 minutes", "\\text{(A)}", "B", "a + b", "i"),
    *("(-\\infty, 2) \\cup (3, \\infty)", "\\frac{1}{2} \\text{ of the whole area}", "y = 2x + 1", "2.5e-3", "$18"),
]


@pytest.mark.parametrize(("reference", "answer"), READ)
def test_a_right_response_to_a_worked_reference_is_graded_1(reference, answer):
    found = read(reference)
    assert not found.why
    assert check(found.answer, VERIFIER) is None
    assert VERIFIER(Problem(0, "", found.answer), f"so \\boxed{{{answer}}}").reward == 1
    assert VERIFIER(Problem(0, "", found.answer), "so \\boxed{11}").reward == 0


@pytest.mark.parametrize("reference", REFUSED)
def test_a_reference_without_a_single_answer_is_refused(reference):
    found = read(reference)
    assert found.why or check(found.answer, VERIFIER)


@pytest.mark.parametrize("reference", LEFT)
def test_an_answer_by_itself_is_left_as_it_is(reference):
    assert read(reference) == (reference, "")
    assert check(reference, VERIFIER) is None


def test_a_hostile_reference_is_read_in_time():
    for text in ("." * 100_000, "**" * 50_000, "#" * 100_000, "answer is " * 10_000, "=1" * 50_000, "$" * 99_999):
        read(text)
        read(f"#### {text}")


@pytest.mark.parametrize("file", ["gsm8k_test.jsonl", "math_responses.jsonl", "aime24.jsonl", "amc23.jsonl"])
def test_references_of_published_sets_are_all_read(file):
    if not (DATA / file).exists():
        pytest.skip(f"{file} is not beside the repository")
    found = [read(str(json.loads(line)["answer"])) for line in (DATA / file).read_text("utf-8").splitlines()]
    assert not [reference for reference in found if reference.why]
    if file == "gsm8k_test.jsonl":
        assert [reference.answer for reference in found[:3]] == ["18", "3", "70000"]


def test_worked_solutions_of_minerva_are_not_taken_for_prose():
    if not (DATA / "minerva.jsonl").exists():
        pytest.skip("minerva.jsonl is not beside the repository")
    solutions = [json.loads(line)["solution"] for line in (DATA / "minerva.jsonl").read_text("utf-8").splitlines()]
    assert not [read(text) for text in (*solutions, *map(boxed, solutions)) if read(text).why]


# --- in sets ---


def write(path, answers):
    path.write_text("".join(json.dumps({"problem": f"p{i}", "answer": a}) + "\n" for i, a in enumerate(answers)))
    return str(path)


def test_refused_references_are_counted_and_the_first_is_named(tmp_path):
    answers = ["1", "We add 3 and 4 to get 7", "The answer is 2", "\\boxed{}", "Work.\n#### 3"]
    rows = load(write(tmp_path / "mine.jsonl", answers), VERIFIER)
    assert [(row.id, row.answer) for row in rows.kept] == [(0, "1"), (2, "2"), (4, "3")]
    assert rows.notes == (
        "mine: 5 rows; left out: 2 whose answer the verifier cannot use (row 1: no single answer can be taken from 'We "
        "add 3 and 4 to get 7')",
    )


def test_a_set_with_more_than_a_few_is_told_before_training(tmp_path):
    good, prose = [str(i) for i in range(6)], [f"We add one to {i} and get {i + 1}" for i in range(5)]
    few = Math(write(tmp_path / "few.jsonl", good + prose[:4]), "m", verifier=VERIFIER)
    assert len(few.notes) == 1
    some = Math(write(tmp_path / "some.jsonl", good + prose), "m", verifier=VERIFIER)
    assert some.notes[1:] == (
        "some: 5 of 11 references cannot be graded and are not used; name the field of the final answer by "
        "Dataset(..., answer=...), or take it from the text by extract=...",
    )
    with pytest.raises(ValueError, match=r"most\.jsonl: most of its references cannot be graded .*5 whose.*extract="):
        Math(write(tmp_path / "most.jsonl", good[:4] + prose), "m", verifier=VERIFIER).problems("train")


def test_a_verifier_of_ones_own_gets_its_references_as_they_are(tmp_path):
    def longer(problem, response):
        return float(len(response) > len(problem.reference))

    answers = ["We add.\n#### 7", "We get 7 by adding 3 and 4", "\\boxed{"]
    assert [row.answer for row in load(write(tmp_path / "mine.jsonl", answers), longer).kept] == answers


def test_what_extract_takes_is_read_too(tmp_path):
    path = write(tmp_path / "mine.jsonl", ["Solution: 3 + 4; The answer is 7."])
    dataset = Dataset("mine", path=path, extract=lambda text: text.partition(";")[2])
    assert [row.answer for row in load(dataset, VERIFIER).kept] == ["7"]
