"""Reports of synthetic run directories: what the table says, the plots, the page, and what is refused."""

import json
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

from polyepo_jax import report, reports
from polyepo_jax.errors import InputError, run_command
from polyepo_jax.reports import plots

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def entry(distinct_correct, pass_at_k=None, **changes):
    pass_at_k = pass_at_k or {"1": 0.5, "2": 0.625, "4": 0.75, "8": 0.875, "16": 1.0}
    return {
        "num_prompts": 32,
        "pass_at_k": pass_at_k,
        "majority_at_k": {k: value / 2 for k, value in pass_at_k.items()},
        "vote_share_at_k": dict.fromkeys(pass_at_k, 0.5),
        "coverage": 1.0,
        "distinct": 2 * distinct_correct,
        "distinct_correct": distinct_correct,
        "degenerate_frac": 0.0,
        "truncated_frac": 0.0,
    } | changes


def make_run(directory, distinct_correct=2.0, *, trained=True, num_samples=16, **benchmarks):
    """A run directory; `trained=False` is a warm start, whose log has no metric of reinforcement."""
    directory.mkdir(parents=True)
    config = {"num_generations": 8, "evaluation": {"num_samples": 16}}
    (directory / "config.json").write_text(json.dumps(config))
    benchmarks = {"polynomials/held_out": entry(distinct_correct)} | benchmarks
    evaluation = {"checkpoint_step": 1200, "num_samples": num_samples, "benchmarks": benchmarks}
    (directory / "eval.json").write_text(json.dumps(evaluation))
    rows = []
    for step in range(61):
        row = {"step": step, "loss/supervised": 1.0}
        if trained:
            row = {"step": step, "rewards/mean": step / 100, "clusters/distinct_correct": 1.5}
            row["clusters/distinct"] = None
            if step % 20 == 0:
                row["eval/distinct_correct"] = distinct_correct
        rows.append(json.dumps(row))
    (directory / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    return directory


@pytest.fixture
def run_dirs(tmp_path):
    found = {"warm_start": 4.0, "grpo": 1.25, "poly_epo": 6.5}
    return [make_run(tmp_path / name, value, trained=name != "warm_start") for name, value in found.items()]


def texts(figure):
    """All visible words of the panels, panel by panel."""
    figure.draw_without_rendering()
    return [[text.get_text() for text in (*ax.texts, ax.xaxis.label)] for ax in figure.axes if ax.get_visible()]


def test_the_table_holds_the_numbers_of_the_files(run_dirs):
    (table,) = reports.comparison_tables(reports.load_runs(run_dirs))
    assert table.title == "Polynomials, held out (32 prompts, 16 samples each)"
    assert table.columns == (
        *("run", "step", "pass@1", "pass@8", "pass@16", "majority@16"),
        *("distinct answers", "distinct correct answers"),
    )
    assert table.rows == (
        ("base (warm start)", "1,200", "50.0%", "87.5%", "100.0%", "50.0%", "8.00", "4.00"),
        ("GRPO", "1,200", "50.0%", "87.5%", "100.0%", "50.0%", "2.50", "1.25"),
        ("Poly-EPO", "1,200", "50.0%", "87.5%", "100.0%", "50.0%", "13.00", "6.50"),
    )
    assert table.note == (
        "Distinct correct answers a prompt, relative to base (warm start): GRPO 0.31x, Poly-EPO 1.6x; "
        "relative to GRPO: base (warm start) 3.2x, Poly-EPO 5.2x."
    )


def test_runs_keep_the_order_given(run_dirs):
    (table,) = reports.comparison_tables(reports.load_runs(run_dirs[::-1]))
    assert [row[0] for row in table.rows] == ["Poly-EPO", "GRPO", "base (warm start)"]


def test_the_table_uses_the_largest_k_that_all_runs_have(tmp_path):
    short = make_run(tmp_path / "short", num_samples=2, **{"polynomials/held_out": entry(1.0, {"1": 0.5, "2": 0.5})})
    (table,) = reports.comparison_tables(reports.load_runs([short, make_run(tmp_path / "long")]))
    assert table.columns[2:5] == ("pass@1", "pass@2", "majority@2")
    assert "2 or 16 samples" in table.title
    assert "do not compare" in table.note


def test_no_ratio_to_nothing(tmp_path):
    directories = [make_run(tmp_path / name, value) for name, value in {"a": 0.0, "b": 3.0}.items()]
    (table,) = reports.comparison_tables(reports.load_runs(directories))
    assert table.note == ""


def test_each_benchmark_has_a_table_of_the_runs_that_have_it(tmp_path):
    both = make_run(tmp_path / "both", aime_2025=entry(1.0))
    one = make_run(tmp_path / "one")
    first, second = reports.comparison_tables(reports.load_runs([one, both]))
    assert [row[0] for row in first.rows] == ["one", "both"]
    assert second.title.startswith("Aime 2025 (")
    assert [row[0] for row in second.rows] == ["both"]


def test_equal_names_get_their_parents(tmp_path):
    names = ["seed0/grpo", "seed1/grpo", "poly_epo"]
    runs = reports.load_runs([make_run(tmp_path / name) for name in names])
    assert [run.label for run in runs] == ["seed0/GRPO", "seed1/GRPO", "Poly-EPO"]
    runs = reports.load_runs([make_run(tmp_path / name) for name in ("x/s/grpo", "y/s/grpo")])
    assert [run.label for run in runs] == ["x/s/GRPO", "y/s/GRPO"]
    runs = reports.load_runs([make_run(tmp_path / name) for name in ("z/poly_epo", "z/Poly-EPO")])
    assert [run.label for run in runs] == [str(tmp_path / "z/poly_epo"), str(tmp_path / "z/Poly-EPO")]


def test_series_leave_out_what_is_undefined(run_dirs):
    run = reports.load_runs(run_dirs)[1]
    assert run.series("eval/distinct_correct") == ([0, 20, 40, 60], [1.25] * 4)
    assert run.series("clusters/distinct") == ([], [])


def test_held_out_points_with_the_base_as_reference(run_dirs):
    passes, distinct = texts(reports.comparison_figure(reports.load_runs(run_dirs)))
    assert {"base (warm start)", "GRPO", "Poly-EPO"} <= set(passes)
    assert set(distinct) == {
        *("base (warm start)", "GRPO", "Poly-EPO"),
        "step  (validation prompts, 16 samples; dashed: test)",
    }


def test_no_reference_among_another_number_of_samples(tmp_path, run_dirs):
    base = make_run(tmp_path / "other" / "warm_start", trained=False, num_samples=64)
    _, distinct = texts(reports.comparison_figure(reports.load_runs([base, *run_dirs[1:]])))
    assert "base (warm start)" not in distinct


def test_training_curves_where_held_out_points_are_missing(run_dirs):
    metrics = run_dirs[2] / "metrics.jsonl"
    metrics.write_text(re.sub(r', "eval/distinct_correct": [0-9.]+', "", metrics.read_text()))
    figure = reports.training_figure(reports.load_runs(run_dirs))
    distinct, rewards = texts(figure)
    assert set(distinct) == {"GRPO", "Poly-EPO", "step  (training prompts, 8 samples)"}
    assert {"GRPO", "Poly-EPO"} <= set(rewards)
    # The moving average of a constant is that constant, up to its ends.
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), 1.5)


def test_without_training_the_values_are_bars(run_dirs):
    (run_dirs[0] / "metrics.jsonl").unlink()
    (panel,) = texts(reports.training_figure(reports.load_runs(run_dirs[:1])))
    assert panel == ["4.00", "held-out prompts, 16 samples each"]


def test_labels_are_spread_and_stay_in_the_panel():
    np.testing.assert_allclose(plots._spread([50.0, 10.0, 11.0], 10, 100), [50, 5.5, 15.5])
    np.testing.assert_allclose(plots._spread([100.0, 99.0, 0.0], 10, 100), [100, 90, 0])
    rng = np.random.default_rng(0)
    heights = rng.uniform(0, 100, 8)
    placed = plots._spread(heights, 12, 100)
    assert placed.min() >= 0
    assert placed.max() <= 100
    assert np.diff(np.sort(placed)).min() > 12 - 1e-9
    np.testing.assert_array_equal(np.argsort(placed), np.argsort(heights))


def test_each_run_has_its_own_color(tmp_path):
    names = ["warm_start", "grpo", "poly_epo", "s1/poly_epo", "mine", "yours"]
    runs = reports.load_runs([make_run(tmp_path / name) for name in names])
    colors = [style["color"] for style in plots._styles(runs).values()]
    assert len(set(colors)) == len(names)


def test_the_command_writes_plots_and_a_page(run_dirs, tmp_path, capsys):
    out = tmp_path / "new" / "report"
    report.main([*map(str, run_dirs), "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == [
        *("comparison.png", "distinct_correct.png", "pass_at_k.png", "report.html")
    ]
    for name, width in (("comparison.png", 1800), ("distinct_correct.png", 1800), ("pass_at_k.png", 1120)):
        content = (out / name).read_bytes()
        assert content.startswith(PNG_SIGNATURE)
        assert struct.unpack(">I", content[16:20])[0] == width
        assert 10_000 < len(content) < 500_000
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import", page)
    assert "<td>Poly-EPO</td><td>1,200</td><td>50.0%</td>" in page
    printed = capsys.readouterr().out
    assert re.search(r"Poly-EPO +1,200 +50\.0% +87\.5% +100\.0% +50\.0% +13\.00 +6\.50", printed)
    assert "relative to GRPO" in printed


def test_the_same_runs_give_the_same_files(run_dirs, tmp_path):
    for name in ("a", "b"):
        report.main([*map(str, run_dirs), "--out", str(tmp_path / name)])
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_names_are_text_and_never_markup(tmp_path, capsys):
    directory = make_run(tmp_path / "[red]$x^{$<b>&", 2.0, **{"<script>alert(1)</script>": entry(1.0)})
    report.main([str(directory), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "[red]$x^{$&lt;b&gt;&amp;" in page
    assert "<script" not in page.lower()
    assert "<b>" not in page
    assert "[red]$x^{$<b>&" in capsys.readouterr().out


def exit_code(*arguments):
    with pytest.raises(SystemExit) as exit_info:
        run_command(report.main, list(map(str, arguments)))
    return exit_info.value.code


def test_bad_arguments_exit_with_2(run_dirs, tmp_path, capsys):
    assert exit_code(run_dirs[0]) == 2
    assert exit_code(run_dirs[0], "--out", tmp_path / "out", "--no-such-option") == 2
    capsys.readouterr()
    assert exit_code("--out", tmp_path / "out") == 2
    assert "at least one run directory" in capsys.readouterr().err
    assert exit_code(run_dirs[0], run_dirs[0], "--out", tmp_path / "out") == 2
    assert "given twice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_written(run_dirs, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert exit_code(*run_dirs, "--out", out) == 2
        assert f"--out {out}: cannot be written" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(InputError, match="No space left"):
        report._write_files(tmp_path, {"report.html": b"new"})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_directories_that_are_no_evaluated_runs(run_dirs, tmp_path):
    with pytest.raises(InputError, match="there is no such directory"):
        reports.load_runs([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: expected a run directory .* found none of them"):
        reports.load_runs([tmp_path / "empty"])
    (run_dirs[0] / "eval.json").unlink()
    with pytest.raises(InputError, match=r"python -m polyepo_jax\.evaluate --run-dir .*warm_start"):
        reports.load_runs(run_dirs)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", r"config\.json, line 1: not valid JSON"),
        ("config.json", "[]", r"config\.json, line 1: expected a JSON object, got \[\]"),
        ("eval.json", '{\n"a": 1,\n}', r"eval\.json, line [23]: not valid JSON"),
        ("eval.json", "{}", "expected checkpoint_step as int, got None"),
        ("eval.json", '{"checkpoint_step": 1, "num_samples": 4, "benchmarks": {}}', "at least one benchmark"),
        (
            "eval.json",
            '{"checkpoint_step": 1, "num_samples": 4, "benchmarks": {"x": 3}}',
            "num_prompts of benchmark 'x'",
        ),
        ("eval.json", b"\xff", r"eval\.json: cannot be read"),
        ("metrics.jsonl", '{"step": 1}\n\n{"step"\n', r"metrics\.jsonl, line 3: not valid JSON"),
        ("metrics.jsonl", '{"step": 1}\n{"x": 1}\n', r'metrics\.jsonl, line 2: expected an integer "step"'),
        ("metrics.jsonl", '{"step": 1, "x": NaN}\n', r"metrics\.jsonl, line 1: not valid JSON: NaN"),
    ],
)
def test_malformed_files(tmp_path, name, content, message):
    directory = make_run(tmp_path / "run")
    (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        reports.load_runs([directory])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("coverage", None, "expected a number as coverage of benchmark 'x', got None"),
        ("pass_at_k", {"one": 1}, "expected numbers by k as pass_at_k of benchmark 'x'"),
        ("majority_at_k", {}, "expected numbers by k as majority_at_k of benchmark 'x'"),
    ],
)
def test_malformed_benchmarks(tmp_path, key, value, message):
    directory = make_run(tmp_path / "run", x=entry(1.0) | {key: value})
    with pytest.raises(InputError, match=message):
        reports.load_runs([directory])


def test_reading_a_report_needs_no_accelerator_stack():
    code = (
        "import sys, polyepo_jax.report; print([m for m in ('jax', 'flax', 'matplotlib.pyplot') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
