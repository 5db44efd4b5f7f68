"""Groups in training: advantages of failed grades, dynamic sampling, skipped updates, users' objectives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyepo_jax import train as train_module
from polyepo_jax.config import AlgorithmConfig, Config
from polyepo_jax.config.files import load
from polyepo_jax.errors import InputError
from polyepo_jax.runs.stopping import Stopping
from polyepo_jax.sets import GRPO, Polychromic, SetAdvantage, group_advantages
from polyepo_jax.train import train
from polyepo_jax.training.batch import Groups, keep_informative
from polyepo_jax.types import Grades, Prompts, Rollouts
from tests.commands.test_train import assert_same_run, run
from tests.tiny import EasyPolynomial, metrics_of, rl_config


def grades(rewards_PN, clusters_PN=None, valid_PN=None):
    rewards_PN = jnp.asarray(rewards_PN, jnp.float32)
    clusters_PN = jnp.zeros(rewards_PN.shape, jnp.int32) if clusters_PN is None else jnp.asarray(clusters_PN)
    valid_PN = jnp.ones(rewards_PN.shape, bool) if valid_PN is None else jnp.asarray(valid_PN)
    return Grades(rewards_PN, clusters_PN, valid_PN)


@dataclasses.dataclass(frozen=True)
class ThisTimes:
    """An advantage that gives every generation its reward times a factor, valid or not."""

    factor: float = 1.0

    def __call__(self, key, rewards_N, clusters_N, valid_N):
        return rewards_N * self.factor


def test_invalid_generations_and_rounding_get_no_advantage():
    rewards_PN = [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    valid_PN = [[True, False, True], [True, True, True]]
    key, ids_P = jax.random.key(0), jnp.arange(2)
    advantages_PN, _ = group_advantages(ThisTimes(), key, ids_P, grades(rewards_PN, None, valid_PN))
    np.testing.assert_array_equal(advantages_PN, [[1, 0, 3], [1, 2, 3]])
    advantages_PN, _ = group_advantages(ThisTimes(3e-7), key, ids_P, grades(rewards_PN, None, valid_PN))
    np.testing.assert_array_equal(advantages_PN, np.zeros((2, 3)))
    # The spread of the rewards decides nothing: all right, of two strategies, carries signal under Polychromic.
    advantage = SetAdvantage(Polychromic(2))
    advantages_PN, diagnostics = group_advantages(
        advantage, key, ids_P, grades(np.ones((2, 3)), [[0, 0, 1], [4, 4, 4]])
    )
    assert np.all(np.asarray(advantages_PN)[0] != 0)
    np.testing.assert_array_equal(np.asarray(advantages_PN)[1], np.zeros(3))
    assert float(diagnostics["set/too_few_valid_frac"]) == 0


def test_a_broken_advantage_stays_visible():
    rewards_PN = [[1.0, np.nan, 3.0], [1.0, 2.0, 3.0]]
    advantages_PN, _ = group_advantages(ThisTimes(), jax.random.key(0), jnp.arange(2), grades(rewards_PN))
    assert np.isnan(advantages_PN[0, 1])


def test_groups_with_too_few_valid_generations_have_no_gradient_and_are_counted():
    valid_PN = [[True, True, False], [True, True, True]]
    for num_sets in (None, 2):
        advantages_PN, diagnostics = group_advantages(
            SetAdvantage(Polychromic(2), num_sets),
            jax.random.key(0),
            jnp.arange(2),
            grades([[1, 0, 1], [1, 0, 1]], [[0, 1, 2], [0, 1, 2]], valid_PN),
        )
        np.testing.assert_array_equal(np.asarray(advantages_PN)[0], np.zeros(3))
        assert np.any(np.asarray(advantages_PN)[1] != 0)
        assert float(diagnostics["set/too_few_valid_frac"]) == 0.5
        # E[f] of the other group alone: a judge that fails must not look like a policy that does.
        assert float(diagnostics["set/objective"]) == pytest.approx(2 / 3)


def test_sampled_sets_derive_from_step_and_prompt():
    advantage = SetAdvantage(Polychromic(3), num_sets=4)
    rng = np.random.default_rng(0)
    graded = grades(rng.random((4, 9)), rng.integers(-1, 3, (4, 9)).astype(np.int32))
    ids_P = jnp.array([3, 1, 7, 2])
    key = jax.random.key(5)
    advantages_PN, _ = group_advantages(advantage, key, ids_P, graded)
    order = np.array([2, 0, 3, 1])
    reordered, _ = group_advantages(advantage, key, ids_P[order], jax.tree.map(lambda x: x[order], graded))
    np.testing.assert_array_equal(reordered, np.asarray(advantages_PN)[order])
    other_step, _ = group_advantages(advantage, jax.random.key(6), ids_P, graded)
    other_prompt, _ = group_advantages(advantage, key, ids_P + 1, graded)
    for other in (other_step, other_prompt):
        assert np.all(np.any(np.asarray(other) != np.asarray(advantages_PN), axis=1))


def groups(ids, signals):
    """Groups of two generations whose every array tells the prompt; those named in `signals` have an advantage."""
    ids_P = jnp.array(ids)
    column_P1 = ids_P[:, None]
    tokens_PNT = jnp.broadcast_to(ids_P[:, None, None], (len(ids), 2, 3))
    return Groups(
        Prompts(column_P1, column_P1 > 0, ids_P),
        Rollouts(tokens_PNT, tokens_PNT > 0, tokens_PNT * 1.0, tokens_PNT[:, :, 0] > 0),
        jnp.where(jnp.array([i in signals for i in ids])[:, None], jnp.array([[0.5, -0.5]]), 0.0),
    )


@pytest.mark.parametrize(
    ("kept", "new", "signals", "expected"),
    [
        ([1, 2, 3], [4, 5, 6], {2, 5}, [1, 2, 5]),
        ([1, 2, 3], [4, 5, 6], {1, 2, 3, 4}, [1, 2, 3]),
        ([1, 2, 3], [4, 5, 6], {4, 5, 6}, [4, 5, 6]),
        ([1, 2, 3], [4, 5, 6], set(), [1, 2, 3]),
        ([1, 2, 3], [2, 5, 1], {2, 5}, [1, 2, 5]),  # prompt 2 comes again after an epoch's end: once is enough
        ([1, 2, 3], [3, 5, 6], {2, 3}, [1, 2, 3]),
    ],
)
def test_informative_groups_are_kept(kept, new, signals, expected):
    result = keep_informative(groups(kept, signals), groups(new, signals))
    np.testing.assert_array_equal(result.prompts.ids_P, expected)
    wanted = groups(expected, signals)
    for name in ("prompts", "rollouts"):
        jax.tree.map(np.testing.assert_array_equal, getattr(result, name), getattr(wanted, name))
    np.testing.assert_array_equal(
        np.any(np.asarray(result.advantages_PN) != 0, axis=1), [i in signals for i in expected]
    )


@dataclasses.dataclass(frozen=True)
class HardFor(EasyPolynomial):
    """Rewards nothing on all but every `rare`-th problem: most groups carry no signal."""

    rare: int = 3

    def verify(self, problem, response):
        return super().verify(problem, response) if problem.id % self.rare == 0 else 0.0


def test_dynamic_sampling_draws_until_groups_carry_signal_and_resumes(tmp_path):
    algorithm = AlgorithmConfig(advantage=GRPO(), max_prompt_batches=5)
    config = rl_config(task=HardFor(), algorithm=algorithm, max_steps=4)
    run(config, tmp_path / "whole")
    lines = metrics_of(tmp_path / "whole")
    batches = [line["dynamic_sampling/prompt_batches"] for line in lines]
    shares = [line["dynamic_sampling/informative_frac"] for line in lines]
    assert 1 < max(batches) <= 5
    assert all(share == 1 or count == 5 for count, share in zip(batches, shares, strict=True))
    # Drawn groups are all in the log: their share with signal is that of the task, not of what was kept.
    assert np.mean([line["advantages/nonzero_frac"] for line in lines]) < 0.6 < np.mean(shares)
    # Bit for bit, although a step takes a number of batches that its results decide.
    run(dataclasses.replace(config, max_steps=2), tmp_path / "parts")
    run(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts", config)


def test_a_run_that_is_told_to_end_draws_no_further_prompts(tmp_path, monkeypatch, capsys):
    told = []
    monkeypatch.setattr(train_module, "num_informative", lambda groups: bool(told.append(True)))
    monkeypatch.setattr(Stopping, "requested", property(lambda stopping: bool(told)))
    algorithm = AlgorithmConfig(advantage=GRPO(), max_prompt_batches=5)
    assert not train(rl_config(algorithm=algorithm), tmp_path, "again")
    assert told == [True]
    assert "stopped at step 0 of 6 (the next one given up: further prompts were to be drawn)" in capsys.readouterr().err


def test_dynamic_sampling_stops_at_its_cap(tmp_path):
    algorithm = AlgorithmConfig(advantage=GRPO(), max_prompt_batches=2)
    config = rl_config(task=HardFor(rare=10**9), algorithm=algorithm, max_steps=1)
    run(config, tmp_path / "run")
    (line,) = metrics_of(tmp_path / "run")
    assert (line["dynamic_sampling/prompt_batches"], line["dynamic_sampling/informative_frac"]) == (2, 0)
    assert line["loss/grad_norm"] == 0


@pytest.mark.slow
def test_skipped_updates_are_the_same_run(tmp_path):
    lines = {}
    for skip in (False, True):
        algorithm = AlgorithmConfig(SetAdvantage(Polychromic(2)), micro_batch_size=8, skip_zero_advantage=skip)
        run(rl_config(algorithm=algorithm, prompts_per_step=8, max_steps=2, seed=2), tmp_path / str(skip))
        lines[skip] = metrics_of(tmp_path / str(skip))
    assert all(0 < line["advantages/nonzero_frac"] < 1 for line in lines[True])
    for now, before in zip(lines[True], lines[False], strict=True):
        del now["logprobs/sampler_gap"], before["logprobs/sampler_gap"]  # of fewer rows
        assert now == pytest.approx(before, rel=1e-4, abs=1e-6)


FIRST_COUNTS_MOST = """
import jax.numpy as jnp
from polyepo_jax.config import AlgorithmConfig
from polyepo_jax.sets import SetAdvantage
from tests.tiny import rl_config

def objective(rewards_M, clusters_M):
    return {body}

objective.set_size = 2

def get_config():
    return rl_config(algorithm=AlgorithmConfig(SetAdvantage(objective)), max_steps=1)
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("rewards_M[0] + 0.5 * rewards_M[1]", r"must not depend on the order of a set's members"),
        ("rewards_M", r"must return a scalar .* got shape \[2\]"),
        ("jnp.log(jnp.mean(rewards_M))", r"must be finite, got -inf for rewards \[0.0, 0.0\]"),
        ("float(rewards_M[0])", r"failed under jax.jit and jax.vmap: ConcretizationTypeError: [^\n]*$"),
        ("rewards_M.maen()", r"failed under jax.jit and jax.vmap: AttributeError: "),
    ],
)
def test_a_users_objective_that_cannot_work_is_refused_before_anything_is_written(tmp_path, body, message):
    path = tmp_path / "config.py"
    path.write_text(FIRST_COUNTS_MOST.format(body=body))
    with pytest.raises(InputError, match=rf"^algorithm.advantage: objective .*{message}"):
        run(load(path, Config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_plain_function_of_a_config_file_is_an_objective(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(FIRST_COUNTS_MOST.format(body="jnp.max(rewards_M) - 0.25 * jnp.min(rewards_M)"))
    config = load(path, Config)
    run(config, tmp_path / "run")
    (line,) = metrics_of(tmp_path / "run")
    assert line["advantages/nonzero_frac"] > 0
    assert "set/objective" in line
    assert load(tmp_path / "run", Config) == config  # the run's own config.json finds the function again
