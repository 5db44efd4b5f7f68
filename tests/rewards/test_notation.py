"""Notation brought to one, and what answers are made of."""

import time

import pytest

from polyepo_jax.rewards.answer_parts import between, contradict, pairs, split
from polyepo_jax.rewards.notation import rewrite


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("60°", "60^\\circ"),
        ("60\\degree", "60^\\circ"),
        ("\uff17", "7"),
        ("√2/2", "\\sqrt{2}/2"),
        ("√12", "\\sqrt{12}"),
        ("sqrt(2)/2", "\\sqrt{2}/2"),
        ("√(x+1)", "\\sqrt{x+1}"),
        ("x²+1", "x^{2}+1"),
        ("10⁻³", "10^{-3}"),
        ("½", "\\frac{1}{2}"),
        ("\u20133", "-3"),
        ("(-∞,2]", "(-\\infty ,2]"),
        ("2 1/3", "2\\frac{1}{3}"),
        ("2*pi", "2\\cdot \\pi"),
        ("x**2", "x^2"),
        ("6e5", "6\\times 10^{5}"),
        ("2.5E-3", "2.5\\times 10^{-3}"),
        ("6\u00d710^5", "6\\times 10^{5}"),
        ("\\large 42", "42"),
        ("\\varnothing", "\\emptyset"),
        ("\\mathrm{e}^2", "e^2"),
        ("3+2\\mathrm{i}", "3+2i"),
        ("7\\ ", "7"),
        ("**7**", "7"),
        ("42~", "42"),
        ("3·4", "3\\cdot 4"),
        ("\\frac12", "\\frac{1}{2}"),
        # What is not to be touched.
        ("~42", "~42"),
        ("7!", "7!"),
        ("2e", "2e"),
        ("e^{2}", "e^{2}"),
        ("\\text{Evelyn}", "\\text{Evelyn}"),
        ("\\mathrm{e}", "\\mathrm{e}"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ("1\\\\", "1\\\\"),
        ("[1;3)", "[1;3)"),
        ("1 2", "1 2"),
        ("٤٢", "٤٢"),
    ],
)
def test_notation(text, latex):
    assert rewrite(text) == latex
    assert rewrite(rewrite(text)) == latex


@pytest.mark.parametrize(
    "piece",
    [
        *("9", "(", "√(", "sqrt(", "²", "1*", "\\frac1", "1e", "\\degree", "^{", "** ", "~", "\\mathrm{e", "1 ", " "),
        *("1/", "9.9", "\\le", "<=", "*", "10^{", "√ ", "sqrt ", "pi", "\\times ", "m ", "a=", "a/", "1,", "may 1"),
        *("_{", "\\text{a", "-", "a<", "\\frac{", "m^"),
    ],
)
def test_hostile_text_is_read_in_one_pass(piece):
    text = piece * (200_000 // len(piece))
    start = time.perf_counter()
    rewrite(text)
    contradict(text, text)
    pairs(text, text)
    assert time.perf_counter() - start < 20  # a second pass through the text for each character would take minutes


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ("12\\text{ cm}", "12 m", True),
        ("12\\text{ cm}", "12\\mathrm{~centimeters}", False),
        ("12\\text{ cm}", "12", False),
        ("9\\text{ cm}^2", "9 \\text{ square cm}", False),
        ("9\\text{ cm}^2", "9\\text{ cm}", True),
        ("5\\text{ apples}", "5\\text{ fruits}", False),
        ("3g+2m", "2m+3g", False),
        ("3\\text{ a.m.}", "3 pm", True),
        ("10_2", "10_{3}", True),
        ("10_2", "10_{2}", False),
        ("x_1", "x_2", False),
        ("\\text{May 3}", "June 3", True),
        ("\\text{May 3}", "3 may", False),
    ],
)
def test_what_contradicts(one, other, told):
    assert contradict(one, other) == contradict(other, one) == told


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("42", "42", [("42", "42")]),
        ("42", "43=42", [("42", "43"), ("42", "42")]),
        ("42", "N = 42", [("42", "42")]),
        ("5", "5=x", [("5", "5")]),
        ("42", "43 \\equiv 42", [("42", "43"), ("42", "42")]),
        ("42", "43 == 42", [("42", "43"), ("42", "42")]),
        ("42", "y < 43 = 42", [("42", "y < 43"), ("42", "42")]),
        ("120", "5!=120", [("120", "5!"), ("120", "120")]),
        ("x^2+1", "f(x)=x^2+1", [("x^2+1", "x^2+1")]),
        ("x=3", "x=4=3", [("3", "4"), ("3", "3")]),
        ("6,5", "A=5, B=6", [("6", "5"), ("5", "6")]),
        ("(6,5)", "x=6,y=5", [("6", "6"), ("5", "5")]),
        ("A=6,B=5", "B=5,A=6", [("6", "6"), ("5", "5")]),
        ("1,2", "x=2,x=1", [("1,2", "x=2,x=1")]),
        ("x \\le 2", "2 != 3", [("x \\le 2", "2 != 3")]),
    ],
)
def test_pairs(gold, answer, expected):
    assert pairs(gold, answer) == expected


def test_splits_and_intervals():
    assert split("a, (b, c), [d, e)", ",") == ["a", "(b, c)", "[d, e)"]
    assert split("a,,b", ",") == ["a,,b"]
    assert between("1 \\le x < 3") == "[1,3)"
    assert between("3 > x \\ge 1") == "[1,3)"
    assert between("1 < 2 < 3") == "1 < 2 < 3"
    assert between("x < 3") == "x < 3"
