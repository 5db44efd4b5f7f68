"""Which runs are one method, what differs between configurations, and paired differences, by hand."""

import dataclasses
import json

import numpy as np
import pytest

from polyepo_jax.reports import load_runs, make_report, methods_of, report_html
from polyepo_jax.reports.comparisons import estimates_of, paired_differences
from polyepo_jax.reports.differences import setting_differences
from polyepo_jax.reports.estimates import Benchmark, Problems
from tests.reports.synthetic import make_run

NAME = "polynomial/held_out"


def methods(tmp_path, *runs):
    """Of (directory, seed, directory of the warm start, other changes) each."""
    directories = []
    for name, seed, init, changes in runs:
        algorithm = {"algorithm": {"advantage": "Poly-EPO"}}
        options = {"seed": seed, "init": init, "changes": algorithm | changes}
        directories.append(make_run(tmp_path / name, num_problems=3, m=4, steps=2, **options))
    return methods_of(load_runs(directories))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("grpo_s0", 0, "runs/base", {}), ("grpo_s1", 1, "runs/base", {})),
        (("seed0/grpo", 0, "runs/seed0/base", {}), ("seed1/grpo", 1, "runs/seed1/base", {})),
        (("p/grpo", 0, "runs/polynomial/base", {}), ("p-seed7/grpo", 7, "runs/polynomial-seed7/base", {})),
        (("grpo-3", 3, "runs/base_3", {}), ("grpo-04", 4, "runs/base_04", {})),
    ],
)
def test_runs_that_differ_in_their_seed_only_are_one_method(tmp_path, first, second):
    (method,) = methods(tmp_path, first, second)
    assert (method.label, method.kind, method.num_seeds) == ("GRPO", "grpo", 2)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("grpo", 0, "runs/base", {}), ("b/grpo", 0, "runs/base", {})),  # the same seed twice
        (("grpo", 0, "runs/base", {}), ("b/grpo", 1, "runs/other", {})),
        (("grpo", 0, "runs/base_2l", {}), ("b/grpo", 1, "runs/base_4l", {})),
        (("grpo", 0, "runs/base", {}), ("b/grpo", 1, "runs/base", {"learning_rate": 1e-3})),
        (("grpo", 0, "runs/base", {}), ("b/grpo", 1, "runs/base", {"task": {"split_seed": 1}})),
    ],
)
def test_other_differences_keep_runs_apart(tmp_path, first, second):
    assert [method.num_seeds for method in methods(tmp_path, first, second)] == [1, 1]


def test_runs_without_a_configuration_are_never_seeds_of_one(tmp_path):
    directories = [make_run(tmp_path / name, num_problems=3, m=4, steps=2, seed=i) for i, name in enumerate("ab")]
    for directory in directories:
        (directory / "config.json").unlink()
    assert [method.label for method in methods_of(load_runs(directories))] == ["a", "b"]


@pytest.mark.parametrize("seed", [None, "1", True, 1.5])
def test_a_run_without_a_seed_is_never_one_of_several(tmp_path, seed):
    directories = [
        make_run(tmp_path / f"{name}/grpo", num_problems=3, m=4, steps=2, seed=i) for i, name in enumerate("abc")
    ]
    config = json.loads((directories[0] / "config.json").read_text())
    del config["seed"]
    (directories[0] / "config.json").write_text(json.dumps(config | ({} if seed is None else {"seed": seed})))
    runs = load_runs(directories)
    assert [method.num_seeds for method in methods_of(runs)] == [1, 2]
    assert "seed 2" in report_html(make_report(runs, methods_of(runs)))


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint_step": 1},
        {"checkpoint_step": None},
        {"sampling": {"temperature": 0.5, "top_k": 0, "top_p": 1.0, "seed": 0}},
        {"sampling": {}},
    ],
)
def test_seeds_that_were_evaluated_in_another_way_stay_apart(tmp_path, changes):
    runs = [("a/grpo", 0, "runs/base", {}), ("b/grpo", 1, "runs/base", {})]
    assert [method.num_seeds for method in methods(tmp_path, *runs)] == [2]
    directories = [tmp_path / name for name, *_ in runs]
    change_evaluation(directories[1], sampling={"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 7})
    assert [method.num_seeds for method in methods_of(load_runs(directories))] == [2]
    change_evaluation(directories[1], **changes)
    assert [method.num_seeds for method in methods_of(load_runs(directories))] == [1, 1]


def change_evaluation(directory, **changes):
    path = directory / "eval.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_methods_have_labels_of_their_own_whatever_their_directories_are_called(tmp_path):
    changes = [{"learning_rate": i} for i in range(3)]
    found = methods(
        tmp_path,
        *(("x-0", 0, "b", changes[0]), ("x-1", 1, "b", changes[0])),
        *(("x-5", 5, "b", changes[1]), ("x-6", 6, "b", changes[1])),
        *(("x-0-s2", 2, "b", changes[2]), ("x-0-s3", 3, "b", changes[2])),
    )
    assert [method.label for method in found] == ["x-0", "x-5", "x-0-s2"]


def test_methods_stay_in_the_order_of_their_first_runs(tmp_path):
    found = methods(
        tmp_path,
        ("poly_epo_s0", 0, "runs/base", {}),
        ("warm_start", 0, "runs/base", {"max_steps": 1}),
        ("poly_epo_s1", 1, "runs/base", {}),
    )
    assert [(method.label, method.num_seeds) for method in found] == [("Poly-EPO", 2), ("base (warm start)", 1)]


def test_settings_that_differ_by_dotted_name(tmp_path):
    directories = [tmp_path / name for name in "abc"]
    configs = [
        {"lr": 1e-4, "loss": {"beta": 0.0, "kind": None}, "names": [1, 2], "same": True},
        {"lr": 3e-4, "loss": {"beta": 0.0, "kind": "kl"}, "names": [1, 2], "same": True, "extra": "é<b>" + "x" * 500},
        None,
    ]
    for directory, config in zip(directories, configs, strict=True):
        make_run(directory, num_problems=2, m=2, steps=1)
        path = directory / "config.json"
        path.unlink() if config is None else path.write_text(json.dumps(config))
    differences = dict(setting_differences(load_runs(directories)))
    assert list(differences) == ["lr", "loss.kind", "extra"]
    assert differences["lr"] == ("0.0001", "0.0003", "-")
    assert differences["loss.kind"] == ("null", "kl", "-")
    assert differences["extra"][0] == "-"
    assert differences["extra"][1].startswith("é<b>x")
    assert len(differences["extra"][1]) == 120


def method_of(label, *values_of_runs, ids=None, prompts=None, m=8):
    """A method of runs with these numbers of each problem as pass@1 and distinct answers."""
    (method,) = methods_of(load_runs([BASE["directory"]]))
    runs = []
    for values in values_of_runs:
        own = tuple(range(len(values))) if ids is None else ids
        columns = {"pass_at_k/1": np.array(values, float), "distinct": np.array(values, float)}
        problems = Problems(own, prompts or tuple(f"p{i}" for i in own), columns)
        means = {name: float(np.nanmean(column)) for name, column in columns.items()}
        benchmark = Benchmark(len(own), m, m // 2, means, {"distinct": (-1.0, 9.0)}, {}, problems)
        runs.append(dataclasses.replace(method.runs[0], benchmarks={NAME: benchmark}))
    return dataclasses.replace(method, label=label, runs=tuple(runs))


BASE = {}


@pytest.fixture(autouse=True)
def any_run(tmp_path):
    BASE["directory"] = make_run(tmp_path / "any", num_problems=2, m=2, steps=1)


def test_estimates_are_of_one_run_or_mean_and_range_of_several():
    alone = estimates_of(method_of("a", [0, 1, 1, 2]), NAME)
    assert dataclasses.astuple(alone["distinct"]) == (1.0, -1.0, 9.0)
    assert np.isnan(alone["pass_at_k/1"].low)
    several = estimates_of(method_of("a", [0, 1], [1, 1], [3, 2]), NAME)
    assert dataclasses.astuple(several["distinct"]) == (pytest.approx((0.5 + 1 + 2.5) / 3), 0.5, 2.5)


def test_paired_differences_cancel_what_the_problems_have_in_common():
    hard = np.linspace(0, 100, 30)
    differences = paired_differences(method_of("a", hard + 0.25), method_of("b", hard), NAME)
    assert differences.num_problems == 30
    np.testing.assert_allclose(dataclasses.astuple(differences.estimates["distinct"]), [0.25] * 3, atol=1e-12)


def test_problems_are_paired_by_id_and_prompt_whatever_their_order():
    ours = method_of("a", [1, 2, 3, 4], ids=(7, 5, 9, 1), prompts=("x", "y", "z", "w"))
    theirs = method_of("b", [10, 20, 30], ids=(5, 7, 9), prompts=("y", "x", "another"))
    differences = paired_differences(ours, theirs, NAME)
    assert differences.num_problems == 2
    assert differences.estimates["distinct"].value == ((1 - 20) + (2 - 10)) / 2
    assert paired_differences(ours, method_of("b", [1], ids=(9,)), NAME) is None


def test_seeds_are_averaged_on_each_problem_before_pairing():
    ours = method_of("a", [0, 2, 4], [2, 2, 0])
    differences = paired_differences(ours, method_of("b", [1, 1, 1], [1, 3, 1]), NAME)
    # Means over seeds are [1, 2, 2] and [1, 2, 1].
    assert differences.estimates["distinct"].value == pytest.approx(1 / 3)


def test_undefined_numbers_leave_their_problem_out():
    differences = paired_differences(method_of("a", [1, np.nan, 5]), method_of("b", [0, 0, np.nan]), NAME)
    assert differences.estimates["distinct"].value == 1.0


def test_counts_among_other_numbers_of_samples_are_not_compared():
    differences = paired_differences(method_of("a", [1, 2], m=8), method_of("b", [1, 2], m=16), NAME)
    assert set(differences.estimates) == {"pass_at_k/1"}
