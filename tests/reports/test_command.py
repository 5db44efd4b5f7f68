"""The command on synthetic run directories: what it writes, prints and refuses."""

import os
import re
import struct
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from polyepo_jax import report
from polyepo_jax.errors import InputError, run_command
from tests.reports.synthetic import demo, make_run

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def run_dirs(tmp_path):
    return demo(tmp_path, num_problems=6, m=8, steps=45)


def exit_code(*arguments):
    with pytest.raises(SystemExit) as exit_info:
        run_command(report.main, list(map(str, arguments)))
    return exit_info.value.code


def test_the_command_writes_a_page_with_its_figures_as_files(run_dirs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "72")
    out = tmp_path / "new" / "report"
    report.main([*map(str, run_dirs), "--out", str(out)])
    names = {path.stem for path in out.glob("*.png")}
    assert {path.name for path in out.iterdir()} == {"report.html"} | {
        f"{name}.{ending}" for name in names for ending in ("png", "svg")
    }
    assert {"comparison", "pass_at_k", "distinct_correct", "frontier", "branching", "step_time"} <= names
    page = (out / "report.html").read_text()
    assert page.count("<figure>") == len(names) - 1 >= 8  # the comparison is two of them in one file
    for name in names:
        content = (out / f"{name}.png").read_bytes()
        assert content.startswith(PNG_SIGNATURE)
        assert struct.unpack(">I", content[16:20])[0] == (1848 if name == "comparison" else 948)
        assert 5_000 < len(content) < 500_000
        assert ElementTree.fromstring((out / f"{name}.svg").read_bytes()).tag.endswith("svg")
    captured = capsys.readouterr()
    assert captured.err == ""
    assert re.search(r"Poly-EPO +45 +\d+\.\d% +\d+\.\d% +\d+\.\d%", captured.out)
    assert "relative to GRPO" in captured.out
    assert "\N{EN DASH}" not in captured.out  # no room for intervals
    assert f"wrote {out / 'report.html'}".replace("\n", "") in captured.out.replace("\n", "")


def test_a_wide_terminal_shows_intervals(run_dirs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    (run_dirs[1] / "metrics.jsonl").unlink()
    report.main([str(run_dirs[1]), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert re.search(r"GRPO +45 +(\d+\.\d)%", printed)
    assert re.search(r"^ +\d+\.\d\N{EN DASH}\d+\.\d", printed, re.MULTILINE)


def test_the_same_runs_give_the_same_files(run_dirs, tmp_path):
    (run_dirs[2] / "metrics.jsonl").unlink()
    for name in ("a", "b"):
        report.main([str(run_dirs[2]), "--out", str(tmp_path / name)])
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_names_are_text_and_never_markup(tmp_path, capsys):
    name = "[red]$x^{$<b>&\x1b[31m"
    directory = make_run(tmp_path / name, names=("<script>alert(1)</script>",), num_problems=3, m=4, steps=3)
    (directory / "metrics.jsonl").unlink()
    report.main([str(directory), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "report.html").read_text()
    angles = "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}", "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
    assert "[red]$x^{$&lt;b&gt;&amp;{}U+001B{}[31m".replace("{}", "%s") % angles in page
    assert "<script" not in page.lower()
    assert "<b>&" not in page
    printed = capsys.readouterr()
    assert "[red]$x^{$<b>&" in printed.out.replace("\n", "")
    assert "\x1b" not in printed.out + printed.err


@pytest.mark.parametrize("name", ["po\x01ly", os.fsdecode(b"p\xffq")])
def test_names_of_several_seeds_are_made_visible(tmp_path, capsys, name):
    changes = {"algorithm": "the same"}
    try:
        directories = [
            make_run(tmp_path / f"{name}-seed{i}", seed=i, num_problems=3, m=4, steps=3, changes=changes)
            for i in range(2)
        ]
    except OSError:
        pytest.skip("this file system takes no such names")
    out = tmp_path / f"out{name}"
    report.main([*map(str, directories), "--out", str(out)])
    page = (out / "report.html").read_text()
    before, number, after = ("po", "U+0001", "ly") if "\x01" in name else ("p", "U+DCFF", "q")
    angles = "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}", "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
    shown = f"{before}{angles[0]}{number}{angles[1]}{after}"
    assert f"<strong>{shown}</strong> (2 seeds)" in page
    assert not set("\x01\udcff") & set(page)
    for path in out.glob("*.svg"):
        assert ElementTree.fromstring(path.read_bytes()).tag.endswith("svg")
    printed = capsys.readouterr()
    assert shown in printed.out
    assert not set("\x01\udcff") & set(printed.out + printed.err)


def test_bad_arguments_exit_with_2(run_dirs, tmp_path, capsys):
    assert exit_code(run_dirs[0]) == 2
    assert exit_code(run_dirs[0], "--out", tmp_path / "out", "--no-such-option") == 2
    capsys.readouterr()
    assert exit_code("--out", tmp_path / "out") == 2
    assert "at least one run directory" in capsys.readouterr().err
    assert exit_code(run_dirs[0], run_dirs[0], "--out", tmp_path / "out") == 2
    assert "given twice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_with_nothing_to_show_exit_with_2(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "eval.json").write_text("{")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{}")
    for name, message in (
        ("absent", "expected a run directory (with config.json, metrics.jsonl, eval.json), there is no such directory"),
        ("empty", "found none of them"),
        ("broken", "eval.json: not valid JSON"),
        ("begun", "no metrics.jsonl"),
    ):
        assert exit_code(tmp_path / name, "--out", tmp_path / "out") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert not (tmp_path / "out").exists()


def test_what_is_damaged_is_said_on_stderr_and_on_the_page(tmp_path, capsys):
    whole = make_run(tmp_path / "whole", num_problems=3, m=4, steps=3)
    broken = make_run(tmp_path / "broken", num_problems=3, m=4, steps=3)
    (broken / "eval.json").write_text('{"checkpoint_step": 3, "num_sam')
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step"\n')
    report.main([*map(str, (whole, broken, tmp_path / "<absent>")), "--out", str(tmp_path / "out")])
    errors = capsys.readouterr().err
    page = (tmp_path / "out" / "report.html").read_text()
    for note in ("eval.json: not valid JSON", "metrics.jsonl, line 4: not valid JSON", "there is no such directory"):
        assert note in errors
        assert note in page
    assert "&lt;absent&gt;: expected a run directory" in page


def test_an_out_that_cannot_be_written(run_dirs, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (run_dirs[0] / "eval.json").unlink()  # fewer figures to draw
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert exit_code(run_dirs[0], "--out", out) == 2
        assert f"--out {out}: cannot be written" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(InputError, match="No space left"):
        report._write_files(tmp_path, {"report.html": b"new"})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_reading_a_report_needs_no_accelerator_stack():
    code = (
        "import sys, polyepo_jax.report; print([m for m in ('jax', 'flax', 'matplotlib.pyplot') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
