"""Grades, and what becomes of failures: the generation's are worth nothing, ours are invalid."""

import dataclasses

import numpy as np

from polyepo_jax.grading import decode, grade
from polyepo_jax.tasks import Problem
from polyepo_jax.tokenizer import CharacterTokenizer
from polyepo_jax.types import Rollouts

PROBLEMS = [Problem(0, "a", ""), Problem(1, "b", "")]


@dataclasses.dataclass(frozen=True)
class Scripted:
    """Rewards by a table; clusters by length."""

    name = "scripted"
    tokenizer = CharacterTokenizer("ab$", "$")

    def verify(self, problem, response):
        value = {"raise": RuntimeError("verifier lost"), "nan": float("nan"), "good": 1.0}.get(response, 0.0)
        if isinstance(value, Exception):
            raise value
        return value

    def cluster(self, problem, responses):
        if "crash" in responses:
            raise OSError("judge away")
        if "short" in responses:
            return [1]
        if "text" in responses:
            return ["x"] * len(responses)
        return [len(response) for response in responses]


def graded(first, second, truncated=None):
    truncated = np.zeros((2, len(first)), bool) if truncated is None else truncated
    return grade(Scripted(), PROBLEMS, [first, second], truncated)


def test_rewards_and_clusters():
    grading = graded(["good", "bad"], ["worse", "good"])
    np.testing.assert_array_equal(grading.grades.rewards_PN, [[1, 0], [0, 1]])
    np.testing.assert_array_equal(grading.grades.clusters_PN, [[4, 3], [5, 4]])
    assert np.all(grading.grades.valid_PN)
    assert grading.failures == ()


def test_a_truncated_generation_is_worth_nothing():
    grading = graded(["good", "good"], ["good", "raise"], np.array([[True, False], [False, True]]))
    np.testing.assert_array_equal(grading.grades.rewards_PN, [[0, 1], [1, 0]])
    assert np.all(grading.grades.valid_PN)


def test_a_verifier_that_fails_makes_one_generation_invalid():
    grading = graded(["raise", "good"], ["nan", "bad"])
    np.testing.assert_array_equal(grading.grades.valid_PN, [[False, True], [False, True]])
    assert grading.failures[0] == "verifying problem 0: RuntimeError: verifier lost"
    assert "must be finite" in grading.failures[1]


def test_a_clusterer_that_fails_makes_its_group_invalid():
    for culprit in ("crash", "short", "text"):
        grading = graded(["good", culprit], ["good", "bad"])
        np.testing.assert_array_equal(grading.grades.valid_PN, [[False, False], [True, True]])
        assert grading.failures[0].startswith("clustering problem 0")


def test_decoding_keeps_the_end_and_drops_the_padding():
    tokens = np.array([[[1, 2, 3, 0], [2, 0, 1, 1]]])
    mask = np.array([[[True, True, True, False], [True, True, True, True]]])
    rollouts = Rollouts(tokens, mask, np.zeros(tokens.shape), np.array([[False, True]]))
    assert decode(Scripted.tokenizer, rollouts) == [["ab$", "b\ufffdaa"]]
