"""The study: its list of runs, what is kept of a run, and pages that say what the files hold."""

import dataclasses
import itertools
import json
import os
import re
import sys

import numpy as np
import pytest

from benchmarks.study import __main__ as study
from benchmarks.study import page, results
from benchmarks.study.__main__ import make_all
from benchmarks.study.runs import BASE, STEPS, Run, all_runs, quick_runs
from polyepo_jax.config import Config, SFTConfig, load
from polyepo_jax.config.files import override
from polyepo_jax.evaluation import summarize
from polyepo_jax.evaluation.problems import describe
from polyepo_jax.sets import pass_at_k
from polyepo_jax.types import DEGENERATE

RUN = Run("polynomial", "poly_epo", 3, "configs/polynomial/poly_epo.py", ("--num_generations", "16"))
M = 8


def test_every_run_is_a_config_of_its_own_place():
    runs = all_runs()
    assert len({run.directory(page.ROOT) for run in runs}) == len(runs)
    bases = {(run.task, run.seed) for run in runs if run.method == BASE}
    assert {(run.task, run.seed) for run in runs} == bases
    assert set(quick_runs()) <= set(runs)
    for config, overrides in {(run.config, run.overrides) for run in runs}:
        loaded = load(page.ROOT / config, SFTConfig if "warm_start" in config else Config)
        override(loaded, list(overrides), "train")


def write_run(directory, rng, num_problems=5):
    """An evaluated run directory; returns its rewards [P, M], clusters and hidden marks."""
    directory.mkdir(parents=True)
    rewards, clusters = rng.integers(0, 2, (num_problems, M)), rng.integers(DEGENERATE, 4, (num_problems, M))
    hidden = rewards.astype(bool) & (rng.random((num_problems, M)) < 0.5)
    described = [describe(*problem[:2], None, problem[2]) for problem in zip(rewards, clusters, hidden, strict=True)]
    summary = summarize(described) | {"mean_length": 7.25}
    (directory / "eval.json").write_text(
        json.dumps({"checkpoint_step": 40, "num_samples": M, "benchmarks": {"polynomial/held_out": summary}})
    )
    (directory / "eval_problems.jsonl").write_text("".join(json.dumps(d) + "\n" for d in described))
    steps = [{"step": step, "time/step_s": 0.5, "rewards/mean": step / 100} for step in range(1, 41)]
    steps[19] |= {"eval/pass_at_1": 0.5, "eval/distinct_correct": 3.0, "eval/distinct": 4.0, "eval/coverage": 1.0}
    (directory / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return rewards, clusters, hidden


def test_what_is_kept_of_a_run_gives_all_numbers_again(tmp_path):
    rewards, clusters, hidden = write_run(tmp_path / "run", np.random.default_rng(0))
    results.save(results.read_run(tmp_path / "run", RUN, "test", 12.34), tmp_path / "results")
    [result] = results.load(tmp_path / "results")
    assert (result.task, result.method, result.seed, result.overrides) == (RUN.task, RUN.method, 3, RUN.overrides)
    assert (result.steps, result.seconds, result.evaluation_seconds, result.mean_length) == (40, 20, 12.3, 7.25)
    assert result.train_pass_at_1 == pytest.approx(np.mean([step / 100 for step in range(21, 41)]), abs=1e-4)
    assert result.curves == {
        "step": [20], "pass_at_1": [0.5], "distinct_correct": [3.0], "distinct": [4.0], "coverage": [1.0]
    }  # fmt: skip
    for k in (1, 3, M):
        np.testing.assert_allclose(result.problems(f"pass_at_k/{k}"), pass_at_k(M, rewards.sum(1), k), atol=1e-6)
        np.testing.assert_allclose(result.problems(f"hidden_at_k/{k}"), pass_at_k(M, hidden.sum(1), k), atol=1e-6)
    distinct = [len({*of_problem} - {DEGENERATE}) for of_problem in np.where(rewards, clusters, DEGENERATE).tolist()]
    np.testing.assert_array_equal(result.problems("distinct_correct"), distinct)


def test_estimates_average_seeds_on_each_problem_and_pair_differences(tmp_path):
    found = []
    for seed in (1, 2, 3, 4):
        write_run(tmp_path / str(seed), np.random.default_rng(seed), num_problems=30)
        run = dataclasses.replace(RUN, seed=seed if seed < 3 else seed - 2)
        found.append(results.read_run(tmp_path / str(seed), run, "test", 1))
    ours, others = found[:2], found[2:]
    first = [np.array(result.num_correct) / M for result in found]
    both = results.estimate(ours, "pass_at_k/1")
    assert both.seeds == pytest.approx([first[0].mean(), first[1].mean()])
    assert both.value == pytest.approx(np.mean(first[:2]))
    assert both.low < both.value < both.high
    difference = results.estimate(ours, "pass_at_k/1", others)
    assert difference.value == pytest.approx(np.mean(first[:2]) - np.mean(first[2:]))
    nothing = results.estimate(ours, "pass_at_k/1", ours)
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    with pytest.raises(ValueError, match=r"the same seeds, got \[1, 2\] and \[1\]"):
        results.estimate(ours, "pass_at_k/1", others[:1])


@dataclasses.dataclass(frozen=True)
class Pretended(Run):
    """A run that writes what it is told to, or fails."""

    def training(self, runs):
        copy = "import shutil, sys; shutil.copytree(*sys.argv[1:]); open(sys.argv[2] + '/ran', 'a').write('.')"
        source = runs / ("missing" if self.method == "pass_at_n" else "made")
        return ["-c", copy, str(source), str(self.directory(runs))]

    def evaluation(self, runs, split):
        return ["-c", ""]


def test_what_is_done_is_skipped_and_what_fails_is_tried_again(tmp_path, capsys):
    write_run(tmp_path / "made", np.random.default_rng(0))
    methods = ("poly_epo", BASE, "pass_at_n")
    runs = [Pretended("polynomial", method, 1, "config") for method in methods]
    for _ in range(2):
        failed = make_all(runs, tmp_path, tmp_path / "results")
        assert [run.method for run in failed] == ["pass_at_n"]
    said = capsys.readouterr()
    assert "3 runs, 2 of them done before" in said.out
    assert said.err.count("polynomial, pass_at_n, seed 1: FAILED, see") == 2
    assert "missing" in (tmp_path / "polynomial" / "pass_at_n" / "seed1.log").read_text()
    for method in methods[:2]:
        assert (tmp_path / "polynomial" / method / "seed1" / "ran").read_text() == "."
    assert {result.method for result in results.load(tmp_path / "results")} == {"poly_epo", BASE}


def test_who_interrupts_does_not_begin_the_others(tmp_path, monkeypatch):
    write_run(tmp_path / "made", np.random.default_rng(0))
    runs = [Pretended("polynomial", "poly_epo", seed, "config") for seed in range(6)]
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {core}, raising=False)

    def interrupted(text, **_):
        if text.startswith("[1/6]"):
            raise KeyboardInterrupt

    monkeypatch.setattr(study, "print", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        make_all(runs, tmp_path, tmp_path / "results")
    assert 1 <= len(results.load(tmp_path / "results")) < 6


def test_steps_are_counted_from_the_first_run_on(tmp_path):
    write_run(tmp_path / "run", np.random.default_rng(0))
    settled = next(run for run in all_runs() if run.method == "settled" and run.task == "polynomial")
    result = results.read_run(tmp_path / "run", settled, "test", 1)
    assert (result.steps, result.curves["step"]) == (STEPS["polynomial"] + 40, [STEPS["polynomial"] + 20])


def test_tables_by_hand(tmp_path):
    write_run(tmp_path / "run", np.random.default_rng(0))
    result = results.read_run(tmp_path / "run", RUN, "test", 7.4)

    def of(method, **fields):
        return dataclasses.replace(result, method=method, **fields)

    def curves(pass_at_1, distinct_correct):
        return {"step": [20.0, 40.0], "pass_at_1": pass_at_1, "distinct_correct": distinct_correct}

    grpo = of("grpo, longer", curves=curves([0.5, 0.75], [4.0, 2.0]))
    poly_epo = of("poly_epo, longer", curves=curves([0.4, 0.6], [6.0, 7.0]))
    found = [poly_epo, grpo, result]
    rows = page.along_training(found, RUN.task, ", longer").splitlines()[2:]
    assert rows == ["| 20 | 50.0, 40.0 | 4.0, 6.0 | 1.5 |", "| 40 | 75.0, 60.0 | 2.0, 7.0 | 3.5 |"]
    assert page.along_training(found[1:], RUN.task, ", longer") == ""

    # Samples have 10 tokens: 25 tokens are two of them, and no more than all eight can be had.
    both = [
        of("base", mean_length=10.0, num_correct=(4, 0), evaluation_seconds=7.4),
        of("base", mean_length=10.0, num_correct=(4, 0), evaluation_seconds=None, seed=4),
    ]
    [row] = page.budget_table({"base": both}, [25, 1000]).splitlines()[2:]
    two_of_eight = (
        100 * (1 - (4 * 3) / (8 * 7)) / 2
    )  # none of two among the four that are right, and a problem with none
    assert row == f"| base | 10.0 | 7 s | {two_of_eight:.1f} | 50.0 |"


def test_the_page_says_what_the_files_hold(tmp_path):
    """Written again from docs/results, it is what stands there."""
    page.write(results.load(page.ROOT / "docs" / "results"), tmp_path)
    for name in ("results.md", "results/summary.json"):
        assert (tmp_path / name).read_text() == (page.ROOT / "docs" / name).read_text(), (
            f"docs/{name} is not what docs/results gives: run {sys.executable} -m benchmarks.study.page"
        )


def table_rows(text, title):
    """The first table below a title, by the first word of its rows: numbers of its cells, the first of each."""
    lines = iter(text[text.index(title) :].splitlines())
    rows = list(
        itertools.takewhile(lambda line: line.startswith("|"), itertools.dropwhile(lambda x: x[:1] != "|", lines))
    )
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return cells[0], {cell[0].split()[0]: [re.findall(r"[\d.]+", text)[:1] for text in cell[1:]] for cell in cells[2:]}


@pytest.mark.parametrize(
    ("in_readme", "title", "columns"),
    [
        ("### Over seeds", "\n## Polynomials", ["pass@1", "distinct correct of 64"]),
        ("**Where coverage decides.**", "\n## Hard polynomials", ["pass@1", "pass@8", "pass@64", "pass@128"]),
    ],
)
def test_the_readme_shows_what_the_page_says(in_readme, title, columns):
    _, shown = table_rows((page.ROOT / "README.md").read_text(), in_readme)
    heading, rows = table_rows((page.ROOT / "docs" / "results.md").read_text(), title)
    places = [heading.index(column) - 1 for column in columns]
    assert len(shown) == 4
    for method, numbers in shown.items():
        assert numbers[: len(columns)] == [rows[method][place] for place in places]
