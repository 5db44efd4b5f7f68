"""What users bring is tried before a run: what is refused, in which words, and that nothing sound is."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest

from polyepo_jax.sets import (
    DEGENERATE,
    GRPO,
    DistinctCorrect,
    Diversity,
    GRPODiv,
    LeaveOneOut,
    MajorityAtN,
    MaxRL,
    MeanReward,
    Minority,
    PassAtN,
    Polychromic,
    Product,
    SetAdvantage,
    Sum,
    Worst,
    check_advantage,
    num_distinct,
)
from polyepo_jax.sets.checks import check_objective


def _objective(function, set_size=3):
    """A user's objective: a plain function with an attribute."""
    function.set_size = set_size
    return function


def _refused(check, *arguments):
    """The message of the ValueError, one line to be shown to a user."""
    with pytest.raises(ValueError, match=r"\S") as refusal:
        check(*arguments)
    message = str(refusal.value)
    assert "\n" not in message
    return message


def _name(tried):
    """The id of a parameter, the same in every process: without the address that a function's repr has."""
    return re.sub(r"<function (\S+) at \w+>", r"\1", repr(tried))


# Sound objectives.


def median(rewards_M, clusters_M):
    return jnp.median(rewards_M)


def num_correct(rewards_M, clusters_M):
    """An integer."""
    return jnp.sum(rewards_M > 0)


def any_diverse_success(rewards_M, clusters_M):
    """A boolean."""
    return jnp.any(rewards_M > 0) & (num_distinct(clusters_M) > 1)


def large(rewards_M, clusters_M):
    """Rounding grows with the numbers: 1e6 of what is added in another order."""
    return 1e6 * jnp.sum(jnp.sin(3 * rewards_M))


ACCEPTED = [
    Polychromic(4),
    Polychromic(4, require_distinct=True),
    Polychromic(1, require_distinct=True),
    MeanReward(4),
    PassAtN(4),
    Worst(4),
    Worst(7),
    Diversity(4),
    DistinctCorrect(4),
    MajorityAtN(4),
    Minority(4),
    Sum((MeanReward(3), Diversity(3)), (1.0, 0.5)),
    Sum((MajorityAtN(3), PassAtN(3))),
    Product((MeanReward(3), Diversity(3), Worst(3))),
    Sum((Product((MeanReward(3), Diversity(3))), Worst(3)), (1.0, -2.0)),
    _objective(median),
    _objective(num_correct),
    _objective(any_diverse_success),
    _objective(large, 4),
]


@pytest.mark.parametrize("objective", ACCEPTED, ids=_name)
def test_sound_objectives_are_accepted(objective):
    check_objective(objective, 8)


def shifted_advantage(key, rewards_N, clusters_N, valid_N):
    return jnp.where(valid_N, rewards_N - 0.5, 0)


@pytest.mark.parametrize(
    "advantage",
    [
        SetAdvantage(Polychromic(4)),
        SetAdvantage(MajorityAtN(4), num_sets=6, reduce="sum"),
        SetAdvantage(median),
        GRPO(),
        GRPO(divide_by_std=True),
        LeaveOneOut(),
        MaxRL(),
        GRPODiv(0.5),
        shifted_advantage,
    ],
    ids=_name,
)
def test_sound_advantages_are_accepted(advantage):
    check_advantage(advantage, 8)


# Objectives that depend on the order of the members.


def first_reward(rewards_M, clusters_M):
    return rewards_M[0]


def first_weighs_more(rewards_M, clusters_M):
    return jnp.mean(rewards_M) + 0.01 * rewards_M[0]


def last_cluster(rewards_M, clusters_M):
    return jnp.mean(jnp.where(clusters_M == clusters_M[-1], rewards_M, 0))


def adjacent_change(rewards_M, clusters_M):
    return jnp.mean(clusters_M[1:] != clusters_M[:-1])


@pytest.mark.parametrize("function", [first_reward, first_weighs_more, last_cluster, adjacent_change])
def test_an_objective_that_depends_on_the_order_is_refused(function):
    message = _refused(check_objective, _objective(function), 8)
    assert function.__name__ in message
    assert "must not depend on the order of a set's members" in message
    # The example can be tried: its numbers, in its order, give what is said.
    example = re.search(
        r"got (\S+) for rewards (\[.*\]) and cluster ids (\[.*\]), and (\S+) when .* in the order (\[.*\])", message
    )
    before, after = float(example[1]), float(example[4])
    rewards_M, clusters_M, order_M = (np.array([float(x) for x in example[i][1:-1].split(",")]) for i in (2, 3, 5))
    order_M = order_M.astype(int)
    assert sorted(order_M) == [0, 1, 2]
    assert float(function(jnp.asarray(rewards_M), jnp.asarray(clusters_M))) == pytest.approx(before, abs=2e-4)
    shuffled = function(jnp.asarray(rewards_M[order_M]), jnp.asarray(clusters_M[order_M]))
    assert float(shuffled) == pytest.approx(after, abs=2e-4)
    assert abs(before - after) > 1e-5


def test_order_is_not_tried_on_sets_of_one():
    check_objective(_objective(lambda rewards_M, clusters_M: rewards_M[0], set_size=1), 8)


# Objectives that return no number.


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda rewards_M, clusters_M: rewards_M, r"\[3\]"),
        (lambda rewards_M, clusters_M: jnp.mean(rewards_M, keepdims=True), r"\[1\]"),
        (lambda rewards_M, clusters_M: rewards_M[:, None] * rewards_M[None, :], r"\[3, 3\]"),
    ],
)
def test_an_objective_that_returns_no_scalar_is_refused(function, shape):
    message = _refused(check_objective, _objective(function), 8)
    assert re.search(rf"must return a scalar .*each of shape \[3\], got shape {shape}$", message)


@pytest.mark.parametrize("result", [None, (1.0, 2.0), "text"])
def test_an_objective_that_returns_no_array_is_refused(result):
    _refused(check_objective, _objective(lambda rewards_M, clusters_M: result), 8)


def _mean_where(chosen_M, rewards_M):
    return jnp.sum(jnp.where(chosen_M, rewards_M, 0)) / jnp.sum(chosen_M)


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (lambda rewards_M, clusters_M: _mean_where(rewards_M > 0, rewards_M), "nan"),  # all wrong
        (lambda rewards_M, clusters_M: _mean_where(rewards_M == 0, rewards_M), "nan"),  # all right
        (lambda rewards_M, clusters_M: _mean_where(clusters_M != DEGENERATE, rewards_M), "nan"),  # only degenerates
        (lambda rewards_M, clusters_M: _mean_where(clusters_M == DEGENERATE, rewards_M), "nan"),  # no degenerates
        (lambda rewards_M, clusters_M: 1 / jnp.sum(rewards_M), "inf"),
        (lambda rewards_M, clusters_M: jnp.log(jnp.mean(rewards_M)), "-inf"),
        (lambda rewards_M, clusters_M: 1 / (6 - num_distinct(clusters_M)), "inf"),  # as many clusters as members
        (lambda rewards_M, clusters_M: 1 / jnp.std(rewards_M), "inf"),
    ],
)
def test_an_objective_that_is_not_finite_is_refused(function, value):
    # Sets so large that chance makes none of degenerates only, nor any of six clusters.
    message = _refused(check_objective, _objective(function, set_size=6), 8)
    assert re.search(rf"must be finite, got {value} for rewards \[.*\] and cluster ids \[.*\]$", message)


# Objectives that raise.


def branches(rewards_M, clusters_M):
    return 1.0 if rewards_M[0] > 0 else 0.0


def leaves_jax(rewards_M, clusters_M):
    return np.asarray(rewards_M).mean()


def raises(rewards_M, clusters_M):
    raise RuntimeError("the first line\nand the second")


def raises_nothing_said(rewards_M, clusters_M):
    raise KeyError


def takes_no_clusters(rewards_M):
    return jnp.mean(rewards_M)


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (branches, "TracerBoolConversionError: Attempted boolean conversion of traced array"),
        (leaves_jax, r"TracerArrayConversionError: The numpy\.ndarray conversion method"),
        (raises, "RuntimeError: the first line$"),
        (raises_nothing_said, "KeyError: $"),
        (takes_no_clusters, r"TypeError: takes_no_clusters\(\) takes 1 positional argument but 2 were given"),
    ],
)
def test_an_objective_that_raises_is_refused_in_one_line(function, error):
    message = _refused(check_objective, _objective(function), 8)
    assert re.search(rf"objective {function.__name__} failed under jax.jit and jax.vmap: {error}", message)


def test_the_error_of_the_objective_is_the_cause():
    with pytest.raises(ValueError, match=r"failed under jax.jit") as refusal:
        check_objective(_objective(raises), 8)
    assert isinstance(refusal.value.__cause__, RuntimeError)


# Closed forms.


@dataclasses.dataclass(frozen=True)
class WithMeansOf(PassAtN):
    """The best reward, with whatever closed form."""

    means: object = None

    def conditional_means(self, rewards_N, clusters_N, valid_N):
        return self.means(self, rewards_N, clusters_N, valid_N)


def _true_means(objective, *group):
    return PassAtN.conditional_means(objective, *group)


def _of_mean_reward(objective, *group):
    return MeanReward(objective.set_size).conditional_means(*group)


def _of_another_size(objective, *group):
    return PassAtN(objective.set_size + 1).conditional_means(*group)


def _as_if_all_were_valid(objective, rewards_N, clusters_N, valid_N):
    return _true_means(objective, rewards_N, clusters_N, jnp.ones_like(valid_N))


def _scaled(objective, *group):
    return 1.01 * _true_means(objective, *group)


def _reversed(objective, *group):
    return _true_means(objective, *group)[::-1]


def _mean_alone(objective, *group):
    return jnp.mean(_true_means(objective, *group))


def _not_finite(objective, *group):
    return _true_means(objective, *group) * jnp.nan


def _higher_by_one(objective, *group):
    return _true_means(objective, *group) + 1


def test_a_right_closed_form_is_accepted():
    check_objective(WithMeansOf(3, _true_means), 8)


@pytest.mark.parametrize(
    "means",
    [
        *(_of_mean_reward, _of_another_size, _as_if_all_were_valid, _scaled, _reversed, _not_finite),
        # The advantages are right, E[f] in the log would not be.
        _higher_by_one,
    ],
)
def test_a_wrong_closed_form_is_refused(means):
    message = _refused(check_objective, WithMeansOf(3, means), 8)
    assert "conditional_means of objective WithMeansOf(set_size=3" in message
    assert "are not its means over all sets" in message


@dataclasses.dataclass(frozen=True)
class ForSmallClusters:
    """Diversity, with a closed form that takes clusters of three or more for impossible to miss."""

    set_size: int = 4

    def __call__(self, rewards_M, clusters_M):
        return num_distinct(clusters_M) / self.set_size

    def conditional_means(self, rewards_N, clusters_N, valid_N):
        right_N = Diversity(self.set_size).conditional_means(rewards_N, clusters_N, valid_N)
        same_NN = (clusters_N[:, None] == clusters_N[None, :]) & valid_N[None, :] & (clusters_N != DEGENERATE)[:, None]
        large_N = jnp.sum(same_NN, axis=1) >= 3
        return jnp.where(jnp.any(large_N & valid_N), right_N + 0.1 * large_N, right_N)


def test_a_closed_form_is_tried_in_groups_as_large_as_those_of_the_run():
    assert "are not its means" in _refused(check_objective, ForSmallClusters(), 16)
    assert "are not its means" in _refused(check_objective, ForSmallClusters(16), 64)  # 64 cannot be enumerated: 20


def test_a_closed_form_of_another_shape_is_refused():
    message = _refused(check_objective, WithMeansOf(3, _mean_alone), 8)
    assert "must be one number for each of the 8 generations, got shape []" in message


def test_a_closed_form_that_raises_is_refused():
    def wrong_shape(objective, rewards_N, clusters_N, valid_N):
        return rewards_N[:2]

    def raising(objective, *group):
        raise NotImplementedError("later\nperhaps")

    for means, error in ((wrong_shape, "TypeError|ValueError"), (raising, "NotImplementedError: later$")):
        message = _refused(check_objective, WithMeansOf(3, means), 8)
        assert re.search(f"conditional_means of objective .* failed under jax.jit and jax.vmap: ({error})", message)


def test_a_closed_form_within_a_sum_is_tried():
    wrong = Sum((MeanReward(3), WithMeansOf(3, _of_mean_reward)), (1.0, 2.0))
    assert "conditional_means of objective Sum(" in _refused(check_objective, wrong, 8)


def test_a_closed_form_is_tried_where_a_set_is_almost_the_group():
    check_objective(PassAtN(3), 4)
    assert "are not its means" in _refused(check_objective, WithMeansOf(3, _scaled), 4)


# Advantages.


def one_number(key, rewards_N, clusters_N, valid_N):
    return jnp.mean(rewards_N)


def one_too_few(key, rewards_N, clusters_N, valid_N):
    return rewards_N[1:]


def a_column(key, rewards_N, clusters_N, valid_N):
    return rewards_N[:, None]


@pytest.mark.parametrize(("advantage", "shape"), [(one_number, "[]"), (one_too_few, "[7]"), (a_column, "[8, 1]")])
def test_an_advantage_of_another_shape_is_refused(advantage, shape):
    message = _refused(check_advantage, advantage, 8)
    assert advantage.__name__ in message
    assert "must return one number for each of the 8 generations of a prompt, shape [8]" in message
    assert message.endswith(f"got shape {shape}")


def by_the_spread(key, rewards_N, clusters_N, valid_N):
    centered_N = rewards_N - jnp.mean(rewards_N)
    return jnp.where(valid_N, centered_N / jnp.std(rewards_N), 0)


def by_the_mean(key, rewards_N, clusters_N, valid_N):
    return jnp.where(valid_N, 1 / jnp.mean(rewards_N), 0)


def by_the_number_of_correct_clusters(key, rewards_N, clusters_N, valid_N):
    return jnp.where(valid_N, rewards_N / num_distinct(jnp.where(rewards_N > 0, clusters_N, DEGENERATE)), 0)


@pytest.mark.parametrize("advantage", [by_the_spread, by_the_mean, by_the_number_of_correct_clusters])
def test_an_advantage_that_is_not_finite_is_refused(advantage):
    message = _refused(check_advantage, advantage, 8)
    assert re.search(
        rf"{advantage.__name__}.* must be finite, got \[.*(nan|inf).*\] for rewards \[.*\], cluster", message
    )


def branching_advantage(key, rewards_N, clusters_N, valid_N):
    return rewards_N if rewards_N.sum() > 0 else -rewards_N


def test_an_advantage_that_raises_is_refused_in_one_line():
    message = _refused(check_advantage, branching_advantage, 8)
    assert re.search("advantage .*branching_advantage.* failed under jax.jit.*: TracerBoolConversionError", message)


@pytest.mark.parametrize(
    ("objective", "problem"),
    [
        (_objective(lambda rewards_M, clusters_M: rewards_M[-1]), "must not depend on the order"),
        (_objective(lambda rewards_M, clusters_M: rewards_M * 2), "must return a scalar"),
        (_objective(lambda rewards_M, clusters_M: jnp.log(jnp.sum(rewards_M))), "must be finite, got -inf"),
        (WithMeansOf(3, _of_mean_reward), "are not its means over all sets"),
    ],
)
@pytest.mark.parametrize("num_sets", [None, 6])
def test_the_objective_of_a_set_advantage_is_tried(objective, problem, num_sets):
    message = _refused(check_advantage, SetAdvantage(objective, num_sets=num_sets), 8)
    assert problem in message


def test_equal_advantages_are_tried_once_and_refused_each_time():
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Counted:
        sound: bool

        def __call__(self, key, rewards_N, clusters_N, valid_N):
            calls.append(self.sound)
            return rewards_N if self.sound else jnp.sum(rewards_N)

    check_advantage(Counted(True), 8)
    num_calls = len(calls)
    assert num_calls > 0
    check_advantage(Counted(True), 8)
    assert len(calls) == num_calls
    check_advantage(Counted(True), 9)
    assert len(calls) > num_calls
    for _ in range(2):
        assert "must return one number" in _refused(check_advantage, Counted(False), 8)
