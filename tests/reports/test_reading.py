"""Run directories that are incomplete, damaged or of other versions: what is kept, and what is said."""

import gzip
import json

import numpy as np
import pytest

from polyepo_jax.reports import load_runs
from polyepo_jax.reports.json_files import number, read_lines
from tests.reports.synthetic import make_run


@pytest.fixture
def directory(tmp_path):
    return make_run(tmp_path / "grpo", num_problems=3, m=4, steps=5)


def loaded(directory):
    (run,) = load_runs([directory])
    return run


def test_a_whole_directory_lacks_nothing(directory):
    run = loaded(directory)
    assert (run.missing, run.damaged) == ((), ())
    assert run.benchmarks["polynomial/held_out"].problems.ids == (0, 1, 2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (0.5, 0.5), (None, np.nan), (True, np.nan), ("1", np.nan), ([1], np.nan), (10**400, np.nan)],
)
def test_a_number_is_finite_or_nan(value, expected):
    np.testing.assert_equal(number(value), expected)


def test_series_keep_gaps_apart_from_steps_without_the_metric(directory):
    rows = ['{"step": 1, "x": 1, "y": null}', '{"step": 2, "x": NaN}', '{"step": 3}', '{"step": 4, "x": 4}']
    (directory / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    run = loaded(directory)
    steps, values = run.series("x")
    np.testing.assert_array_equal(steps, [1, 2, 4])
    np.testing.assert_array_equal(values, [1, np.nan, 4])
    assert run.series("y")[0].size == run.series("z")[0].size == 0


def test_of_a_step_that_is_there_twice_the_last_counts(directory):
    (directory / "metrics.jsonl").write_text('{"step": 2, "x": 1}\n{"step": 1, "x": 5}\n{"step": 2, "x": 3}\n')
    steps, values = loaded(directory).series("x")
    assert (steps.tolist(), values.tolist()) == ([1, 2], [5, 3])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", r"config.json: not valid JSON"),
        ("config.json", "[]", r"config.json: expected a JSON object, got []"),
        ("eval.json", "{}", "expected num_samples and at least one benchmark"),
        ("eval.json", '{"checkpoint_step": 1, "num_samples": 4, "benchmarks": {}}', "at least one benchmark"),
        ("eval.json", '{"num_samples": 4, "benchmarks": {"x": 3}}', "benchmark 'x': holds no number"),
        ("eval.json", b"\xff", "eval.json: not UTF-8"),
        ("eval.json", "[" * 100_000, "eval.json: not readable JSON"),
        ("metrics.jsonl", '{"step": 1, "x": 2}\n\n{"step"\n', "metrics.jsonl, line 3: not valid JSON"),
        ("metrics.jsonl", '{"step": 1, "x": 2}\n{"st', "line 2: breaks off in the middle of a line"),
        ("metrics.jsonl", '{"step": 1}\n{"x": 1}\n', 'metrics.jsonl, line 2: expected an integer "step"'),
        ("metrics.jsonl", '{"step": 1e400}\n', 'metrics.jsonl, line 1: expected an integer "step"'),
        ("metrics.jsonl", b"\x00\xff\n", "metrics.jsonl, line 1: not UTF-8"),
        ("eval_problems.jsonl", '{"benchmark": "x"}\n', 'line 1: expected "benchmark" and "id"'),
        (
            "eval_problems.jsonl",
            '{"benchmark": "x", "id": 1, "num_samples": 16}\n',
            "eval_problems.jsonl: 16 samples where eval.json has 4: it is of another evaluation",
        ),
    ],
)
def test_what_is_damaged_is_named(directory, name, content, message):
    (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    run = loaded(directory)
    assert any(message in note for note in (*run.damaged, *run.missing))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "no config.json: its settings are not compared"),
        ("metrics.jsonl", "no metrics.jsonl: no curves over training"),
        ("eval.json", "python -m polyepo_jax.evaluate --run-dir"),
        ("eval_problems.jsonl", "no eval_problems.jsonl: no paired differences"),
        ("eval_samples.jsonl", "no eval_samples.jsonl: no generations"),
    ],
)
def test_what_is_missing_is_said(directory, name, message):
    (directory / name).unlink()
    assert any(message in note for note in loaded(directory).missing)


def test_no_more_than_a_few_lines_of_a_file_are_named(directory):
    (directory / "metrics.jsonl").write_text('{"step": 1, "x": 1}\n' + "{\n" * 25 + '{"step": null}\n' * 25)
    damaged = loaded(directory).damaged
    assert len(damaged) == 4
    assert damaged[-1].endswith("47 more lines cannot be read and are left out")


def test_a_number_of_another_kind_is_left_out_with_a_note(directory):
    path = directory / "eval.json"
    content = json.loads(path.read_text())
    entry = content["benchmarks"]["polynomial/held_out"]
    entry |= {"coverage": "high", "majority_at_k": [1], "vote_share_at_k": {"one": 1}, "distinct": None}
    path.write_text(json.dumps(content))
    run = loaded(directory)
    values = run.benchmarks["polynomial/held_out"].values
    assert not {"coverage", "distinct"} & set(values)
    assert not [name for name in values if name.startswith(("majority", "vote"))]
    assert "pass_at_k/1" in values
    for name in ("coverage, got 'high'", "majority_at_k, got [1]", "vote_share_at_k, got {'one': 1}"):
        assert any(f"expected numbers as {name}" in note for note in run.damaged)
    assert len(run.damaged) == 3


def test_problems_that_could_not_be_graded_are_said(directory):
    path = directory / "eval.json"
    content = json.loads(path.read_text())
    whole = content["benchmarks"]["polynomial/held_out"]
    content["benchmarks"] = {
        "some": whole | {"num_failed": 1},
        "many": whole | {"num_failed": 1234},
        "none": whole | {"num_failed": 0},
        "old": whole,
        "odd": whole | {"num_failed": "7"},
        "all": {"num_prompts": 0, "num_failed": 5},
    }
    path.write_text(json.dumps(content))
    (directory / "eval_problems.jsonl").unlink()
    run = loaded(directory)
    assert [*run.benchmarks] == ["some", "many", "none", "old", "odd"]
    assert run.ungraded == ("all",)
    assert [note for note in run.missing if "graded" in note] == [
        "some: 1 problem left out of its numbers, because a generation could not be graded",
        "many: 1,234 problems left out of its numbers, because a generation could not be graded",
        "all: none of its 5 problems could be graded, so it has no numbers; evaluate again",
    ]
    assert run.damaged == ()
    content["benchmarks"] = {"all": {"num_prompts": 0, "num_failed": 5}}
    path.write_text(json.dumps(content))
    run = loaded(directory)
    assert (run.benchmarks, run.damaged) == ({}, ())
    assert not any("older version" in note for note in run.missing)


def test_intervals_of_the_file_win_and_are_else_computed(directory):
    path = directory / "eval.json"
    content = json.loads(path.read_text())
    computed = loaded(directory).benchmarks["polynomial/held_out"]
    low, high = computed.intervals["pass_at_k/1"]
    assert low < computed.values["pass_at_k/1"] < high
    given = {"pass_at_k": {"1": [0.25, 0.75], "2": [None, None]}, "coverage": [0.5, 1.0]}
    content["benchmarks"]["polynomial/held_out"]["intervals"] = given
    path.write_text(json.dumps(content))
    intervals = loaded(directory).benchmarks["polynomial/held_out"].intervals
    assert intervals == {"pass_at_k/1": (0.25, 0.75), "coverage": (0.5, 1.0)}


def test_evaluations_of_an_older_version(directory):
    path = directory / "eval.json"
    content = json.loads(path.read_text())
    entry = content["benchmarks"]["polynomial/held_out"]
    for name in ("rarefied_correct", "branching", "distinct_incorrect", "distinct_correct_if_solved"):
        del entry[name]
    del content["high_variance_above_k"], content["sampling"]
    path.write_text(json.dumps(content))
    for name in ("eval_problems.jsonl", "eval_samples.jsonl"):
        (directory / name).unlink()
    run = loaded(directory)
    assert run.benchmarks["polynomial/held_out"].high_variance_above == 2
    assert run.benchmarks["polynomial/held_out"].intervals == {}
    assert any("older version, without distinct_incorrect" in note for note in run.missing)
    assert any(note.startswith("no intervals on polynomial/held_out") for note in run.missing)


def test_problems_that_are_not_all_there(directory):
    path = directory / "eval_problems.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert any("2 of 3 problems of polynomial/held_out" in note for note in loaded(directory).damaged)


def test_problems_of_another_evaluation_are_left_out(directory):
    path = directory / "eval_problems.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["pass_at_k"]["1"] += 0.125
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = loaded(directory)
    assert any("other means than in eval.json on polynomial/held_out" in note for note in run.damaged)
    assert run.benchmarks["polynomial/held_out"].problems.ids == ()
    assert run.benchmarks["polynomial/held_out"].intervals == {}


def test_lines_are_read_from_a_compressed_file_until_it_breaks_off(tmp_path):
    lines = "".join(json.dumps({"i": i, "noise": np.random.default_rng(i).random()}) + "\n" for i in range(5000))
    packed = gzip.compress(lines.encode())
    path, notes = tmp_path / "x.jsonl.gz", []
    path.write_bytes(packed)
    assert [row["i"] for row in read_lines(path, notes)] == [*range(5000)]
    assert notes == []
    path.write_bytes(packed[: len(packed) // 2])
    rows = [row["i"] for row in read_lines(path, notes)]
    assert 0 < len(rows) < 5000
    assert rows == [*range(len(rows))]
    assert "cannot be read to its end" in notes[-1]
    path.write_bytes(b"not compressed")
    assert [*read_lines(path, notes)] == []
    assert "cannot be read to its end" in notes[-1]


def test_equal_names_get_their_parents(tmp_path):
    def labels(*names):
        return [run.label for run in load_runs([make_run(tmp_path / n, num_problems=2, m=2, steps=1) for n in names])]

    assert labels("seed0/grpo", "seed1/grpo", "poly_epo") == ["seed0/GRPO", "seed1/GRPO", "Poly-EPO"]
    assert labels("x/s/grpo", "y/s/grpo") == ["x/s/GRPO", "y/s/GRPO"]
    assert labels("z/poly_epo", "z/Poly-EPO") == [str(tmp_path / "z/poly_epo"), str(tmp_path / "z/Poly-EPO")]
