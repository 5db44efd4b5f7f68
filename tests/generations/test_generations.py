"""Rows of generations are read from any file that a run may leave, and shown as they are."""

import dataclasses
import gzip
import io
import itertools
import json
import os

import pytest
import rich.console

from polyepo_jax import sets, types
from polyepo_jax.errors import InputError
from polyepo_jax.generations import (
    DEGENERATE,
    Generation,
    Printer,
    Selection,
    escaped,
    evaluated_file,
    parse_steps,
    read_generations,
)
from polyepo_jax.generations.selection import SIGNAL

ROW = {
    "step": 2,
    "id": 7,
    "prompt": "1+1",
    "sample": 0,
    "response": "2",
    "reward": 1.0,
    "cluster": 3,
    "advantage": 0.25,
    "length": 2,
    "truncated": False,
}
OLD_ROW = {"step": 1, "prompt": "1+1", "response": "3", "reward": 0.0, "cluster": -1}


def lines_of(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(path):
    warnings = []
    return list(read_generations(path, warnings.append)), warnings


def generation(**changes):
    fields = {field.name: None for field in dataclasses.fields(Generation)}
    return Generation(**(fields | {"line": 1, "row": {}} | ROW | changes))


def printed(*generations, width=80):
    console = rich.console.Console(file=io.StringIO(), width=width)
    printer = Printer(console)
    for each in generations:
        printer.print(each)
    return console.file.getvalue()


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_rows_new_and_old(tmp_path, ending):
    path = tmp_path / f"samples.jsonl{ending}"
    content = lines_of(OLD_ROW, ROW | {"characters": 9, "reward": None, "later": "field"}) + "\n" + lines_of(ROW)
    path.write_bytes(gzip.compress(content.encode()) if ending else content.encode())
    (old, cut, new), warnings = read(path)
    assert warnings == []
    assert (old.step, old.id, old.sample, old.advantage, old.length, old.truncated) == (1, *(None,) * 5)
    assert (cut.reward, cut.characters, cut.row["later"]) == (None, 9, "field")
    assert (new.line, new.row) == (4, ROW)
    assert [g.line for g in read_generations(path, first_line=2)] == [2, 4]


def test_what_cannot_be_read_is_said_and_left_out(tmp_path):
    path = tmp_path / "samples.jsonl"
    broken = {
        b"{broken": "character 2",
        b"[1]": "expected a JSON object, got [1]",
        lines_of(ROW | {"response": 3}).strip().encode(): "expected a text as response, got 3",
        lines_of(ROW | {"step": True}).strip().encode(): "expected an integer as step, got true",
        b'{"prompt": "\x1b", "response": ""}': "Invalid control character",
        b'{"prompt": "\xff", "response": ""}': "not valid UTF-8",
        b'{"prompt": "", "response": "", "reward": NaN}': "NaN is no number",
        b'{"prompt": "", "response": "", "reward": 1e999}': "too large",
        b'{"prompt": "", "response": "", "id": ' + b"1" * 5000 + b"}": "integer string conversion",
        b"[" * 100_000: "nested too deeply",
    }
    lines = [lines_of(ROW).encode(), *(line + b"\n" for line in broken), lines_of(ROW).encode()]
    path.write_bytes(b"".join(lines) + b'{"step": 3, "pro')  # the last is still being written
    found, warnings = read(path)
    assert [g.line for g in found] == [1, 12]
    assert len(warnings) == len(broken)
    for number, (warning, message) in enumerate(zip(warnings, broken.values(), strict=True), start=2):
        assert f"line {number} is left out: " in warning
        assert message in warning
        assert warning.isprintable()


def test_many_broken_lines_are_counted(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text("x\n" * 1030)
    found, warnings = read(path)
    assert found == []
    assert len(warnings) == 21
    assert "1,010 further lines" in warnings[-1]


def test_a_complete_line_without_its_end_counts(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text(lines_of(ROW, ROW).rstrip())
    assert [g.line for g in read(path)[0]] == [1, 2]


def test_damaged_archives(tmp_path):
    path = tmp_path / "eval_samples.jsonl.gz"
    whole = gzip.compress(lines_of(ROW).encode()) + gzip.compress(lines_of(*[ROW] * 1000).encode())
    path.write_bytes(whole[:-20])
    found, warnings = read(path)
    assert found[0].row == ROW
    assert "damaged behind line" in warnings[-1]
    for content in (b"no archive", whole[:15]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            read(path)


def test_rows_are_read_one_at_a_time(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text(lines_of(ROW))
    rows = read_generations(path)
    next(rows)
    with path.open("a") as file:  # a file that had been read whole would lack it
        file.write(lines_of(*[OLD_ROW] * 100_000))
    assert len(list(itertools.islice(rows, 10))) == 10
    rows.close()


def test_the_newer_evaluation_is_taken(tmp_path):
    for name, time in (("eval_samples.jsonl", 1), ("eval_samples.jsonl.gz", 2)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time, time))
        assert evaluated_file(tmp_path).name == name


@pytest.mark.parametrize(
    ("selection", "taken"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"steps": (2, 3)}, [0, 2]),
        ({"steps": (3, float("inf"))}, [2, 3]),
        ({"prompt": "7"}, [0, 1, 4]),
        ({"prompt": "17"}, [2, 4]),  # of the last, which has no id, a text
        ({"prompt": "1+"}, [0, 1, 3]),
        ({"prompt": "[red]"}, [2]),
        ({"cluster": -1}, [2]),
        ({"correct": True}, [0]),
        ({"correct": False}, [1, 2, 4]),
        ({"advantage": "positive"}, [0]),
        ({"advantage": "negative"}, [2]),
        ({"advantage": "zero"}, [1, 3]),
        ({"benchmark": "aime"}, [4]),
        ({"correct": False, "advantage": "negative", "steps": (3, 3)}, [2]),
    ],
)
def test_selection(selection, taken):
    rows = [
        generation(),
        generation(step=1, reward=0.0, advantage=1e-9),
        generation(step=3, id=17, prompt="7 [red]", reward=-1.0, cluster=-1, advantage=-0.1),
        generation(step=4, id=8, reward=None, cluster=None, advantage=0.0),
        generation(step=None, id=None, prompt="x17", reward=0.0, advantage=None, benchmark="aime", cluster=0),
    ]
    assert [i for i, row in enumerate(rows) if Selection(**selection).takes(row)] == taken


def test_steps():
    assert parse_steps("12") == (12, 12)
    assert parse_steps("10:20") == (10, 20)
    assert parse_steps("10:") == (10, float("inf"))
    assert parse_steps(":20") == (0, 20)
    for wrong in ("", ":", "x", "-1", "1:2:3", "3:2", "9" * 5000):
        with pytest.raises(InputError, match="--step"):
            parse_steps(wrong)


def test_what_a_model_writes_cannot_act_on_the_terminal():
    hostile = "\x1b]0;title\x07\x1b[2J\r\b\x00\x7f\x9b31m\u202e\u2066\u200b\ud800 [red]x[/red] [/] :smile: é 漢 \xa0"
    text = escaped(f"{hostile}\n\tnext")
    assert text.plain == (
        "\\x1b]0;title\\x07\\x1b[2J\\r\\x08\\x00\\x7f\\x9b31m\\u202e\\u2066\\u200b\\ud800 [red]x[/red] [/] :smile: "
        "é 漢 \xa0\n    next"
    )
    assert all(c in "\n\xa0" or c.isprintable() for c in text.plain)
    shown = printed(generation(prompt=hostile, response=hostile, benchmark=hostile), width=300)
    assert shown.count(escaped(hostile).plain.strip()) == 3
    assert all(c in "\n\xa0" or c.isprintable() for c in shown)


def test_a_generation_is_shown_with_all_that_is_known_of_it():
    shown = printed(
        generation(),
        generation(sample=1, response="a\n\n  b", reward=0.0, cluster=-1, advantage=-0.125, truncated=True),
        generation(sample=2, reward=None, cluster=None, advantage=0.0, length=1200, characters=5000),
        generation(step=None, benchmark="aime", id=None, sample=None, advantage=None, length=None, truncated=None),
    )
    assert [line.rstrip() for line in shown.splitlines()] == [
        *("", "── step 2, prompt 7", "1+1", ""),
        *("#0  ✓ correct    cluster 3  reward 1  ▲ advantage +0.25  2 tokens", "┃ 2", ""),
        "#1  ✗ incorrect  ∅ degenerate  reward 0  ▼ advantage -0.125  2 tokens  truncated",
        *("┊ a", "┊", "┊   b", ""),
        *("#2  ? not graded  = advantage 0  1,200 tokens  5,000 characters, the middle left", "out", "┊ 2", ""),
        *("── aime, prompt", "1+1", "", "✓ correct    cluster 3  reward 1", "┃ 2"),
    ]


def test_long_lines_are_folded_and_lose_nothing():
    response = "x" * 100_000 + " word" * 100
    shown = printed(generation(response=response), width=50).split("tokens\n")[1]
    assert "".join(line[2:] for line in shown.splitlines()).replace(" ", "") == response.replace(" ", "")
    assert max(map(len, shown.splitlines())) <= 50


def test_clusters_of_a_prompt_differ_in_colour():
    console = rich.console.Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    printer = Printer(console)
    for cluster in (10**9, 0, 10**9, 5):
        printer.print(generation(cluster=cluster))
    bars = [line.partition("┃")[0] for line in console.file.getvalue().splitlines() if "┃" in line]
    assert bars[0] == bars[2]
    assert len(set(bars)) == 3


def test_what_is_written_again_so_as_not_to_import_jax_is_the_same():
    assert DEGENERATE == types.DEGENERATE
    assert SIGNAL == sets.SIGNAL_THRESHOLD
