"""The tables: their numbers, intervals, marks and notes."""

import json

import pytest

from polyepo_jax.reports import load_runs, methods_of
from polyepo_jax.reports.tables import (
    differences_table,
    estimates_table,
    failures_table,
    settings_table,
    summary_table,
)
from tests.reports.synthetic import demo, make_run

NAME = "polynomial/held_out"


def set_entry(directory, **changes):
    path = directory / "eval.json"
    content = json.loads(path.read_text())
    content["benchmarks"][NAME] |= changes
    path.write_text(json.dumps(content))


@pytest.fixture
def run_dirs(tmp_path):
    return demo(tmp_path, num_problems=4, m=16, steps=3)


def methods(directories):
    return methods_of(load_runs(directories))


def texts(table):
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def test_the_summary_holds_the_numbers_of_the_files(run_dirs):
    for directory, found in zip(run_dirs, (4.0, 1.25, 6.5), strict=True):
        curve = {"1": 0.5, "2": 0.625, "4": 0.75, "8": 0.875, "16": 1.0}
        set_entry(
            directory,
            pass_at_k=curve,
            majority_at_k={k: value / 2 for k, value in curve.items()},
            distinct=2 * found,
            distinct_correct=found,
            intervals={"pass_at_k": {"1": [0.4, 0.625]}, "distinct": [1.0, 12.5]},
        )
    table = summary_table(methods(run_dirs), NAME)
    assert table.title == "Polynomial, held out (4 problems, 16 samples of each)"
    assert table.columns == (
        *("run", "step", "pass@1", "pass@8", "pass@16 *", "majority@16 *"),
        *("distinct answers", "distinct correct answers"),
    )
    assert texts(table) == {
        "base (warm start)": ["3", "50.0%", "87.5%", "100.0%", "50.0%", "8.00", "4.00"],
        "GRPO": ["3", "50.0%", "87.5%", "100.0%", "50.0%", "2.50", "1.25"],
        "Poly-EPO": ["3", "50.0%", "87.5%", "100.0%", "50.0%", "13.00", "6.50"],
    }
    assert [cell.interval for cell in table.rows[0]] == [
        *("", "", "40.0\N{EN DASH}62.5", "", "", "", "1.00\N{EN DASH}12.50", "")
    ]
    assert table.note == (
        "* k beyond half the samples: varies much from evaluation to evaluation.\n"
        "Distinct correct answers a prompt, relative to base (warm start): GRPO 0.31x, Poly-EPO 1.6x; "
        "relative to GRPO: base (warm start) 3.2x, Poly-EPO 5.2x."
    )


def test_runs_keep_the_order_given(run_dirs):
    assert [*texts(summary_table(methods(run_dirs[::-1]), NAME))] == ["Poly-EPO", "GRPO", "base (warm start)"]


def test_the_summary_uses_the_largest_k_that_all_runs_have(tmp_path):
    short = make_run(tmp_path / "short", num_problems=3, m=2, steps=1)
    table = summary_table(methods([short, make_run(tmp_path / "long", num_problems=3, m=16, steps=1)]), NAME)
    assert table.columns[2:5] == ("pass@1", "pass@2 *", "majority@2 *")
    assert "2 or 16 samples" in table.title
    assert "do not compare" in table.note


def test_no_ratio_to_nothing(run_dirs):
    for directory in run_dirs:
        set_entry(directory, distinct_correct=0.0)
    assert "relative" not in summary_table(methods(run_dirs), NAME).note


def test_a_run_without_the_benchmark_is_left_out(tmp_path):
    both = make_run(tmp_path / "both", names=(NAME, "aime_2025"), num_problems=3, m=2, steps=1)
    one = make_run(tmp_path / "one", num_problems=3, m=2, steps=1)
    table = summary_table(methods([one, both]), "aime_2025")
    assert table.title.startswith("Aime 2025 (")
    assert [*texts(table)] == ["both"]


def test_a_method_of_several_seeds_is_one_row_with_their_range(tmp_path):
    changes = {"algorithm": "GRPO"}
    directories = [
        make_run(tmp_path / f"grpo_s{seed}", seed=seed, num_problems=3, m=4, steps=1, changes=changes)
        for seed in range(3)
    ]
    for directory, value in zip(directories, (0.25, 0.5, 0.375), strict=True):
        set_entry(directory, pass_at_k={"1": value})
    (row,) = summary_table(methods(directories), NAME).rows
    assert (row[0].text, row[2].text, row[2].interval) == ("GRPO (3 seeds)", "37.5%", "25.0\N{EN DASH}50.0")


def test_estimates_mark_k_beyond_half_the_samples(run_dirs):
    table = estimates_table(methods(run_dirs), NAME)
    assert table.columns == ("", "base (warm start)", "GRPO", "Poly-EPO")
    names = [*texts(table)]
    assert names[:5] == ["pass@1", "pass@2", "pass@4", "pass@8", "pass@16 *"]
    assert {"majority@8", "majority@16 *", "vote share@8", "distinct incorrect answers", "length, tokens"} <= {*names}
    assert "varies much" in table.note


def test_every_table_marks_all_at_k_beyond_half_the_samples(tmp_path):
    # Of 12 samples half are 6, so that 8, which is not the largest, is beyond.
    run_dirs = [make_run(tmp_path / name, num_problems=4, m=12, steps=1, hidden=True) for name in ("grpo", "poly_epo")]
    found = methods(run_dirs)
    assert summary_table(found, NAME).columns[2:6] == ("pass@1", "pass@8 *", "pass@12 *", "majority@12 *")
    expected = {"pass@4", "pass@8 *", "pass@12 *"}
    expected |= {f"{name}@{k}" for name in ("majority", "vote share", "hidden") for k in ("4", "12 *")} | {"hidden@1"}
    for table in (estimates_table(found, NAME), differences_table(found, NAME)):
        assert expected <= {*texts(table)}
    for table in (summary_table(found, NAME), estimates_table(found, NAME), differences_table(found, NAME)):
        assert "* k beyond half the samples" in table.note
    for directory in run_dirs:
        path = directory / "eval.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"high_variance_above_k": 12}))
    found = methods(run_dirs)
    for table in (summary_table(found, NAME), estimates_table(found, NAME), differences_table(found, NAME)):
        assert "*" not in table.note + "".join([*table.columns, *texts(table)])


def test_differences_are_signed_and_say_on_which_side_of_0_they_lie(run_dirs):
    lines = [json.loads(line) for line in (run_dirs[0] / "eval_problems.jsonl").read_text().splitlines()]
    passes = json.loads((run_dirs[0] / "eval.json").read_text())["benchmarks"][NAME]["pass_at_k"]
    for directory, shift in ((run_dirs[1], -0.25), (run_dirs[2], 0.125)):
        set_entry(directory, pass_at_k=passes)
        rows = [line | {"distinct": line["distinct"] + shift, "coverage": line["coverage"]} for line in lines]
        (directory / "eval_problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = differences_table(methods(run_dirs), NAME)
    assert table.title == "Differences to base (warm start)"
    assert table.columns == ("", "GRPO", "Poly-EPO")
    (row,) = [row for row in table.rows if row[0].text == "distinct answers"]
    minus = "\N{MINUS SIGN}"
    assert [(cell.text, cell.side) for cell in row[1:]] == [(f"{minus}0.25", "below"), ("+0.12", "above")]
    (row,) = [row for row in table.rows if row[0].text == "coverage"]
    assert [(cell.text, cell.side, cell.interval) for cell in row[1:]] == [("0.0", "", "")] * 2


def test_no_differences_without_problems(run_dirs):
    (run_dirs[0] / "eval_problems.jsonl").unlink()
    assert differences_table(methods(run_dirs), NAME) is None
    assert differences_table(methods(run_dirs[:1]), NAME) is None


def test_failures_are_added_up_by_kind(tmp_path):
    directories = [make_run(tmp_path / "a", num_problems=2, m=2, steps=14, judge=True)]
    directories.append(make_run(tmp_path / "b", num_problems=2, m=2, steps=3))
    table = failures_table(methods(directories))
    assert texts(table) == {
        "judge/failures/timeout": ["2", "-"],
        "judge/transport/rate_limit": ["30", "-"],  # step % 5 over 14 steps
        "judge/calls": ["448", "-"],
        "verifier/faults/no_answer": ["28", "-"],
    }
    assert table.note.endswith("Never happened: judge/failures/not_json.")
    assert failures_table(methods(directories[1:])) is None


def test_settings_have_a_column_for_each_run(run_dirs):
    table = settings_table(load_runs(run_dirs))
    assert table.columns == ("setting", "base (warm start)", "GRPO", "Poly-EPO")
    assert texts(table)["class"] == [
        f"polyepo_jax.config.sections:{kind}" for kind in ("SFTConfig", "Config", "Config")
    ]
    assert "init.run_dir" not in texts(table), "of one kind of run alone, and the same in these"
    (run_dirs[1] / "config.json").write_text(
        (run_dirs[1] / "config.json").read_text().replace("runs/warm_start", "runs/other")
    )
    assert texts(settings_table(load_runs(run_dirs)))["init.run_dir"] == ["-", "runs/other", "runs/warm_start"]
    assert settings_table(load_runs(run_dirs[:1])) is None
