"""Mathematics: what counts as the same answer, hostile responses, and files that are not as described."""

import json
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polyepo_jax.config_files import from_json, to_json
from polyepo_jax.tasks import Math, Problem, Task
from polyepo_jax.tasks.math import final_answer, normalise
from polyepo_jax.tokenizer import UNKNOWN, HFTokenizer
from polyepo_jax.types import DEGENERATE
from tests.tiny_hf import write_tokenizer

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "math_responses.jsonl"
TASK = Math(train="train.jsonl", test=None, tokenizer_dir="model")


def verify(reference, answer):
    return TASK.verify(Problem(0, "", reference), f"So it is \\boxed{{{answer}}}.")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture
def task(tmp_path):
    """Twenty training problems and five for testing."""
    train = write(tmp_path / "train.jsonl", [{"problem": f"{i} + 1 = ?", "answer": str(i + 1)} for i in range(20)])
    test = write(tmp_path / "held.out.jsonl", [{"problem": f"{i} + 2 = ?", "answer": i + 2} for i in range(5)])
    return Math(train, str(tmp_path / "model"), test, num_validation=4)


@pytest.mark.parametrize(
    ("reference", "answer"),
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
def test_answers_that_are_the_same(reference, answer):
    assert verify(reference, answer) == 1
    assert verify(answer, reference) == 1


@pytest.mark.parametrize(
    ("reference", "answer"),
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
        ("1000", "1e3"),
        ("1/0", "2/0"),
        ("x+1", "1+x"),  # text, not mathematics
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("\\leftarrow", "arrow"),
        ("\\text{a}b\\text{c}", "a}b\\text{c"),
        ("1" * 60, "1" * 60 + ".0"),  # too long to be parsed
        ("42", f"42{UNKNOWN}"),
        ("ab", "a\x00b"),
    ],
)
def test_answers_that_differ(reference, answer):
    assert verify(reference, answer) == 0
    assert verify(reference, reference) == 1


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("\\boxed{1} then \\boxed{2}", 2),
        ("\\boxed{\\boxed{3}}", 3),
        ("\\boxed{x_{1}^{2}} and }", "x_{1}^{2}"),
        ("\\boxed{\\frac{1}{2}}", Fraction(1, 2)),
        ("\\boxed{\\{a\\}}", "\\{a\\}"),
        ("\\boxed{[0,\\})}", "[0,\\})"),
        ("\\boxed{1\n}", 1),
        ("", None),
        ("42", None),
        ("\\boxed", None),
        ("\\boxed{", None),
        ("\\boxed{4", None),
        ("\\boxed{4\\}", None),
        ("\\boxed{1} then \\boxed{2", None),  # cut off: the first was not the last word
        ("\\boxed{}", None),
        ("\\boxed{ $ }", None),
        ("boxed{1}", None),
    ],
)
def test_the_last_box_holds_the_answer(response, answer):
    assert final_answer(response) == answer
    assert TASK.verify(Problem(0, "", "none of these"), response) == 0


@given(st.text(alphabet="\\boxedfractx{}$.,/-+ 0123456789", max_size=60))
@example("\\frac{1}{0}")
@example("--1")
@example(".")
def test_any_answer_is_its_own_and_compared_once(text):
    answer = normalise(text)
    response = f"\\boxed{{{text}}}"
    (cluster,) = TASK.cluster(Problem(0, "", ""), [response])
    assert cluster in (0, DEGENERATE)
    assert TASK.verify(Problem(0, "", text), response) == float(final_answer(response) == answer)
    assert TASK.verify(Problem(0, "", ""), response) == 0


@given(st.fractions(max_denominator=10**6), st.integers(1, 9))
def test_equal_numbers_are_the_same_answer(value, factor):
    over, under = value.numerator * factor, value.denominator * factor
    spellings = [f"{over}/{under}" if over >= 0 else f"-{-over}/{under}", f"\\frac{{{over}}}{{{under}}}"]
    if value.denominator == 1:
        spellings += [str(value), f"{int(value):,}", f"{value}.00"]
    assert {normalise(text) for text in spellings} == {value}
    assert verify(str(value), f"\\frac{{{over + 1}}}{{{under}}}") == 0


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
def test_hostile_responses_are_worthless_and_quick(response):
    start = time.perf_counter()
    assert TASK.verify(Problem(0, "", "42"), response) == 0
    TASK.cluster(Problem(0, "", "42"), [response, response])
    assert time.perf_counter() - start < 2  # a second pass through the text for each character would take minutes


def test_clusters_are_final_answers():
    texts = ["\\boxed{1/2}", "none", "\\boxed{x}", "so \\boxed{0.5}", "\\boxed{2}", "\\boxed{ x }", "\\boxed{"]
    assert TASK.cluster(Problem(0, "", "2"), texts) == [0, DEGENERATE, 1, 0, 2, 1, DEGENERATE]
    assert TASK.cluster(Problem(0, "", "2"), []) == []


def test_verdicts_on_real_generations_agree_with_recorded_ones():
    if not RECORDED.exists():
        pytest.skip(f"{RECORDED.name} is not beside the repository")
    agree = total = 0
    for line in RECORDED.read_text("utf-8").split("\n"):
        if line:
            row = json.loads(line)
            problem = Problem(0, row["problem"], row["answer"])
            for response, score in zip(row["responses"], row["recorded_scores"], strict=True):
                agree += TASK.verify(problem, response) == float(score)
                total += 1
    assert total == 400
    assert agree / total >= 0.99  # 399: the recorded evaluator tells 10{,}000 from 10000


def test_splits_are_disjoint_and_numbered_by_row(task):
    train, validation, test = (task.problems(split) for split in ("train", "validation", "test"))
    assert [len(train), len(validation), len(test)] == [16, 4, 5]
    assert sorted(p.id for p in (*train, *validation)) == list(range(20))
    assert [p.id for p in test] == [20, 21, 22, 23, 24]
    for p in (*train, *validation):
        assert p == Problem(p.id, f"{p.id} + 1 = ?{task.instruction}", str(p.id + 1))
    assert test[1].reference == "3"
    assert "\\boxed{}" in test[1].prompt
    assert validation == Math(task.train, "elsewhere", None, num_validation=4).problems("validation")
    assert Math(task.train, "elsewhere", None).problems("test") == ()
    assert len(Math(task.train, "elsewhere", None).problems("train")) == 20
    assert len({*validation, *Math(task.train, "m", None, num_validation=8).problems("validation")}) == 8


def test_names_say_what_is_held_out(task):
    assert task.name == "math/held.out"
    assert TASK.name == "math/validation"


def test_nothing_is_read_before_use_and_configs_hold_the_fields(tmp_path):
    task = Math(str(tmp_path / "absent.jsonl"), str(tmp_path / "absent"), None, chat=False)
    assert task.tokenizer == HFTokenizer(str(tmp_path / "absent"), chat=False)
    assert from_json(json.loads(json.dumps(to_json(task))), Task) == task
    with pytest.raises(ValueError, match=r"absent\.jsonl: cannot be read .*JSON lines of 'problem' and 'answer'"):
        task.problems("train")


def test_prompts_are_turns_of_the_chat_template(task):
    tokenizer = write_tokenizer(task.tokenizer_dir)
    problem = task.problems("test")[0]
    turn = f"<|im_start|>user\n{problem.prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert task.tokenizer.encode_prompt(problem.prompt) == tokenizer.encode(turn).ids


def test_of_equal_problems_the_first_stays(tmp_path):
    rows = [("a  b", "1"), ("c", "2"), ("a b\n", "3"), ("c", "2"), ("d", "4")]
    path = write(tmp_path / "train.jsonl", [{"problem": p, "answer": a} for p, a in rows])
    problems = Math(path, "model", None, instruction="").problems("train")
    assert [(p.id, p.prompt, p.reference) for p in problems] == [(0, "a  b", "1"), (1, "c", "2"), (4, "d", "4")]


def test_numbers_are_kept_as_spelled(tmp_path):
    text = '{"q": "a", "a": 0.10}\n\n{"q": "b\u2028", "a": 1' + "0" * 5000 + '}\r\n{"q": "c", "a": -3}'
    (tmp_path / "train.jsonl").write_text(text, "utf-8", newline="")
    problems = Math(str(tmp_path / "train.jsonl"), "model", None, problem_field="q", answer_field="a").problems("train")
    assert [p.reference for p in problems] == ["0.10", "1" + "0" * 5000, "-3"]
    assert problems[1].prompt.startswith("b\u2028")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 3: not valid JSON"),
        ('{"problem": "a", "answer": NaN}', r"line 3: not valid JSON \(NaN"),
        ("[" * 100_000, r"line 3: not valid JSON"),
        ("[1]", r"line 3: expected an object of 'problem' and 'answer', got '\[1\]'"),
        ('{"problem": "a", "solution": "1"}', r"line 3: no field 'answer'; there are 'problem', 'solution': name the"),
        ("{}", r"line 3: no field 'problem'; there are none"),
        ('{"problem": " ", "answer": "1"}', r"line 3: 'problem' must be a text that is not empty, got ' '"),
        ('{"problem": 5, "answer": "1"}', r"line 3: 'problem' must be a text"),
        ('{"problem": "a", "answer": ""}', r"line 3: 'answer' must be a number or a text that is not empty, got ''"),
        ('{"problem": "a", "answer": " $ $."}', r"line 3: 'answer' must be"),
        ('{"problem": "a", "answer": null}', r"line 3: 'answer' must be .* got None"),
        ('{"problem": "a", "answer": true}', r"line 3: 'answer' must be .* got True"),
        ('{"problem": "a", "answer": ["1"]}', r"line 3: 'answer' must be"),
        ('{"problem": "a\\ud800", "answer": "1"}', r"line 3: a lone surrogate"),
    ],
)
def test_rows_that_are_not_as_described_are_refused_by_line(tmp_path, line, message):
    path = tmp_path / "train.jsonl"
    path.write_text(f'{{"problem": "x", "answer": "1"}}\n\n{line}\n', "utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        Math(str(path), "model", None).problems("train")
    assert str(path) in str(caught.value)


def test_unusable_files_and_settings_are_refused(tmp_path, task):
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match=r"empty\.jsonl: there is no problem in it"):
        Math(task.train, "model", empty).problems("train")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"binary\.jsonl: cannot be read"):
        Math(str(tmp_path / "binary.jsonl"), "model", None).problems("train")
    leak = write(tmp_path / "leak.jsonl", [{"problem": f"{i}  + 1 = ?", "answer": "1"} for i in (3, 4, 30)])
    with pytest.raises(ValueError, match=r"2 problems of .*leak\.jsonl are in .*train\.jsonl too, e\.g\. '3 \+ 1"):
        Math(task.train, "model", leak).problems("train")
    with pytest.raises(ValueError, match="num_validation = 20 leaves none of the 20 problems"):
        Math(task.train, "model", None, num_validation=20).problems("validation")
    with pytest.raises(ValueError, match="num_validation must be at least 0, got -1"):
        Math(task.train, "model", None, num_validation=-1)


@pytest.mark.parametrize(("one", "other"), [("1 1/2", "11/2"), ("1 2", "12"), ("3\n4", "34")])
def test_white_space_between_digits_is_no_matter_of_spelling(one, other):
    assert normalise(one) != normalise(other)
