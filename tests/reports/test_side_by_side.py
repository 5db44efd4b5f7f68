"""Generations side by side: which are chosen, how they are counted, and how little of a file is read."""

import gzip
import json
import os

import pytest

from polyepo_jax.generations import evaluated_file
from polyepo_jax.reports import load_runs, methods_of
from polyepo_jax.reports.side_by_side import letter, side_by_side
from polyepo_jax.reports.visible import excerpt, one_line, visible
from tests.reports.synthetic import make_run

NAME = "polynomial/held_out"
OPEN, CLOSE = "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}", "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"


@pytest.fixture
def directory(tmp_path):
    return make_run(tmp_path / "grpo", num_problems=5, m=8, steps=1)


def rows_of(*directories):
    notes = []
    return side_by_side(methods_of(load_runs(directories)), notes), notes


def sample(id_, response="x", **changes):
    row = {"benchmark": NAME, "id": id_, "prompt": f"p{id_}", "sample": 0, "response": response, "reward": 1.0}
    return row | {"cluster": 0, "length": 3, "truncated": False} | changes


def write(directory, rows, broken_after=False):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "eval_samples.jsonl").write_text(text + ("{broken\n" if broken_after else ""))


def test_the_first_problems_of_the_first_run_are_taken_from_each(directory, tmp_path):
    other = make_run(tmp_path / "poly_epo", num_problems=5, m=8, steps=1)
    write(other, [sample(i) for i in (4, 2, 0, 7)])
    rows, notes = rows_of(directory, other)
    assert [(row.benchmark, row.id) for row in rows] == [(NAME, 0), (NAME, 1), (NAME, 2)]
    assert [[column.label for column in row.columns] for row in rows] == [
        *(["GRPO", "Poly-EPO"], ["GRPO"], ["GRPO", "Poly-EPO"])
    ]
    assert [row.absent for row in rows] == [(), ("Poly-EPO",), ()]
    assert notes == []


def test_several_benchmarks_have_two_problems_each(tmp_path):
    directory = make_run(tmp_path / "grpo", names=("a", "b"), num_problems=4, m=3, steps=1)
    rows, _ = rows_of(directory)
    assert [(row.benchmark, row.id) for row in rows] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_each_benchmark_has_its_problems_from_the_first_run_that_has_it(tmp_path):
    directories = [
        make_run(tmp_path / f"of{''.join(names)}", names=names, num_problems=4, m=3, steps=1)
        for names in (("a",), ("b",), ("b", "a", "c"))
    ]
    rows, notes = rows_of(*directories)
    assert [(row.benchmark, row.id) for row in rows] == [(name, i) for name in "abc" for i in range(2)]
    assert [[column.label for column in row.columns] for row in rows[::2]] == [
        *(["ofa", "ofbac"], ["ofb", "ofbac"], ["ofbac"])
    ]
    assert rows[4].absent == ("ofa", "ofb")
    assert notes == []


def test_of_many_benchmarks_each_has_one_problem_up_to_eight(tmp_path):
    first = make_run(tmp_path / "first", names=(*"abcde",), num_problems=3, m=2, steps=1)
    second = make_run(tmp_path / "second", names=(*"xyzuvw",), num_problems=3, m=2, steps=1)
    assert [(row.benchmark, row.id) for row in rows_of(first)[0]] == [(name, 0) for name in "abcde"]
    assert [row.benchmark for row in rows_of(first, second)[0]] == [*"abcdexyz"]


def test_no_more_is_read_of_a_run_that_lacks_the_others_benchmarks(directory, tmp_path):
    other = make_run(tmp_path / "other", names=("b",), num_problems=3, m=2, steps=1)
    write(other, [sample(i, benchmark="b") for i in range(3)], broken_after=True)
    rows, notes = rows_of(directory, other)
    assert [(row.benchmark, row.id) for row in rows] == [(NAME, 0), (NAME, 1), ("b", 0), ("b", 1)]
    assert notes == []


def test_no_more_of_a_file_is_read_than_needed(directory, tmp_path):
    write(directory, [sample(i) for i in range(4)], broken_after=True)
    other = make_run(tmp_path / "poly_epo", num_problems=5, m=8, steps=1)
    write(other, [sample(i) for i in range(4)], broken_after=True)
    rows, notes = rows_of(directory, other)
    assert len(rows) == 3
    assert notes == []
    write(other, [sample(0)], broken_after=True)
    assert "eval_samples.jsonl, line 2 is left out: not valid JSON" in rows_of(directory, other)[1][0]


def test_compressed_files_are_read_too(directory):
    content = (directory / "eval_samples.jsonl").read_bytes()
    expected, _ = rows_of(directory)
    (directory / "eval_samples.jsonl").unlink()
    (directory / "eval_samples.jsonl.gz").write_bytes(gzip.compress(content))
    assert rows_of(directory)[0] == expected


@pytest.mark.parametrize(("plain", "compressed", "expected"), [(1, 2, "compressed"), (2, 1, "plain"), (2, 2, "plain")])
def test_of_a_plain_and_a_compressed_file_the_newer_counts(directory, plain, compressed, expected):
    write(directory, [sample(0, "plain")])
    path = directory / "eval_samples.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(sample(0, "compressed")).encode() + b"\n"))
    os.utime(directory / "eval_samples.jsonl", (plain, plain))
    os.utime(path, (compressed, compressed))
    ((row,), _) = rows_of(directory)
    assert row.columns[0].shown[0].excerpt.head == expected
    assert evaluated_file(directory) == load_runs([directory])[0].samples


def test_samples_are_counted_and_clusters_lettered_by_size(directory):
    samples = [sample(0, cluster=c) for c in (9, 9, 9, 5, 5)]
    samples += [sample(0, reward=0.0, cluster=70), sample(0, cluster=-1), sample(0, reward=None, cluster=None)]
    write(directory, samples)
    ((row,), _) = rows_of(directory)
    (column,) = row.columns
    assert column.counts == ("8 samples", "6 correct", "1 incorrect", "1 degenerate", "1 not graded", "3 clusters")
    assert column.clusters == (("A", 0, 3), ("B", 1, 2), ("C", 2, 1))
    assert [generation.cluster for generation in column.shown] == ["A", "A", "A", "B", "B", "C"]


@pytest.mark.parametrize(
    ("changes", "verdicts", "cluster"),
    [
        ({}, ("correct",), "A"),
        ({"reward": 0.0, "truncated": True}, ("incorrect", "truncated"), "A"),
        ({"cluster": -1}, ("correct", "degenerate"), ""),
        ({"reward": None, "cluster": None}, ("not graded",), ""),
    ],
)
def test_verdicts_are_words(directory, changes, verdicts, cluster):
    write(directory, [sample(0, **changes)])
    ((row,), _) = rows_of(directory)
    (generation,) = row.columns[0].shown
    assert (generation.verdicts, generation.cluster) == (verdicts, cluster)


def test_lines_of_no_use_are_left_out(directory):
    without = [
        {"response": "x"},
        {"prompt": "p", "response": "x"},
        sample(0) | {"response": 5},
        sample(0) | {"reward": "1"},
    ]
    write(directory, [*without, sample(0)])
    ((row,), notes) = rows_of(directory)
    assert row.columns[0].counts[0] == "1 samples"
    assert "line 1 is left out: expected a text as prompt, got null" in notes[0]
    assert "line 3 is left out: expected a text as response, got 5" in notes[1]
    assert 'line 4 is left out: expected a number as reward, got "1"' in notes[2]
    assert len(notes) == 3


def test_letters():
    assert [letter(i) for i in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本 👩\u200d👩", "plain é 日本 👩\u200d👩"),
        ("a\x00b\x1b\x7f", f"a{OPEN}U+0000{CLOSE}b{OPEN}U+001B{CLOSE}{OPEN}U+007F{CLOSE}"),
        ("a\tb\r\n", f"a{OPEN}U+0009{CLOSE}b{OPEN}U+000D{CLOSE}{OPEN}U+000A{CLOSE}"),
        ("\u202e\u200b\ufeff", f"{OPEN}U+202E{CLOSE}{OPEN}U+200B{CLOSE}{OPEN}U+FEFF{CLOSE}"),
        ("\ud800", f"{OPEN}U+D800{CLOSE}"),
    ],
)
def test_unseen_characters_are_shown(text, shown):
    assert visible(text) == shown


def test_excerpts_leave_out_the_middle_and_count_it():
    short = excerpt("ab\ncd", 5)
    assert (short.head, short.left_out, short.tail) == ("ab\ncd", 0, "")
    long = excerpt("a" * 60 + "b" * 100_000 + "c" * 30, 90)
    assert (long.head, long.left_out, long.tail) == ("a" * 60, 100_000, "c" * 30)
    assert one_line("a" * 100, 11) == "aaaaa…aaaaa"


def test_no_more_columns_than_fit(tmp_path):
    directories = [make_run(tmp_path / f"m{i}", num_problems=1, m=2, steps=1) for i in range(8)]
    ((row,), _) = rows_of(*directories)
    assert [column.label for column in row.columns] == [f"m{i}" for i in range(6)]
