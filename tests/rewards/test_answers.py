"""The text of final answers: what counts as the same, where it is found, and hostile responses."""

import time
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polyepo_jax.rewards.answers import boxed, final_answer, normalise, words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("42", "42"),
        ("42", " 42. "),
        ("42", "$42$"),
        ("42", "42.0"),
        ("42", "+042"),
        ("42", "\\text{42}"),
        ("27.0", "27"),
        ("0.5", "\\frac{1}{2}"),
        ("1/2", "\\dfrac{2}{4}"),
        ("-1/2", "\\tfrac{-1}{2}"),
        ("-\\frac{1}{2}", "-.5"),
        ("-1/2", "\\frac{1}{-2}"),
        ("10000", "10,000"),
        ("1000", "1e3"),
        ("-0.0025", "-2.5E-3"),
        ("10000000000000000000000", "1e+22"),
        ("10000", "10{,}000"),
        ("1234567.25", "1,234,567.25"),
        ("\\$6", "6"),
        ("25\\%", "25"),
        ("48^\\circ", "48"),
        ("48", "48^{\\circ}"),
        ("(1, 2)", "\\left( 1,\\, 2 \\right)"),
        ("\\text{Evelyn}", "Evelyn"),
        ("x \\leftarrow y", "x\\leftarrow y"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
        ("\\{1, 2\\}", "\\{1,2\\}"),
        ("[0, 1)", "[0,1)"),
        ("1/0", "1/0"),
        ("1" * 60, "1" * 60),
    ],
)
def test_spellings_of_one_answer(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("42", "43"),
        ("42", "4 3"),
        ("42", "-42"),
        ("42", "x = 42"),
        ("42", "42, 43"),
        ("42", "٤٢"),  # digits, but not ASCII ones
        ("1234", "1,2,34"),
        ("1234", "12,34"),
        ("0.3333333333", "1/3"),
        ("0.25", "25\\%"),
        ("1/0", "2/0"),
        ("x+1", "1+x"),  # text, not mathematics
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("\\leftarrow", "arrow"),
        ("\\text{a}b\\text{c}", "a}b\\text{c"),
        ("1" * 60, "1" * 60 + ".0"),  # too long to be parsed
        ("ab", "a\x00b"),
        ("1 1/2", "11/2"),  # white space between digits is no matter of spelling
        ("1 2", "12"),
        ("3\n4", "34"),
    ],
)
def test_answers_that_differ(one, other):
    assert normalise(one) != normalise(other)


@pytest.mark.parametrize(
    ("response", "text", "answer"),
    [
        ("\\boxed{1} then \\boxed{2}", "2", 2),
        ("\\boxed{\\boxed{3}}", "3", 3),
        ("\\boxed{x_{1}^{2}} and }", "x_{1}^{2}", "x_{1}^{2}"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", Fraction(1, 2)),
        ("\\boxed{\\{a\\}}", "\\{a\\}", "\\{a\\}"),
        ("\\boxed{[0,\\})}", "[0,\\})", "[0,\\})"),
        ("\\boxed{1\n}", "1", 1),
        ("", None, None),
        ("42", None, None),
        ("\\boxed", None, None),
        ("\\boxed{", None, None),
        ("\\boxed{4", None, None),
        ("\\boxed{4\\}", None, None),
        ("\\boxed{1} then \\boxed{2", None, None),  # cut off: the first was not the last word
        ("\\boxed{}", None, None),
        ("\\boxed{ }", None, None),
        ("\\boxed{ $ }", "$", None),
        ("boxed{1}", None, None),
        ("\\boxed {42}", "42", 42),
        ("\\fbox{42}", "42", 42),
        ("$\\boxed 7$", "7", 7),
        ("\\boxed 7!", None, None),
        ("\\boxed 1/2", None, None),
        ("\\boxed{5} then \\boxed 1,234", None, None),
        ("<think> so \\boxed{42}", None, None),
        ("<think> so \\boxed{41}</think> \\boxed{42}", "42", 42),
    ],
)
def test_the_last_box_holds_the_answer(response, text, answer):
    assert boxed(response) == text
    assert final_answer(response) == answer


@given(st.text(alphabet="\\boxedfractx{}$.,/-+ 0123456789", max_size=60))
@example("\\frac{1}{0}")
@example("--1")
@example(".")
def test_any_text_has_a_normal_form(text):
    answer = final_answer(f"\\boxed{{{text}}}")
    assert answer is None or answer == normalise(boxed(f"\\boxed{{{text}}}"))
    assert isinstance(normalise(text), str | Fraction)


@given(st.fractions(max_denominator=10**6), st.integers(1, 9))
def test_equal_numbers_are_the_same_answer(value, factor):
    over, under = value.numerator * factor, value.denominator * factor
    spellings = [f"{over}/{under}" if over >= 0 else f"-{-over}/{under}", f"\\frac{{{over}}}{{{under}}}"]
    if value.denominator == 1:
        spellings += [str(value), f"{int(value):,}", f"{value}.00"]
    assert {normalise(text) for text in spellings} == {value}
    assert normalise(f"\\frac{{{over + 1}}}{{{under}}}") != value


@pytest.mark.parametrize(
    "response",
    [
        "\\boxed{" * 57_000,
        "\\boxed{" + "{" * 400_000,
        "\\boxed{" + "9" * 400_000 + "}",
        "\\boxed{" + "9/" * 200_000 + "}",
        "\\boxed{" + "1,000" * 80_000 + "}",
        "\\boxed{" + " " * 400_000 + "}",
        "\\boxed{" + "\\" * 400_000 + "}",
        "\\boxed{" + "$" * 400_000 + "}",
        "\\boxed{" + "\\text{" * 66_000 + "}" * 66_001,
        "\\boxed{" + "\\frac{1}{" * 40_000 + "}" * 40_001,
        "\\boxed{" + "\\left" * 80_000 + "}",
        "\\boxed{" + "^{\\circ" * 50_000 + "}" * 50_001,
        "\\boxed{9^{9^{9^{9^{9}}}}}",
        "\\boxed{__import__('os').system('true')}",
    ],
    ids=lambda response: response[7:20],
)
def test_hostile_responses_are_read_in_one_pass(response):
    start = time.perf_counter()
    assert final_answer(response) != 42
    assert time.perf_counter() - start < 2  # a second pass through the text for each character would take minutes


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("\\text{Evelyn}", "evelyn"),
        (" Evelyn. ", "evelyn"),
        ("\\textbf{ no   solution. }", "no solution"),
        ("\\mathrm{C}.", "c"),
        ("(B)", "b"),
        ("\\text{(B)}", "b"),
        ("x", "x"),
        ("\\text{Saint-Étienne, d'Or}", "saint-étienne, d'or"),
        ("ab", None),  # a product of variables
        ("x y z", None),
        ("\\text{12 cm}", None),
        ("\\text{a}b\\text{c}", None),
        ("\\text{Yes}, x=2", None),
        ("\\sin x", None),
        ("sqrt(2)", None),
        ("\\text{}", None),
        ("()", None),
        ("42", None),
        ("", None),
    ],
)
def test_words_are_told_from_mathematics(answer, text):
    assert words(answer) == text


@pytest.mark.parametrize("piece", ["a", "a ", "a-", "a, ", "(", "\\text{", "\\text{a ", "abcd "])
def test_words_are_read_in_one_pass(piece):
    start = time.perf_counter()
    assert words(piece * 100_000 + "1") is None
    assert words("\\text{" + piece * 100_000 + "1}") is None
    assert time.perf_counter() - start < 2
