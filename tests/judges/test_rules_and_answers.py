"""Clusters without a model: by a parser, and by the final answer."""

import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyepo_jax.judges import Answers, Rules
from polyepo_jax.judges.rules import number_by_key
from polyepo_jax.rewards.math import MathVerifier
from polyepo_jax.types import DEGENERATE, Problem

PROBLEM = Problem(0, "What is it?", "1")


@dataclasses.dataclass(frozen=True)
class Within:
    """Texts of digits are equal when they differ by at most `tolerance`: an equality that is not transitive."""

    tolerance: int = 1
    calls: list = dataclasses.field(default_factory=list)
    concurrency = 3

    def comparable(self, answer):
        return "?" not in answer

    def equal(self, one, other):
        self.calls.append((one, other))
        if not (one.isdigit() and other.isdigit()):
            return False
        return abs(int(one) - int(other)) <= self.tolerance


def boxes(*answers):
    return [f"It is \\boxed{{{answer}}}" for answer in answers]


@given(st.lists(st.sampled_from(["a", "b", "c", None, 0, -1])))
def test_keys_are_numbered_as_they_appear(keys):
    ids = number_by_key(keys)
    assert len(ids) == len(keys)
    assert [id_ == DEGENERATE for id_ in ids] == [key is None for key in keys]
    seen = list(dict.fromkeys(key for key in keys if key is not None))
    assert [seen[id_] for id_ in ids if id_ != DEGENERATE] == [key for key in keys if key is not None]


def test_rules_cluster_by_what_the_parser_finds():
    judge = Rules(lambda response: response.split()[0] if response.split() else None)
    assert judge.cluster(PROBLEM, ["b 1", "a 2", " ", "b 3", "a"]) == [0, 1, DEGENERATE, 0, 1]
    assert judge.cluster(PROBLEM, []) == []
    assert Rules(lambda response: Fraction(len(response), 2)).cluster(PROBLEM, ["aa", "b", "cc"]) == [0, 1, 0]


def test_answers_without_a_box_are_degenerate_and_others_numbered_as_they_appear():
    responses = ["none", *boxes(9, 5), "\\boxed{}", "\\boxed{ }", "\\boxed{9", *boxes(5, 9)]
    equality = Within(0)
    assert Answers(equality).cluster(PROBLEM, responses) == [-1, 0, 1, -1, -1, -1, 1, 0]
    assert equality.calls == [("9", "5")]
    assert Answers(Within()).cluster(PROBLEM, []) == []
    assert Answers(Within()).cluster(PROBLEM, ["none", "none"]) == [DEGENERATE, DEGENERATE]


def test_the_last_box_counts():
    assert Answers(Within(0)).cluster(PROBLEM, ["\\boxed{1} \\boxed{7}", *boxes(1, 7)]) == [0, 1, 0]


def test_answers_that_are_spelt_the_same_are_not_compared():
    equality = Within(0)
    spellings = ["1000", " 1,000 ", "\\text{1000}", "1000.0", "2000/2", "\\dfrac{2000}{2}", "1000"]
    assert Answers(equality).cluster(PROBLEM, boxes(*spellings)) == [0] * len(spellings)
    assert equality.calls == []


def test_each_answer_is_compared_once_with_the_first_of_each_cluster_until_one_is_equal():
    equality = Within()
    # 11 joins 10; 20 opens a cluster; 12 is near 11, which is not the first of its cluster, and opens one.
    ids = Answers(equality).cluster(PROBLEM, boxes(10, 11, 20, 12, 11, 20, 13, 9, 12))
    assert ids == [0, 0, 1, 2, 0, 1, 2, 0, 2]
    assert equality.calls == [
        *[("10", "11"), ("10", "20"), ("10", "12"), ("20", "12")],
        *[("10", "13"), ("20", "13"), ("12", "13"), ("10", "9")],
    ]


def test_what_cannot_be_compared_has_only_its_text():
    equality = Within()
    assert Answers(equality).cluster(PROBLEM, boxes("1", "?", "2", "??", "?")) == [0, 1, 0, 2, 1]
    assert equality.calls == [("1", "2")]


def test_the_first_answer_is_given_as_it_was_written():
    equality = Within(0)
    Answers(equality).cluster(PROBLEM, boxes(" 1{,}000 ", "x + 1", "2x"))
    assert equality.calls == [("1{,}000", "x + 1"), ("1{,}000", "2x"), ("x + 1", "2x")]


def test_concurrency_is_that_of_the_equality():
    assert Answers(Within()).concurrency == 3
    assert Answers().concurrency == MathVerifier().concurrency


def test_what_equality_raises_is_passed_on():
    class Broken(Within):
        def equal(self, one, other):
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        Answers(Broken()).cluster(PROBLEM, boxes(1, 2))


def test_by_default_answers_are_compared_as_mathematics():
    answers = ["\\sqrt{8}", "x+1", "2\\sqrt{2}", "1+x", "\\frac{1}{2}", "0.5", "x-1"]
    assert Answers().cluster(PROBLEM, boxes(*answers)) == [0, 1, 0, 1, 2, 2, 3]


def test_spelling_earns_no_cluster_of_its_own():
    answers = ["2.5e-3", "2.5\\times10^{-3}", "0.0025", "\\frac{1}{400}", "2.5·10⁻³", "2.5e3", "N = 0.0025", "1=0.0025"]
    assert Answers().cluster(PROBLEM, boxes(*answers)) == [0, 0, 0, 0, 0, 1, 0, 2]
    assert Answers().cluster(PROBLEM, boxes("x²", "x^2", "[1,3)", "1 ≤ x < 3", "1 < x < 3")) == [0, 0, 1, 1, 2]
    assert Answers().cluster(PROBLEM, ["\\boxed {1}", "\\fbox{1}", "\\boxed 1", "<think>\\boxed{1}"]) == [0, 0, 0, -1]
