"""What docs/ shows in code is run, and checked against each paper's own formula in exact arithmetic."""

import dataclasses
import functools
import itertools
import math
import re
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyepo_jax import sets
from polyepo_jax.config import AlgorithmConfig, Config
from polyepo_jax.config.files import load, override
from polyepo_jax.sets import check_advantage, marginal_advantages
from polyepo_jax.sets.objectives import conditional_means_of
from tests.sets import reference
from tests.tiny import rl_config

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
N = 6


def block_of(page):
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return block


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The module of docs/your_own_advantage.md."""
    scope = {"__name__": "your_own_advantage"}
    exec(compile(block_of("your_own_advantage.md"), "your_own_advantage.md", "exec"), scope)
    return scope


def every_subset(size, k):
    return [set(group) for group in itertools.combinations(range(size), k)]


def pkpo(rewards, k):
    """Eq. 33 of arXiv:2505.15201: a sum over the sets of k that hold i."""
    total = [Fraction(0)] * len(rewards)
    for group in every_subset(len(rewards), k):
        for i in group:
            total[i] += max(rewards[j] for j in group) - max(rewards[j] for j in group - {i})
    return [t / math.comb(len(rewards), k) for t in total]


def pass_at_k_training(rewards, k):
    """The analytical advantages of arXiv:2508.10751, from the number of wrong responses."""
    size, wrong = len(rewards), sum(r == 0 for r in rewards)
    mean = 1 - math.comb(wrong, k) / math.comb(size, k)
    deviation = math.sqrt(mean * (1 - mean))
    if deviation == 0:
        return [0.0] * size
    right = (1 - mean) / deviation
    wrong = (1 - mean - math.comb(wrong - 1, k - 1) / math.comb(size - 1, k - 1)) / deviation if wrong else 0
    return [right if r else wrong for r in rewards]


def best_minus_second(rewards):
    first, second = sorted(rewards, reverse=True)[:2]
    return [first - second if i == rewards.index(first) else 0 for i in range(len(rewards))]


def cvar(rewards, clusters, alpha):
    """Rockafellar & Uryasev (2000) for rewards: max over v of v - E[(v - r)^+] / alpha, attained at one of the r."""
    return max(v - sum(max(v - r, 0) for r in rewards) / len(rewards) / alpha for v in rewards)


# Equal dataclasses share a compilation, which `jax.jit` of each would not.
compiled = functools.cache(jax.jit)
advantages_of = jax.jit(marginal_advantages, static_argnums=0)


def called(advantage, rewards, valid=None):
    valid = np.ones(len(rewards), bool) if valid is None else np.array(valid)
    arguments = np.array(rewards, np.float32), np.zeros(len(rewards), np.int32), valid
    return np.asarray(compiled(advantage)(jax.random.key(0), *arguments))


EIGHTHS = st.integers(-16, 16).map(lambda i: Fraction(i, 8))
REWARDS = st.lists(EIGHTHS, min_size=N, max_size=N)
BINARY = st.lists(st.integers(0, 1), min_size=N, max_size=N)
VALID = st.lists(st.booleans(), min_size=N, max_size=N)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, [float(e) for e in expected], rtol=0, atol=2e-5)


@settings(max_examples=40)
@given(rewards=REWARDS, valid=VALID, k=st.sampled_from([2, 4]))
def test_pkpo_is_its_papers_formula(own, rewards, valid, k):
    chosen = np.flatnonzero(valid)
    actual = called(own["PKPO"](k), [float(r) for r in rewards], valid)
    expected = pkpo([rewards[i] for i in chosen], k) if len(chosen) >= k else [0] * len(chosen)
    assert_close(actual[chosen], expected)


@settings(max_examples=40)
@given(rewards=BINARY, k=st.sampled_from([2, 4]))
def test_pass_at_k_training_is_its_papers_formula(own, rewards, k):
    assert_close(called(own["PassAtKTraining"](k), rewards), pass_at_k_training(rewards, k))


@settings(max_examples=40)
@given(rewards=REWARDS, valid=VALID)
def test_best_minus_second_is_its_papers_formula(own, rewards, valid):
    chosen = np.flatnonzero(valid)
    actual = called(own["BestMinusSecond"](), [float(r) for r in rewards], valid)
    assert_close(
        actual[chosen], best_minus_second([rewards[i] for i in chosen]) if len(chosen) >= 2 else [0] * len(chosen)
    )
    assert np.all(actual[~np.array(valid)] == 0)
    if all(valid):
        assert_close(called(own["PKPO"](N), [float(r) for r in rewards]), best_minus_second(rewards))


@settings(max_examples=40)
@given(rewards=REWARDS, alpha=st.sampled_from([0.25, 0.5, 0.625, 1.0]))
def test_cvar_is_its_papers_formula(own, rewards, alpha):
    objective = own["CVaR"](4, alpha)
    expected = reference.advantages(lambda r, c: cvar(r, c, Fraction(alpha)), rewards, [0] * N, 4)
    floats = np.array([float(r) for r in rewards], np.float32)
    assert_close(advantages_of(objective, floats, np.zeros(N, int)), expected)


@pytest.mark.parametrize(("alpha", "same_as"), [(1.0, sets.MeanReward(4)), (0.25, sets.Worst(4))])
def test_cvar_has_the_ends_that_are_said(own, alpha, same_as):
    rewards, ids = np.array([0.5, -1, 2, 0, 1, 1], np.float32), np.zeros(6, int)
    expected = marginal_advantages(same_as, rewards, ids)
    np.testing.assert_allclose(marginal_advantages(own["CVaR"](4, alpha), rewards, ids), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["PKPO", "PassAtKTraining", "BestMinusSecond"])
def test_advantages_of_ones_own_can_be_trained_with(own, name):
    advantage = own[name]()
    check_advantage(advantage, 8)
    config = rl_config(num_generations=8, algorithm=AlgorithmConfig(advantage=advantage))
    assert config.algorithm.advantage == advantage


def test_pkpo_refuses_sets_larger_than_the_group(own):
    with pytest.raises(ValueError, match="k must be between 2 and num_generations = 4, got 5"):
        rl_config(algorithm=AlgorithmConfig(advantage=own["PKPO"](5)))


def test_the_page_on_objectives_of_ones_own_works(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "my_config.py"
    path.write_text(block_of("your_own_objective.md"))
    config = override(load(path, Config), ["--algorithm.advantage.objective.diversity-weight", "0.5"], "train")
    soft = config.algorithm.advantage
    assert soft.objective.diversity_weight == 0.5
    check_advantage(soft, config.num_generations)
    rewards, clusters = np.array([1.0, 1, 0, 1, 0, 1, 1, 0], np.float32), np.array([0, 1, 2, 0, -1, 0, 1, 3])
    # What its docstring says: mean reward, a part of it times diversity.
    expected = reference.advantages(
        lambda r, c: reference.mean_reward(r, c) / 2 + reference.polychromic(r, c) / 2, rewards, clusters, 4
    )
    assert_close(marginal_advantages(soft.objective, rewards, clusters), expected)
    weighted = sets.Sum((sets.MeanReward(4), sets.Polychromic(4)), weights=(0.5, 0.5))
    assert_close(marginal_advantages(weighted, rewards, clusters), expected)

    # Loaded again, for its plain function, as the comment in the page says.
    scope = {"__name__": "my_config"}
    exec(path.read_text(), scope)
    two_ways = sets.SetAdvantage(scope["two_ways"])
    two_ways.check(8)
    check_advantage(two_ways, 8)

    def succeeds_twice(r, c):
        return len({i for i, reward in zip(c, r, strict=True) if reward > 0 and i != -1}) >= 2

    expected = reference.advantages(succeeds_twice, rewards, clusters, 4)
    assert any(expected)
    assert_close(marginal_advantages(scope["two_ways"], rewards, clusters), expected)


def test_the_pages_fit_a_screen():
    assert len((DOCS / "your_own_objective.md").read_text().splitlines()) <= 60


def first_cells(heading):
    """Name and row of each line of the first table after a heading of docs/objectives.md."""
    section = (DOCS / "objectives.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return [(re.match(r"\| `(\w+)", row)[1], row) for row in rows]


def test_the_page_lists_every_objective_and_its_closed_form():
    listed = dict(first_cells("Objectives"))
    built = {name: getattr(sets, name) for name in listed}
    objectives = {
        name
        for name, thing in vars(sets).items()
        if isinstance(thing, type) and dataclasses.is_dataclass(thing) and hasattr(thing, "set_size")
    }
    assert listed.keys() == objectives
    for name in listed.keys() - {"Sum", "Product"}:
        has_one = conditional_means_of(built[name](3)) is not None
        assert f"| {'yes' if has_one else 'no'} |" in listed[name], name


def test_the_page_lists_every_advantage():
    advantages = {
        name
        for name, thing in vars(sets).items()
        if isinstance(thing, type) and dataclasses.is_dataclass(thing) and not hasattr(thing, "set_size")
    }
    assert {name for name, _ in first_cells("Advantages")} == advantages


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_and_files_of_the_docs_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for path in re.findall(r"(?:configs|benchmarks|tests)/[\w./]+\.py", text):
        assert (ROOT / path).exists(), path
