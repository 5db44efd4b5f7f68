"""`samples` as a user calls it."""

import gzip
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from polyepo_jax import samples
from polyepo_jax.errors import InputError

ROOT = Path(__file__).parents[2]


def row(step, sample, **changes):
    return {
        "step": step,
        "id": 10 * step,
        "prompt": f"prompt of {step}",
        "sample": sample,
        "response": f"response {sample}\x7f\ud800",
        "reward": float(sample % 2),
        "cluster": sample // 2,
        "advantage": sample - 1.5,
        "length": 3,
        "truncated": False,
        **changes,
    }


@pytest.fixture
def directory(tmp_path):
    rows = [row(step, sample) for step in (1, 2, 3) for sample in range(4)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 4, "pro')
    evaluated = [row(1, sample, benchmark="aime") for sample in range(3)]
    lines = "".join(
        json.dumps({k: v for k, v in r.items() if k not in ("step", "advantage")}) + "\n" for r in evaluated
    )
    (tmp_path / "eval_samples.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return tmp_path


def json_of(capsys, *arguments):
    samples.main([*map(str, arguments), "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), [(step, sample) for step in (1, 2, 3) for sample in range(4)]),
        (("--step", "last"), [(3, sample) for sample in range(4)]),
        (("--step", "2:", "--correct"), [(2, 1), (2, 3), (3, 1), (3, 3)]),
        (("--prompt", "20", "--incorrect"), [(2, 0), (2, 2)]),
        (("--prompt", "of 1", "--cluster", "1", "--limit", "1"), [(1, 2)]),
        (("--advantage", "negative", "--step", "last"), [(3, 0), (3, 1)]),
        (("--cluster", "-1"), []),
    ],
)
def test_json_has_the_rows_that_match(directory, capsys, arguments, expected):
    found = json_of(capsys, directory, *arguments)
    assert found == [row(*place) for place in expected]


def test_evaluations_are_read_compressed(directory, capsys):
    found = json_of(capsys, directory, "--eval", "--benchmark", "aime", "--correct")
    assert [(r["benchmark"], r["sample"]) for r in found] == [("aime", 1)]


def test_the_validation_split_has_files_of_its_own(directory, capsys):
    with pytest.raises(InputError, match=r"no eval_validation_samples.jsonl .* --split validation` first"):
        samples.main([str(directory), "--eval", "--split", "validation"])
    (directory / "eval_validation_samples.jsonl").write_text(json.dumps(row(1, 7, benchmark="held_out")) + "\n")
    assert [r["sample"] for r in json_of(capsys, directory, "--eval", "--split", "validation")] == [7]


def test_the_header_counts(directory, capsys):
    samples.main([str(directory), "--step", "last", "--limit", "3"])
    shown = capsys.readouterr().out
    assert "4 of 12 generations match, the first 3 of them:" in " ".join(shown.split())
    assert shown.count("step 3, prompt 30") == 1
    assert [f"#{n} " in shown for n in range(4)] == [True, True, True, False]
    assert "response 2\\x7f\\ud800" in shown
    (directory / "samples.jsonl").write_text("")
    samples.main([str(directory), "--step", "last"])
    assert "0 of 0 generations match" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/nowhere"], "nowhere: expected a run directory, but there is no such directory"),
        (["{}/samples.jsonl"], "it is a file"),
        (["{}/empty"], "empty has no samples.jsonl"),
        (["{}/empty", "--eval"], "evaluate --run-dir .*/empty` first"),
        (["file://{}/empty"], "file:///.*/empty has no samples.jsonl"),
        (["{}", "--step", "3:1"], "ends before it begins"),
        (["{}", "--correct", "--incorrect"], "exclude each other"),
        (["{}", "--eval", "--step", "1"], "--step and --advantage are of training"),
        (["{}", "--benchmark", "aime"], "give --eval, too"),
        (["{}", "--split", "validation"], "give --eval, too"),
        (["{}", "--limit", "0"], "--limit must be at least 1"),
        (["{}", "--advantage", "high"], "--advantage"),
    ],
)
def test_what_makes_no_sense_is_refused(directory, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setenv("POLYEPO_CACHE", str(tmp_path / "cache"))
    (directory / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        samples.main([argument.format(directory) for argument in arguments])


def start(directory, *arguments, pager="", **streams):
    return subprocess.Popen(
        [sys.executable, "-m", "polyepo_jax.samples", str(directory), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PAGER": pager, "TERM": "xterm"},
        stderr=subprocess.PIPE,
        text=True,
        **streams,
    )


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_reader_that_goes_away_ends_it_quietly(directory, arguments):
    lines = json.dumps(row(1, 0)) + "\n"
    (directory / "samples.jsonl").write_text(lines * 5000)  # more than a pipe holds
    with start(directory, *arguments, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


@pytest.mark.parametrize("pager", ["tee {}", "true"])
def test_a_terminal_gets_a_pager(directory, pager):
    ours, theirs = pty.openpty()
    with start(directory, pager=pager.format(directory / "paged"), stdout=theirs) as process:
        os.close(theirs)
        assert process.stderr.read() == ""
        assert process.wait() == 0
    os.close(ours)
    if pager != "true":
        shown = (directory / "paged").read_text()
        assert "12 of 12 generations match" in " ".join(shown.split())
        assert "\x1b" not in shown
