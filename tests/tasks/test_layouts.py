"""The layouts that sets of problems come in, made here, and the same from beside the repository where it has them."""

import csv
import dataclasses
import gzip
import io
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from polyepo_jax.model import ModelConfig
from polyepo_jax.rewards.math import MathVerifier
from polyepo_jax.tasks import Dataset, Math
from polyepo_jax.tasks.dataset import name_of, records
from polyepo_jax.tasks.rows import load
from polyepo_jax.train import train
from polyepo_jax.training.data import admit
from tests.tiny import rl_config
from tests.tiny_hf import write_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data" / "layouts"
NUM_ROWS = 40
BRIEF = (("system", "Be brief."),)
CHAT = {"problem": "prompt", "answer": "reward_model.ground_truth"}

# The fields to name for each layout.
LAYOUTS = {
    "chat_nested.jsonl": CHAT,
    "worked.jsonl": {"problem": "question"},
    "lists.jsonl": {},
    "byte_order_mark.jsonl": {},
    "table.csv": {},
}


@dataclasses.dataclass(frozen=True)
class PaysEvenLengths(MathVerifier):
    """A MathVerifier that an untrained model gets both rewards from."""

    def __call__(self, problem, response):
        return float(len(response) % 2 == 0)


def chat_row(i):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What is {i}+1?"}]
    return {"data_source": "made", "prompt": messages, "reward_model": {"style": "rule", "ground_truth": f"{i + 1}"}}


def layout(name):
    """The text of a layout."""
    numbers = range(NUM_ROWS)
    if name == "table.csv":
        return "problem,answer\n" + "".join(f'"What is {i}, plus 1?",{i + 1}\n' for i in numbers)
    row = {
        "chat_nested.jsonl": chat_row,
        "worked.jsonl": lambda i: {"question": f"What is {i}+1?", "answer": f"We add one to {i}.\n#### {i + 1}"},
        "lists.jsonl": lambda i: {"problem": f"What is {i}+1?", "answer": [f"{i + 1}"]},
        "byte_order_mark.jsonl": lambda i: {"problem": f"What is {i}+1?", "answer": f"{i + 1}"},
    }[name]
    mark, end = ("\ufeff", "\r\n") if name == "byte_order_mark.jsonl" else ("", "\n")
    return mark + "".join(json.dumps(row(i)) + end for i in numbers)


def write(path, text, zipped=False):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    return str(path)


def read(path, **fields):
    return [(r.problem, r.answer, r.turns) for r in records(Dataset("mine", path=str(path), **fields))]


@pytest.mark.parametrize("kept_beside", [False, True], ids=["made", "beside"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_load(tmp_path, name, kept_beside):
    path = SHARED / name if kept_beside else tmp_path / name
    if not kept_beside:
        write(path, layout(name))
    elif not path.exists():
        pytest.skip(f"{name} is not beside the repository")
    rows = load(Dataset("mine", path=str(path), **LAYOUTS[name]), MathVerifier())
    assert str(rows) == "mine: 40 rows"
    plus = ", plus " if name == "table.csv" else "+"
    assert [row.problem for row in rows.kept] == [f"What is {i}{plus}1?" for i in range(NUM_ROWS)]
    assert [row.answer for row in rows.kept] == [str(i + 1) for i in range(NUM_ROWS)]
    assert {row.turns for row in rows.kept} == {BRIEF if name == "chat_nested.jsonl" else ()}


MODEL = ModelConfig(
    vocab_size=300,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)


@pytest.mark.parametrize("name", ["chat_nested.jsonl", "worked.jsonl", "table.csv"])
def test_layouts_train(tmp_path, name):
    write(tmp_path / name, layout(name))
    write_tokenizer(tmp_path / "model")
    task = Math(
        Dataset("mine", path=str(tmp_path / name), **LAYOUTS[name]),
        str(tmp_path / "model"),
        num_validation=4,
        instruction="",
        verifier=PaysEvenLengths(num_workers=1),
    )
    config = rl_config(task=task, model=MODEL, max_steps=2, max_prompt_length=96)
    train(config, tmp_path / "run", "")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    shown = [json.loads(line)["prompt"] for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert shown
    assert set(shown) <= {problem.prompt for problem in task.problems("train")}


# --- chat messages ---


def test_turns_before_the_problem_are_kept_as_the_template_has_them(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "model")
    write(tmp_path / "chat.jsonl", layout("chat_nested.jsonl"))
    task = Math(Dataset("mine", path=str(tmp_path / "chat.jsonl"), **CHAT), str(tmp_path / "model"), instruction=" Go.")
    problem = task.problems("train")[0]
    assert (problem.prompt, problem.reference, problem.turns) == ("What is 0+1? Go.", "1", BRIEF)
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 0+1? Go.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert task.tokenizer.encode_prompt(problem.prompt, problem.turns) == tokenizer.encode(text).ids
    assert len(admit(task.problems("train"), task.tokenizer, 200, "refuse")) == NUM_ROWS
    bare = dataclasses.replace(task, chat=False)
    with pytest.raises(ValueError, match=r"a prompt with turns before it, .*Be brief.* needs a chat template: chat ="):
        admit(bare.problems("train"), bare.tokenizer, 200, "refuse")


def test_a_single_message_is_a_plain_prompt_and_equal_problems_are_left_out(tmp_path):
    def messages(*turns):
        return [{"role": role, "content": text} for role, text in turns]

    example = [("user", "1 + 1?"), ("assistant", "2")]
    prompts = [
        messages(("user", "3 + 4?")),
        messages(("system", "Be kind."), ("user", "3 +  4?")),
        messages(*example, ("user", "3 + 4?")),
    ]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"problem": p, "answer": 7}) + "\n" for p in prompts))
    rows = load(path, MathVerifier())
    assert [(row.id, row.problem, row.turns) for row in rows.kept] == [
        (0, "3 + 4?", ()),
        (2, "3 + 4?", tuple(example)),
    ]
    assert str(rows) == "a: 3 rows; left out: 1 repeated"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"'problem' must be a text, got \[\]; a list must be one of chat messages"),
        ([{"role": "tool", "content": "x"}], r"message 0 of 'problem' must have a role of system, user, assistant and"),
        ([{"role": "user"}], r"message 0 of 'problem' must have .* a text as content, got {'role': 'user'}"),
        ([{"role": "user", "content": 3}], r"message 0 of 'problem' must have .* a text as content"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
            r"the last message of 'problem' must be the user's, got one of 'assistant'",
        ),
        ([{"role": "system", "content": "\ud800"}, {"role": "user", "content": "x"}], "a lone surrogate"),
    ],
)
def test_messages_that_are_no_prompt_are_told_by_line(tmp_path, messages, message):
    path = write(tmp_path / "a.jsonl", "\n" + json.dumps({"problem": messages, "answer": "1"}))
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: {message}"):
        list(records(path))


# --- fields within others, and lists ---


def test_fields_are_paths_and_names_with_dots_alike(tmp_path):
    rows = [{"q": {"text": "a", "n": 1}, "x.y": "5"}, {"q": None, "x.y": "6"}, {"q": {"text": "b"}, "x.y": ["7"]}]
    expected = [("a", "5", ()), ("", "6", ()), ("b", "7", ())]
    path = write(tmp_path / "a.json", json.dumps(rows))
    assert read(path, problem="q.text", answer="x.y") == expected
    with pytest.raises(ValueError, match=r"item 0: no field 'q.answer'; there are 'q.text', 'q.n', 'x.y': name the "):
        read(path, problem="q.text", answer="q.answer")
    with pytest.raises(ValueError, match=r"item 0: no field 'q.text.deep'"):
        read(path, problem="q.text.deep", answer="x.y")


def test_a_parquet_file_holds_messages_and_structs(tmp_path):
    table = pyarrow.Table.from_pylist([chat_row(i) | {"image": b"x"} for i in range(3)])
    parquet.write_table(table, tmp_path / "dapo.parquet")
    expected = [(f"What is {i}+1?", str(i + 1), BRIEF) for i in range(3)]
    assert read(tmp_path / "dapo.parquet", **CHAT) == expected
    with pytest.raises(ValueError, match=r"dapo\.parquet: no field 'answer'; there are 'data_source', 'prompt', 'rew"):
        read(tmp_path / "dapo.parquet", problem="prompt")
    with pytest.raises(ValueError, match=r"row 0: no field 'reward_model.answer'; there are .*'reward_model.style'"):
        read(tmp_path / "dapo.parquet", problem="prompt", answer="reward_model.answer")


def test_several_answers_are_left_out_and_said(tmp_path):
    answers = [["1"], ["2", "3"], [], [4]]
    text = "".join(json.dumps({"problem": f"p{i}", "answer": a}) + "\n" for i, a in enumerate(answers))
    rows = load(write(tmp_path / "mine.jsonl", text), MathVerifier())
    assert [(row.id, row.answer) for row in rows.kept] == [(0, "1"), (3, "4")]
    assert str(rows) == (
        "mine: 4 rows; left out: 1 with an empty answer, 1 whose answer the verifier cannot use (row 1: there are 2 "
        "answers, expected one)"
    )


# --- files ---

ROWS = [{"problem": 'a "b", é\nc', "answer": "1"}, {"problem": "d", "answer": "0.10"}]


def as_table(delimiter):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["answer", "problem"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue()


FORMS = {
    "lines.jsonl": "\n".join(map(json.dumps, ROWS)),
    "lines.ndjson": "\r\n".join(map(json.dumps, ROWS)) + "\r\n\r\n",
    "lines.json": "\n".join(map(json.dumps, ROWS)),
    "list.json": json.dumps(ROWS, indent=1),
    "object.json": json.dumps({"version": 1, "data": ROWS}, indent=1),
    "comma.csv": as_table(","),
    "TAB.TSV": as_table("\t"),
}


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "marked"])
@pytest.mark.parametrize("zipped", [False, True], ids=["", "gzip"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_read_plain_zipped_and_with_a_byte_order_mark(tmp_path, name, zipped, mark):
    path = write(tmp_path / (name + ".gz" * zipped), mark + FORMS[name], zipped)
    assert read(path) == [(row["problem"], row["answer"], ()) for row in ROWS]
    assert name_of(path) == name.partition(".")[0]


def test_one_object_may_be_a_row(tmp_path):
    assert read(write(tmp_path / "a.json", '{"problem": "a", "answer": ["1"]}')) == [("a", "1", ())]
    chat = write(tmp_path / "b.json", json.dumps(chat_row(1)))
    assert read(chat, **CHAT) == [("What is 1+1?", "2", BRIEF)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.txt",
            "x",
            r"a file that ends in '\.txt' is not read; what is read: \.jsonl, .*\.csv.*\.gz, \.parquet, and",
        ),
        ("a", "x", r"a file without an ending is not read; what is read: \.jsonl"),
        ("a.xlsx.gz", "x", r"a file that ends in '\.xlsx\.gz' is not read"),
        ("a.jsonl.gz", "x", r"cannot be read \(.*\); expected the gzip of text in UTF-8"),
        ("a.csv", "problem,answer\na,1\n\nb,2,3\n", r"a\.csv, line 4: 3 cells under 2 columns \('problem', 'answer'\)"),
        ("a.csv", 'problem,answer\n"a\nb",1\n"c', r"a\.csv, line 4: not a row of a table"),
        ("a.csv", "problem,problem\n", r"a\.csv, line 1: two columns are called 'problem'"),
        ("a.csv", "problem;answer\na;1\n", r"a\.csv, line 2: no field 'problem'; there are 'problem;answer'"),
        (
            "a.json",
            '{"x": [1], "y": [2]}',
            r"a\.json: expected a list of rows, .*got one object with 2 lists and .*'x'",
        ),
        ("a.json", '{"problem": "a", "answer": 1}\n{"problem"', r"a\.json, line 2: not valid JSON"),
        ("a.json", '[{"problem": "a",\n"answer"}]', r"a\.json: not valid JSON \(.*line 2"),
    ],
)
def test_what_is_not_read_is_told_with_file_and_line(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(write(tmp_path / name, text))
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_cut_gzip_and_a_missing_file_are_told(tmp_path):
    whole = gzip.compress(FORMS["list.json"].encode())
    (tmp_path / "cut.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.json\.gz: cannot be read"):
        read(tmp_path / "cut.json.gz")
    with pytest.raises(ValueError, match=r"someone/set: there is no such file; what is read: \.jsonl"):
        read(tmp_path / "someone/set")
