"""Configs: every way of being wrong is one line that names the culprit; what is saved can be loaded again."""

import dataclasses
import json
from pathlib import Path

import pytest

from polyepo_jax.config import (
    AlgorithmConfig,
    Config,
    EvaluationConfig,
    LinearRopeScaling,
    Llama3RopeScaling,
    SFTConfig,
    YarnRopeScaling,
)
from polyepo_jax.config.files import from_json, load, override, to_json
from polyepo_jax.config.static_arguments import update_spec
from polyepo_jax.errors import InputError
from polyepo_jax.losses import PolicyLoss
from polyepo_jax.runs import run_directory
from polyepo_jax.sets import GRPO, Diversity, GRPODiv, MeanReward, Polychromic, Product, SetAdvantage, Sum, Worst
from polyepo_jax.sharding import MeshConfig
from tests.tiny import rl_config, sft_config


def spread(rewards_M, clusters_M):
    """An objective that is a plain function."""
    return rewards_M.max() - rewards_M.min()


spread.set_size = 3

CONFIGS = Path(__file__).parents[2] / "configs"
# Beside them lies what makes models and problems.
FILES = [path for path in sorted(CONFIGS.rglob("*.py")) if not path.stem.startswith("make_")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_config_of_the_repository_is_valid_and_documented(path):
    expected = SFTConfig if path.stem.endswith("warm_start") else Config
    config = load(path, expected)
    assert from_json(json.loads(json.dumps(to_json(config))), expected) == config
    command = f"python -m polyepo_jax.{'sft' if expected is SFTConfig else 'train'} --config configs/"
    assert command in path.read_text()


def test_the_papers_methods_differ_in_the_advantage_alone():
    epo, grpo, div = (load(CONFIGS / f"polynomial/{name}.py", Config) for name in ("poly_epo", "grpo", "grpo_div"))
    assert epo.algorithm.advantage == SetAdvantage(Polychromic(set_size=4))
    for other, advantage in ((grpo, GRPO()), (div, GRPODiv(weight=0.5))):
        assert other.algorithm.advantage == advantage
        algorithm = dataclasses.replace(other.algorithm, advantage=epo.algorithm.advantage)
        assert dataclasses.replace(other, algorithm=algorithm) == epo


def test_overrides_reach_every_depth():
    config = override(
        rl_config(),
        [
            *("--max-steps", "9", "--optimizer.b2", "0.5", "--init.run_dir", "x/y", "--logging.tensorboard", "True"),
            *("--algorithm.advantage.objective.set_size", "3", "--algorithm.advantage.num_sets", "3"),
            *("--algorithm.loss.denominator", "completion_length", "--evaluation.num_prompts", "None"),
        ],
        "program",
    )
    assert config.max_steps == 9
    assert config.optimizer.b2 == 0.5
    assert config.algorithm.advantage == SetAdvantage(Polychromic(3), num_sets=3)
    assert config.init.run_dir == "x/y"
    assert config.algorithm.loss.denominator == "completion_length"
    assert config.logging.tensorboard is True
    assert config.evaluation.num_prompts is None
    assert override(rl_config(), [], "program") == rl_config()


@dataclasses.dataclass
class Thawed:
    """An objective that is not frozen."""

    set_size: int = 2

    def __call__(self, rewards_M, clusters_M):
        return rewards_M.mean()


@pytest.mark.parametrize(
    "scaling",
    [
        LinearRopeScaling(4.0),
        Llama3RopeScaling(8.0, 1.0, 4.0, 64),
        YarnRopeScaling(4.0, 64, beta_fast=16.0, truncate=False, mscale=2.0),
    ],
)
def test_rope_scaling_is_a_config_value(tmp_path, scaling):
    config = rl_config(model=dataclasses.replace(rl_config().model, rope_scaling=scaling))
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    assert load(tmp_path / "config.json", Config) == config
    changed = override(config, ["--model.rope-scaling.factor", "16"], "train")
    assert changed.model.rope_scaling == dataclasses.replace(scaling, factor=16.0)


def test_what_cannot_be_a_key_of_caches_is_refused():
    with pytest.raises(
        ValueError, match=r"must be hashable.*Thawed.*declare it and its parts as @dataclass\(frozen=True\)"
    ):
        AlgorithmConfig(SetAdvantage(Thawed()))


def test_a_function_within_a_function_is_refused():
    def objective(rewards_M, clusters_M):
        return rewards_M.mean()

    objective.set_size = 2
    config = rl_config(algorithm=AlgorithmConfig(SetAdvantage(objective)))
    with pytest.raises(
        InputError, match=r"algorithm.advantage.objective: define .*objective by `def` at the top level"
    ):
        to_json(config)


def test_combined_objectives_are_config_values(tmp_path):
    objective = Sum((MeanReward(3), Product((Diversity(3), Worst(3))), spread), weights=(1, 0.5, 0.25))
    config = rl_config(algorithm=AlgorithmConfig(SetAdvantage(objective)))
    assert from_json(json.loads(json.dumps(to_json(config))), Config) == config
    assert hash(from_json(to_json(config), Config).algorithm.advantage) == hash(config.algorithm.advantage)
    changed = override(config, ["--algorithm.advantage.objective.weights", "1", "2", "3"], "program")
    assert changed.algorithm.advantage.objective == dataclasses.replace(objective, weights=(1, 2, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--foo", "3"], r"--foo"),
        (["--optimizer.beta", "3"], r"--optimizer.beta"),
        (["--max-steps", "many"], r"--max-steps.*'many'"),
        (["--max-steps", "1.5"], r"--max-steps.*'1.5'"),
        (["--algorithm.truncated", "maybe"], r"'maybe'.*zero_reward"),
        (["--learning-rate", "-1"], r"learning_rate must be at least 0, got -1"),
        (["--learning-rate", "nan"], r"learning_rate must be at least 0, got nan"),
        (["--temperature", "0"], r"temperature must be greater than 0 in training, got 0"),
        (["--temperature", "-1"], r"temperature must be greater than 0"),
        (["--num-generations", "1"], r"num_generations must be at least 2, got 1"),
        (["--algorithm.advantage.objective.set-size", "4"], r"less than num_generations = 4.*got 4"),
        (["--algorithm.advantage.objective.set-size", "0"], r"set_size must be an integer of at least 1, got 0"),
        (["--algorithm.advantage.num-sets", "1"], r"num_sets must be between 2"),
        (["--algorithm.advantage.num-sets", "7"], r"C\(4, 2\) = 6 sets there are, got 7"),
        (["--algorithm.mini-batch-size", "3"], r"mini_batch_size \(3 prompts\) must divide prompts_per_step \(4\)"),
        (["--algorithm.micro-batch-size", "5"], r"micro_batch_size \(5 generations\) must divide"),
        (["--algorithm.max-prompt-batches", "0"], r"max_prompt_batches must be at least 1, got 0"),
        (["--algorithm.staleness", "-1"], r"staleness must be at least 0, got -1"),
        (["--algorithm.staleness", "0.5"], r"--algorithm.staleness.*'0.5'"),
        (["--algorithm.staleness", "6"], r"algorithm.staleness \(6\) must be less than max_steps \(6\)"),
        (
            ["--algorithm.staleness", "1", "--algorithm.max-prompt-batches", "5"],
            r"staleness \(1\) needs max_prompt_batches = 1, got 5: which prompts dynamic sampling draws next depends",
        ),
        (["--algorithm.skip-zero-advantage", "True"], r"set algorithm.micro_batch_size to less than .* 16 generations"),
        (
            ["--algorithm.skip-zero-advantage=True", "--algorithm.micro-batch-size=4", "--algorithm.loss.beta=0.1"],
            r"skip_zero_advantage needs algorithm.loss.beta = 0, got 0.1",
        ),
        (["--sampling.top-p", "0"], r"top_p must be in \(0, 1\]"),
        (["--sampling.dtype", "float16"], r"'float16'.*bfloat16"),
        (["--algorithm.loss.importance-cap", "-1"], r"importance_cap must be greater than 0, or None, got -1"),
        (["--model.max-position-embeddings", "10"], r"\(14 tokens\) exceed model.max_position_embeddings \(10\)"),
        (["--init.run-dir", "a", "--init.model-dir", "b"], r"init.run_dir \(a\) and init.model_dir \(b\) exclude"),
        (["--init.step", "3"], r"init.step \(3\) is a checkpoint of init.run_dir, which is not set"),
        (["--save-interval-steps", "0"], r"save_interval_steps must be at least 1"),
        (["--mesh.data", "0"], r"mesh axes must be at least 1"),
    ],
)
def test_wrong_overrides_are_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        override(rl_config(), arguments, "program")
    assert "\n" not in str(caught.value)


def config_file(tmp_path, body):
    path = tmp_path / "config.py"
    path.write_text(body)
    return path


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("x = 1", "has no attribute 'get_config'"),
        ("def get_config(): return 3", "must return a Config, got int"),
        ("def get_config(): raise RuntimeError('no such day')", "RuntimeError: no such day"),
        ("def get_config(:", "SyntaxError"),
        (
            "from tests.tiny import rl_config\ndef get_config(): return rl_config(lerning_rate=1)",
            "unexpected keyword argument 'lerning_rate'",
        ),
        (
            "from tests.tiny import rl_config\ndef get_config(): return rl_config(save_interval_steps='5')",
            "save_interval_steps must be at least 1, got '5'",
        ),
        (
            "from tests.tiny import rl_config\ndef get_config(): return rl_config(long_prompts='cut')",
            "long_prompts: expected Literal.*got 'cut'",
        ),
        (
            "from tests.tiny import rl_config\ndef get_config(): return rl_config(mesh={'data': 1})",
            "mesh: a config holds dataclasses.*not {'data': 1}",
        ),
    ],
)
def test_wrong_config_files_are_one_line(tmp_path, body, message):
    with pytest.raises(InputError, match=message) as caught:
        load(config_file(tmp_path, body), Config)
    assert "\n" not in str(caught.value)


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.py does not exist: give a Python file"):
        load(tmp_path / "nowhere.py", Config)
    with pytest.raises(InputError, match=r"config.json does not exist"):
        load(tmp_path, Config)
    (tmp_path / "config.json").write_text('{"seed": 1')
    with pytest.raises(InputError, match="not readable JSON"):
        load(tmp_path, Config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sede": 1}, "unknown key 'sede': did you mean 'seed'"),
        ({"optimizer": {"b3": 1}}, "unknown key 'optimizer.b3'.*allowed are .*b1, b2"),
        ({"optimizer": {"b1": "0.9"}}, "optimizer.b1: expected float, got '0.9'"),
        ({"optimizer": 3}, "optimizer: expected the fields of a OptimizerConfig, got 3"),
        ({"optimizer": [1]}, "optimizer: expected the fields of a OptimizerConfig, got a list"),
        ({"max_steps": 1.5}, "max_steps: expected int, got 1.5"),
        ({"max_steps": True}, "max_steps: expected int, got True"),
        ({"task": {"class": "polyepo_jax.tasks:Nothing"}}, "task: 'polyepo_jax.tasks:Nothing' cannot be found"),
        ({"task": {"class": "polyepo_jax.runs.metric_writers:read_lines"}}, "is not a dataclass"),
        ({"mesh": {"class": "polyepo_jax.tasks:Polynomial"}}, "mesh: expected a MeshConfig, got a Polynomial"),
        ({"task": None}, "task must be a dataclass as of polyepo_jax.tasks, got None"),
        ({"task": {"class": 5}}, "task: '5' cannot be found"),
        ({"algorithm": {"advantage": "grpo"}}, "algorithm: advantage must be a dataclass called as .*got 'grpo'"),
        ({"algorithm": {"advantage": to_json(Polychromic(2))}}, r"advantage must be .*got Polychromic\(set_size=2"),
        ({"algorithm": {"mini_batch_size": 0}}, "algorithm: mini_batch_size must be at least 1, got 0"),
        ({"evaluation": {"num_samples": 1024, "max_rows": 2048}}, "num_samples must be at most 1000"),
    ],
)
def test_wrong_json_is_one_line(change, message):
    value = to_json(rl_config())
    value.update(change)
    with pytest.raises(InputError, match=message) as caught:
        from_json(value, Config)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named():
    value = to_json(rl_config())
    del value["learning_rate"], value["max_steps"]
    with pytest.raises(InputError, match="missing max_steps, learning_rate"):
        from_json(value, Config)


def test_a_users_own_objective_needs_no_registration(tmp_path):
    body = """
import dataclasses
from tests.tiny import rl_config
from polyepo_jax.config import AlgorithmConfig
from polyepo_jax.sets import SetAdvantage

@dataclasses.dataclass(frozen=True)
class Best:
    set_size: int = 2
    scale: float = 1.0
    def __call__(self, rewards_M, clusters_M):
        return self.scale * rewards_M.max()

def get_config():
    return rl_config(algorithm=AlgorithmConfig(advantage=SetAdvantage(Best(scale=0.5))))
"""
    config = load(config_file(tmp_path, body), Config)
    assert config.algorithm.advantage.objective.scale == 0.5
    changed = override(config, ["--algorithm.advantage.objective.scale", "2.5"], "program")
    assert changed.algorithm.advantage.objective.scale == 2.5
    saved = json.loads(json.dumps(to_json(changed)))
    assert saved["algorithm"]["advantage"]["objective"]["class"] == f"{tmp_path}/config.py:Best"
    assert from_json(saved, Config) == changed


@dataclasses.dataclass(frozen=True)
class WithoutDemonstrations:
    name = "mute"
    tokenizer = rl_config().task.tokenizer
    problems = verify = cluster = staticmethod(lambda *arguments: [])


def test_settings_that_make_no_sense_together():
    with pytest.raises(ValueError, match="has no demonstrations"):
        sft_config(task=WithoutDemonstrations())
    with pytest.raises(ValueError, match=r"micro_batch_size \(3\) must divide prompts_per_step \(8\)"):
        sft_config(micro_batch_size=3)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        EvaluationConfig(num_samples=0)


# --- run directories ---


def made(tmp_path, config):
    directory = tmp_path / "run"
    directory.mkdir()
    run_directory.write_json(directory / "config.json", to_json(config))
    return directory


def test_a_run_directory_admits_what_changes_nothing_that_is_learned(tmp_path):
    directory = made(tmp_path, rl_config())
    assert run_directory.read_config(directory) == rl_config()
    assert run_directory.check(directory, rl_config()) == []
    changed = rl_config(max_steps=9, save_interval_steps=3, eval_interval_steps=1, max_to_keep=5, mesh=MeshConfig(4))
    assert run_directory.check(directory, changed) == [
        "max_steps: 6 -> 9",
        "save_interval_steps: 2 -> 3",
        "eval_interval_steps: 0 -> 1",
        "max_to_keep: 2 -> 5",
        "mesh.data: -1 -> 4",
    ]


def test_a_run_directory_of_another_config_is_refused_with_what_differs(tmp_path):
    directory = made(tmp_path, rl_config())
    other = rl_config(seed=3, max_steps=9)
    with pytest.raises(InputError, match=r"another config: seed: 0 -> 3; choose another --run-dir"):
        run_directory.check(directory, other)
    deep = override(rl_config(), ["--algorithm.advantage.objective.set_size", "3"], "program")
    with pytest.raises(InputError, match=r"algorithm.advantage.objective.set_size: 2 -> 3"):
        run_directory.check(directory, deep)


def test_unusable_run_directories_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="is a file, not a directory"):
        run_directory.check(file / "run", rl_config())
    # Tests may run as root, whom no permission stops.
    monkeypatch.setattr(run_directory.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(InputError, match="cannot be written: no permission in"):
        run_directory.check(tmp_path / "a" / "b", rl_config())
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"is no run directory but holds file; choose --run-dir"):
        run_directory.check(tmp_path, rl_config())
    with pytest.raises(InputError, match="not a run directory"):
        run_directory.read_config(tmp_path)


def test_two_processes_cannot_hold_one_directory(tmp_path):
    again = run_directory.hold(tmp_path / "run")
    with run_directory.hold(tmp_path / "run"), pytest.raises(InputError, match="another process is running"):
        again.__enter__()
    with run_directory.hold(tmp_path / "run"):
        pass


def test_default_directories():
    assert run_directory.default_directory(Path("configs/polynomial/grpo.py")) == Path("runs/polynomial/grpo")
    assert run_directory.default_directory(Path("some/run/config.json")) == Path("some/run")


@pytest.mark.parametrize(
    ("changes", "skips"),
    [
        ({"micro_batch_size": 8}, True),
        ({"micro_batch_size": 8, "skip_zero_advantage": False}, False),
        ({"micro_batch_size": 8, "skip_zero_advantage": True}, True),
        ({}, False),
        ({"micro_batch_size": 16}, False),
        ({"mini_batch_size": 2, "micro_batch_size": 8}, False),
        ({"micro_batch_size": 8, "loss": PolicyLoss(beta=0.1)}, False),
    ],
)
def test_rows_without_advantage_are_left_out_wherever_they_can_be(changes, skips):
    config = rl_config(algorithm=dataclasses.replace(rl_config().algorithm, **changes))
    assert update_spec(config).skip_zero_advantage is skips


def test_a_run_from_before_that_was_the_default_goes_on_with_it(tmp_path):
    before = dataclasses.replace(rl_config().algorithm, skip_zero_advantage=False)
    old = to_json(rl_config(algorithm=before))
    assert run_directory.compare(tmp_path, old, rl_config()) == ["algorithm.skip_zero_advantage: False -> None"]
