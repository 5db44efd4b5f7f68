"""`evaluate`: what it writes, and that one which was interrupted ends as if it had not been."""

import collections
import dataclasses
import gzip
import json

import numpy as np
import pytest

from polyepo_jax import evaluate
from polyepo_jax.errors import InputError, RunError, run_command
from polyepo_jax.evaluation import checksum, describe, results, sampling, unfinished
from polyepo_jax.train import train
from polyepo_jax.training import data
from tests.tiny import EasyPolynomial, rl_config

FILES = ("eval.json", "eval_problems.jsonl", "eval_samples.jsonl")
NAME = "polynomial/held_out"


@dataclasses.dataclass(frozen=True)
class WithRequirement(EasyPolynomial):
    """Half of the problems ask for something that training knows nothing of."""

    def meets_hidden_requirement(self, problem, response):
        assert self.verify(problem, response) > 0, "asked of correct responses alone"
        return problem.id % 2 == 0


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    train(rl_config(task=WithRequirement(), max_steps=1), directory, "again")
    return directory


@pytest.fixture(scope="module")
def evaluated(run_dir):
    """Bytes of the files of an evaluation that nothing disturbed."""
    evaluate.main(["--run-dir", str(run_dir)])
    return contents(run_dir)


def contents(directory):
    return {name: (directory / name).read_bytes() for name in FILES}


def lines(content):
    return [json.loads(line) for line in content.decode().splitlines()]


def test_every_generation_is_written_with_its_grade(evaluated, run_dir):
    rows, task = lines(evaluated["eval_samples.jsonl"]), WithRequirement()
    problems = {problem.id: problem for problem in task.problems("test")[:8]}
    assert [(row["id"], row["sample"]) for row in rows] == [(i, m) for i in problems for m in range(4)]
    for row in rows:
        assert list(row) == [
            *("benchmark", "id", "prompt", "sample", "response", "reward", "cluster", "length", "truncated")
        ]
        assert (row["benchmark"], row["prompt"]) == (NAME, problems[row["id"]].prompt)
        assert row["reward"] == (0 if row["truncated"] else task.verify(problems[row["id"]], row["response"]))
        assert row["cluster"] == ord(row["response"][0])
        assert len(row["response"]) <= row["length"] <= 8  # the padding token is no character
        assert row["truncated"] == (not row["response"].endswith("$"))
    assert not (run_dir / "eval_unfinished").exists()
    assert sorted(path.name for path in run_dir.glob("*eval*")) == sorted(FILES)


def test_problems_and_benchmarks_are_described(evaluated):
    rows, problems = (lines(evaluated[name]) for name in ("eval_samples.jsonl", "eval_problems.jsonl"))
    by_id = collections.defaultdict(list)
    for row in rows:
        by_id[row["id"]].append(row)
    compared = []
    for problem in problems:
        own = by_id[problem["id"]]
        hidden = [row["reward"] > 0 and row["id"] % 2 == 0 for row in own]
        columns = ([row[name] for row in own] for name in ("reward", "cluster", "truncated"))
        assert describe(*columns, hidden).items() <= problem.items()
        assert problem["mean_length"] == np.mean([row["length"] for row in own])
        if all(len(row["response"]) == row["length"] for row in own):  # characters are tokens
            prefixes = {str(t): len({row["response"][:t] for row in own}) for t in (1, 2, 4, 8)}
            assert problem["branching"] == prefixes
            compared.append(problem["id"])
    assert len(compared) > 1
    result = json.loads(evaluated["eval.json"])
    assert (result["checkpoint_step"], result["num_samples"], result["high_variance_above_k"]) == (1, 4, 2)
    assert result["sampling"] == {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}
    summary = result["benchmarks"][NAME]
    for name in ("coverage", "distinct_correct", "first_divergence", "mean_length"):
        values = [problem[name] for problem in problems if problem[name] is not None]
        assert summary[name] == pytest.approx(np.mean(values))
    for k in ("1", "4"):
        assert summary["hidden_at_k"][k] == pytest.approx(np.mean([p["hidden_at_k"][k] for p in problems]))
        low, high = summary["intervals"]["pass_at_k"][k]
        assert low <= summary["pass_at_k"][k] <= high


def killed_after(monkeypatch, count, error):
    """The next evaluation ends by `error` once so many problems were sampled, or kept from before."""
    real = unfinished.Unfinished.add

    def add(self, *arguments):
        real(self, *arguments)
        if len((self._folder / "0.jsonl").read_text().splitlines()) >= count:
            raise error

    monkeypatch.setattr(unfinished.Unfinished, "add", add)


def test_an_interrupted_evaluation_goes_on(evaluated, run_dir, monkeypatch, capsys):
    sampled = []
    real = sampling._sampled
    monkeypatch.setattr(sampling, "_sampled", lambda rows, *rest: (sampled.extend(rows), real(rows, *rest))[1])
    arguments = ["--run-dir", str(run_dir), "--max-rows", "4"]
    with monkeypatch.context() as patch:
        killed_after(patch, 3, KeyboardInterrupt())
        with pytest.raises(SystemExit) as stop:
            run_command(evaluate.main, arguments)
    assert stop.value.code == 130
    assert "the same command goes on with the problems that were sampled" in capsys.readouterr().err
    assert contents(run_dir) == evaluated, "what was there stays until there is something new"
    (kept,) = (run_dir / "eval_unfinished").glob("*/0.jsonl")
    with kept.open("a") as file:
        file.write('{"benchmark": "polynomial/held_out", "row": 5, "respo')  # killed in the midst of a line
    kept.rename(kept.with_name("7.jsonl"))  # by other processes
    kept.with_name("7.lock").touch()
    before, sampled[:] = set(sampled[:3]), []
    evaluate.main(arguments)
    assert "3 of 8 problems were sampled before, going on" in capsys.readouterr().err
    assert sorted(sampled) == sorted(set(range(8)) - before)
    assert contents(run_dir) == evaluated
    assert not (run_dir / "eval_unfinished").exists()


def test_evaluations_leave_each_other_s_samples_alone(evaluated, run_dir, monkeypatch, capsys):
    other = ["--run-dir", str(run_dir), "--seed", "1"]
    with monkeypatch.context() as patch:
        killed_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            evaluate.main(other)
    evaluate.main(["--run-dir", str(run_dir)])
    said = capsys.readouterr().err
    assert "eval_unfinished holds samples of other evaluations, unfinished: left alone" in said
    assert "going on" not in said
    assert contents(run_dir) == evaluated
    evaluate.main(other)
    assert "2 of 8 problems were sampled before, going on" in capsys.readouterr().err
    assert json.loads((run_dir / "eval.json").read_text())["sampling"]["seed"] == 1
    assert not (run_dir / "eval_unfinished").exists()


def test_the_same_evaluation_twice_at_a_time_is_refused(evaluated, run_dir, monkeypatch):
    real = unfinished.Unfinished.add

    def add(self, *arguments):
        with pytest.raises(InputError, match="the same evaluation is under way"):
            evaluate.main(["--run-dir", str(run_dir)])
        monkeypatch.setattr(unfinished.Unfinished, "add", real)
        real(self, *arguments)

    monkeypatch.setattr(unfinished.Unfinished, "add", add)
    evaluate.main(["--run-dir", str(run_dir)])
    assert contents(run_dir) == evaluated


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_lost_where_a_file_cannot_be_written(evaluated, run_dir, monkeypatch, capsys, name):
    """A directory in a file's place stands for all that can be wrong with it."""
    for file in FILES:
        (run_dir / file).unlink()
    (run_dir / name).mkdir()
    with pytest.raises(RunError, match=r"cannot be written .*: make room or restore access, then go on"):
        evaluate.main(["--run-dir", str(run_dir)])
    assert not (run_dir / "eval.json").is_file()
    assert list(run_dir.glob("*.tmp")) == []
    (run_dir / name).rmdir()
    monkeypatch.setattr(sampling, "Rollout", None)  # nothing is sampled again
    evaluate.main(["--run-dir", str(run_dir)])
    assert "8 of 8 problems were sampled before" in capsys.readouterr().err
    assert contents(run_dir) == evaluated


def test_a_full_disk_while_sampling(evaluated, run_dir, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(
            unfinished.Unfinished, "_write", lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space"))
        )
        with pytest.raises(RunError, match=r"cannot be written \(No space\)"):
            evaluate.main(["--run-dir", str(run_dir)])
    evaluate.main(["--run-dir", str(run_dir)])
    assert contents(run_dir) == evaluated


def test_large_files_are_compressed_and_take_the_place_of_plain_ones(evaluated, run_dir, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(results, "_LARGE", 1)
        evaluate.main(["--run-dir", str(run_dir)])
    assert not (run_dir / "eval_samples.jsonl").exists()
    with gzip.open(run_dir / "eval_samples.jsonl.gz") as file:
        assert file.read() == evaluated["eval_samples.jsonl"]
    evaluate.main(["--run-dir", str(run_dir)])
    assert not (run_dir / "eval_samples.jsonl.gz").exists()
    assert contents(run_dir) == evaluated


@dataclasses.dataclass(frozen=True)
class SometimesLost(EasyPolynomial):
    """A verifier that fails on every third held-out problem."""

    def verify(self, problem, response):
        if problem.id % 3 == 0:
            raise OSError("verifier lost")
        return super().verify(problem, response)


def test_what_could_not_be_graded_is_null_and_left_out(tmp_path, capsys):
    train(rl_config(task=SometimesLost(), max_steps=1), tmp_path, "again")
    evaluate.main(["--run-dir", str(tmp_path)])
    lost = [problem.id for problem in SometimesLost().problems("test")[:8] if problem.id % 3 == 0]
    assert lost
    rows, problems = (lines((tmp_path / name).read_bytes()) for name in ("eval_samples.jsonl", "eval_problems.jsonl"))
    # A truncated response has reward 0 and needs no verifier.
    failed = {row["id"] for row in rows if row["reward"] is None}
    assert failed <= set(lost)
    assert all(row["cluster"] is None for row in rows if row["reward"] is None)
    assert {row["id"] for row in rows} == {problem.id for problem in SometimesLost().problems("test")[:8]}
    assert {problem["id"] for problem in problems} == {row["id"] for row in rows} - failed
    assert f"{len(failed)} problems are left out" in capsys.readouterr().err
    entry = json.loads((tmp_path / "eval.json").read_text())["benchmarks"][NAME]
    assert (entry["num_prompts"], entry["num_failed"]) == (8 - len(failed), len(failed))


@dataclasses.dataclass(frozen=True)
class BrokenRequirement(EasyPolynomial):
    """Its requirement has a bug that half of the problems show."""

    def meets_hidden_requirement(self, problem, response):
        return {0: True}[problem.id % 2]


def test_a_requirement_with_a_bug_costs_its_number_alone(tmp_path, capsys):
    """Training, which does not ask it, goes on."""
    train(rl_config(task=BrokenRequirement(), max_steps=2, eval_interval_steps=1), tmp_path, "again")
    evaluate.main(["--run-dir", str(tmp_path)])
    entry = json.loads((tmp_path / "eval.json").read_text())["benchmarks"][NAME]
    assert entry["num_prompts"] == 8
    assert "hidden_at_k" not in entry
    assert "first: meets_hidden_requirement: KeyError: 1" in capsys.readouterr().err


def test_a_checksum_sees_what_changes_and_where():
    params = {"a": np.arange(1, 7, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}
    changed = [
        {},
        {"a": params["a"][::-1].copy()},
        {"a": -params["a"]},
        {"a": params["a"] * np.array([[-1, 1, 1], [1, -1, 1]], np.float32)},
        {"b": np.array([1, 1, 1, 1.001], np.float16)},
        {"b": -params["b"]},
    ]
    assert len({checksum(params | change) for change in changed}) == len(changed)
    assert checksum({name: value.copy() for name, value in params.items()}) == checksum(params)


def test_prompts_are_known_by_their_tokens(monkeypatch):
    """A chat template that changes makes other prompts of the same problems."""
    task = EasyPolynomial()
    problems, tokenizer = task.problems("test")[:4], task.tokenizer
    before = data.tokens_fingerprint(problems, tokenizer)
    assert data.tokens_fingerprint(problems, tokenizer) == before
    assert data.tokens_fingerprint(problems[::-1], tokenizer) != before
    monkeypatch.setattr(type(tokenizer), "encode_prompt", lambda self, text, turns=(): self.encode(f"{text}1"))
    assert data.tokens_fingerprint(problems, tokenizer) != before


def test_a_directory_that_cannot_be_written_is_refused_before_work(run_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        evaluate.main(
            ["--model", "x", "--config", str(run_dir / "config.json"), "--out", str(tmp_path / "file" / "out")]
        )
