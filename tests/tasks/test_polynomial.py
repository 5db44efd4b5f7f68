"""The polynomial domain: exact grading, what is malformed, and which polynomials are held out."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyepo_jax.model.tokenizer import UNKNOWN, CharacterTokenizer
from polyepo_jax.tasks import Polynomial
from polyepo_jax.tasks.polynomial import MAX_X, parse, solution
from polyepo_jax.types import DEGENERATE

TASK = Polynomial()
PROBLEM = next(p for split in ("train", "test", "validation") for p in TASK.problems(split) if p.prompt == "3+2-5:")


def test_the_documented_example():
    response = "-19:1083-38=1045-5=1040$"
    assert solution(PROBLEM.reference, -19) == response
    assert TASK.verify(PROBLEM, response) == 1
    assert TASK.cluster(PROBLEM, [response, "0:0+0=0-5=-5$", response]) == [5, 24, 5]


@given(
    a=st.integers(1, 3),
    b=st.integers(-9, 9),
    c=st.integers(-9, 9),
    x=st.integers(-MAX_X, MAX_X),
    off=st.integers(-3, 3),
)
def test_a_solution_is_right_and_another_y_is_wrong(a, b, c, x, off):
    problem = type(PROBLEM)(0, f"{a}{b:+d}{c:+d}:", f"{a} {b} {c}")
    text = solution(problem.reference, x)
    y = a * x**2 + b * x + c
    assert parse(text) == (x, y)
    assert len(text) <= 25
    assert len(TASK.tokenizer.encode(problem.prompt)) == 6
    assert TASK.tokenizer.decode(TASK.tokenizer.encode(text)) == text
    changed = text[: text.rindex("=") + 1] + f"{y + off}$"
    assert TASK.verify(problem, changed) == float(off == 0)
    assert TASK.cluster(problem, [changed]) == [x + MAX_X]


@pytest.mark.parametrize(
    "response",
    [
        "",
        "$",
        "-19:1083-38=1045-5=1040",  # unterminated
        "-19:1083-38=1045-5=1040$$",
        "-19:1083-38=1045-5=$",
        "25:1875+50=1925-5=1920$",  # x out of range
        "-25:1875-50=1825-5=1820$",
        "19:1083-38=1045=1040$",
        " 1:3+2=5-5=0$",
        "1:3+2=5-5=0$ ",
        "1:3+2=5-5=0\n$",
        "\u0661:3+2=5-5=0$",  # a digit, but not an ASCII one
        "1:3+2=5-5=99999$",
        f"1:3+2=5-5=0{UNKNOWN}$",
    ],
)
def test_malformed_text_is_degenerate_and_worthless(response):
    assert TASK.verify(PROBLEM, response) == 0
    assert TASK.cluster(PROBLEM, [response]) == [DEGENERATE]


@given(st.text(alphabet="0123456789+-:=$", max_size=30))
def test_any_text_is_graded(response):
    reward, (cluster,) = TASK.verify(PROBLEM, response), TASK.cluster(PROBLEM, [response])
    assert reward in (0, 1)
    assert cluster == DEGENERATE or 0 <= cluster <= 2 * MAX_X
    assert not (reward and cluster == DEGENERATE)


def test_splits_share_no_polynomial():
    splits = {name: TASK.problems(name) for name in ("train", "validation", "test")}
    ids = [p.id for problems in splits.values() for p in problems]
    prompts = [p.prompt for problems in splits.values() for p in problems]
    assert sorted(ids) == list(range(1083))
    assert len(set(prompts)) == 1083
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [813, 54, 216]
    assert Polynomial(split_seed=1).problems("test") != splits["test"]
    assert Polynomial().problems("test") == splits["test"]


def test_demonstrations_are_well_formed_and_wrong_as_often_as_said():
    rng = np.random.default_rng(0)
    texts = [TASK.demonstrate(PROBLEM, rng) for _ in range(3000)]
    assert all(parse(text) is not None for text in texts)
    assert np.mean([TASK.verify(PROBLEM, text) for text in texts]) == pytest.approx(0.6, abs=0.03)
    assert len(set(TASK.cluster(PROBLEM, texts))) == 2 * MAX_X + 1
    exact = Polynomial(error_rate=0.0)
    assert all(exact.verify(PROBLEM, exact.demonstrate(PROBLEM, rng)) == 1 for _ in range(50))


HARD = Polynomial(max_a=5, max_b=12, max_c=12, accepted=0.3)
XS = range(-MAX_X, MAX_X + 1)


def accepted(task, problem):
    return [x for x in XS if task.verify(problem, solution(problem.reference, x)) == 1]


def test_the_hard_variant_has_500_problems_to_test_and_others_to_validate():
    splits = {name: HARD.problems(name) for name in ("train", "validation", "test")}
    assert [len(splits[name]) for name in splits] == [2344, 156, 625]
    assert len({p.prompt for problems in splits.values() for p in problems}) == 3125
    problem = next(p for problems in splits.values() for p in problems if p.prompt == "5+12-12:")
    longest = max((solution(problem.reference, x) for x in XS), key=len)
    assert len(longest) <= 26
    assert all(HARD.cluster(problem, [solution(problem.reference, x)]) == [x + MAX_X] for x in XS)
    assert TASK.cluster(PROBLEM, ["1:3+2=5-10=-5$"]) == [DEGENERATE], "no c of two digits where there is none"


def test_each_x_is_accepted_on_some_polynomials():
    problems = HARD.problems("test")
    sets = [accepted(HARD, problem) for problem in problems]
    assert min(map(len, sets)) >= 1
    counts = np.array([[x in chosen for x in XS] for chosen in sets])
    assert counts.mean() == pytest.approx(0.3, abs=0.03)
    assert np.all((counts.mean(0) > 0.15) & (counts.mean(0) < 0.45)), "on every x alike"
    shares = counts.mean(1)
    assert (shares < 0.1).mean() > 0.2
    assert (shares > 0.6).mean() > 0.1
    assert [accepted(HARD, problem) for problem in problems[:9]] == sets[:9]
    again = [accepted(dataclasses.replace(HARD, split_seed=1), problem) for problem in problems[:9]]
    assert again != sets[:9]
    assert HARD.verify(problems[0], solution(problems[0].reference, sets[0][0]).replace("=", ":")) == 0
    assert HARD.name == "polynomial_hard/held_out"


def test_a_hidden_requirement_is_met_by_four_xs():
    problems = TASK.problems("test")[:50]
    found = [
        [x for x in XS if TASK.meets_hidden_requirement(problem, solution(problem.reference, x))]
        for problem in problems
    ]
    assert all(len(xs) == 4 for xs in found)
    assert len({x for xs in found for x in xs}) > 40
    assert not TASK.meets_hidden_requirement(problems[0], "$")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_a": 6}, "max_a must be from 1 to 5"),
        ({"max_c": 0}, "max_c"),
        ({"accepted": 0}, "accepted must be above 0"),
    ],
)
def test_other_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Polynomial(**settings)


def test_refuses_impossible_settings():
    with pytest.raises(ValueError, match="error_rate"):
        Polynomial(error_rate=1.5)
    with pytest.raises(ValueError, match="spread"):
        Polynomial(spread=0.0)


def test_tokenizer_names_the_character_it_lacks():
    tokenizer = CharacterTokenizer("ab$", "$")
    assert tokenizer.encode("ab$") == [1, 2, 3]
    assert tokenizer.decode([1, 0, 3, 9]) == f"a{UNKNOWN}${UNKNOWN}"
    assert tokenizer.stop_ids == (3,)
    with pytest.raises(ValueError, match="'x' of 'abx'"):
        tokenizer.encode("abx")
    with pytest.raises(ValueError, match="stop character"):
        CharacterTokenizer("ab", "$")
    with pytest.raises(ValueError, match="repeats"):
        CharacterTokenizer("aab", "a")
