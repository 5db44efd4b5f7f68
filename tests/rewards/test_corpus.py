"""Answers as people and models write them, each with its right grade, and wrong ones found by construction."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polyepo_jax.rewards.math import MathVerifier
from polyepo_jax.types import Problem
from tests.rewards.neighbours import references

FIELD = Path(__file__).parents[3] / "shared" / "data" / "field_answers.jsonl"
OWN = Path(__file__).with_name("answers.jsonl")


@pytest.fixture(scope="module")
def verifier():
    verifier = MathVerifier(num_workers=2, deadline_s=30)
    yield verifier
    verifier.close()


def wrongly_graded(verifier, cases):
    """Those of (reference, response, reward) that get another reward."""
    with ThreadPoolExecutor(2) as threads:
        rewards = threads.map(lambda case: verifier(Problem(0, "", case[0]), case[1]).reward, cases)
        return [(*case, reward) for case, reward in zip(cases, rewards, strict=True) if reward != case[2]]


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_answers_from_the_field(verifier):
    if not FIELD.exists():
        pytest.skip(f"{FIELD.name} is not beside the repository")
    # What is prose is read where problems are.
    rows = [row for row in read(FIELD) if not row["id"].startswith("prose")]
    cases = [(row["answer"], *pair) for row in rows for pair in zip(row["responses"], row["want"], strict=True)]
    assert len(cases) == 86
    assert wrongly_graded(verifier, cases) == []


def test_answers_of_our_own(verifier):
    cases = [(row["answer"], row["response"], row["want"]) for row in read(OWN)]
    assert [sum(want == value for *_, want in cases) for value in (1, 0)] == [114, 114]
    assert wrongly_graded(verifier, cases) == []
    assert [why for reference in {case[0] for case in cases} if (why := verifier.check_reference(reference))] == []


@pytest.mark.parametrize("number", [51, pytest.param(1000, marks=pytest.mark.slow)])
def test_neighbours_of_references_are_wrong(verifier, number):
    cases = []
    for reference, wrong in references(number, seed=number):
        cases.append((reference, f"\\boxed{{{reference}}}", 1))
        cases += [(reference, f"\\boxed{{{answer}}}", 0) for answer in wrong]
    assert wrongly_graded(verifier, cases) == []
