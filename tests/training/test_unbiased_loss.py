"""Proposition 3.1 through the loss that trains: a transformer all of whose completions are known, nothing sampled.

-N T_max E[gradient of the loss] = M grad E[f(y_1..y_n)]: the left side takes the package's advantages, batch and loss
for every group of completions; the right side differentiates a sum over all sets, with scores from plain Python and
probabilities from a full forward pass.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polyepo_jax.losses import PolicyLoss
from polyepo_jax.model import ModelConfig, forward, init
from polyepo_jax.sets import DEGENERATE, MajorityAtN, Minority, Polychromic, marginal_advantages
from polyepo_jax.training.update import OptimizerConfig, UpdateSpec, loss_and_gradient
from polyepo_jax.types import Batch
from tests.sets import reference
from tests.sets.test_unbiased import OBJECTIVES, choices_of_sets, factor

MODEL = ModelConfig(
    vocab_size=3,
    hidden_size=4,
    intermediate_size=6,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    dtype="float64",
    param_dtype="float64",
)
STOP = 0
PROMPT = [2, 1]
NUM_PADDING = 1  # in front of the prompt
PROMPT_LENGTH = NUM_PADDING + len(PROMPT)
MAX_LENGTH = 2
# All that can be generated: a stop token ends a completion, the limit truncates it.
COMPLETIONS = [[STOP], [1, STOP], [2, STOP], [1, 1], [1, 2], [2, 1], [2, 2]]
NUM_COMPLETIONS = len(COMPLETIONS)
REWARDS = np.array([1.0, 0.0, 1.0, 0.3, 0.0, 1.0, 0.0])
CLUSTERS = np.array([5, 5, 2, DEGENERATE, 2, DEGENERATE, -3], np.int32)
SPEC = UpdateSpec(
    MODEL,
    PolicyLoss(denominator="max_length", beta=0.0),
    OptimizerConfig(),
    learning_rate=1e-2,
    prompt_length=PROMPT_LENGTH,
)


def rows():
    """tokens_BT, mask_BT and loss_mask_BT of each completion after its prompt; padding holds a token like any other."""
    shape = NUM_COMPLETIONS, PROMPT_LENGTH + MAX_LENGTH
    tokens, loss_mask = np.ones(shape, np.int32), np.zeros(shape, bool)
    tokens[:, NUM_PADDING:PROMPT_LENGTH] = PROMPT
    for y, completion in enumerate(COMPLETIONS):
        tokens[y, PROMPT_LENGTH : PROMPT_LENGTH + len(completion)] = completion
        loss_mask[y, PROMPT_LENGTH : PROMPT_LENGTH + len(completion)] = True
    mask = loss_mask.copy()
    mask[:, NUM_PADDING:PROMPT_LENGTH] = True
    return tokens, mask, loss_mask


TOKENS, MASK, LOSS_MASK = rows()


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def params():
    return jax.jit(init, static_argnums=0)(MODEL, jax.random.key(3))


@jax.jit
def token_logprobs(params):
    """Of the tokens of every completion, [7, MAX_LENGTH], 0 behind its end: prompts without padding, nothing cut."""
    tokens = TOKENS[:, NUM_PADDING:]
    logits, _ = forward(MODEL, params, tokens)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=2)[:, :, 0]
    return jnp.where(LOSS_MASK[:, PROMPT_LENGTH:], chosen[:, len(PROMPT) - 1 :], 0)


def probabilities(params):
    return jnp.exp(jnp.sum(token_logprobs(params), axis=1))


def tuples(length):
    """All tuples of completions, int[7^length, length]."""
    return np.array(list(itertools.product(range(NUM_COMPLETIONS), repeat=length)))


@functools.partial(jax.jit, static_argnums=2)
def gradient_of_sum(params, scores, set_size):
    def expected(params):
        return jnp.sum(jnp.prod(probabilities(params)[tuples(set_size)], axis=1) * scores)

    return jax.grad(expected)(params)


def gradient_of_expectation(f, set_size):
    """grad E[f(y_1..y_n)] with respect to the parameters."""
    exact, ids = [reference.Fraction(r) for r in REWARDS.tolist()], CLUSTERS.tolist()
    scores = [float(f([exact[y] for y in ys], [ids[y] for y in ys])) for ys in tuples(set_size).tolist()]
    return gradient_of_sum(params(), np.array(scores), set_size)


@jax.jit
def expected_gradient(params, groups, advantages):
    """E[gradient of the loss], a batch for every group of completions."""
    sampler_logprobs = jnp.zeros(TOKENS.shape).at[:, PROMPT_LENGTH:].set(token_logprobs(params))
    group_probabilities = jnp.prod(probabilities(params)[groups], axis=1)

    def add(total, group):
        probability, completions_N, advantages_N = group
        batch = Batch(
            tokens_BT=jnp.asarray(TOKENS)[completions_N],
            mask_BT=jnp.asarray(MASK)[completions_N],
            loss_mask_BT=jnp.asarray(LOSS_MASK)[completions_N],
            sampler_logprobs_BT=sampler_logprobs[completions_N],
            proximal_logprobs_BT=sampler_logprobs[completions_N],
            advantages_B=advantages_N,
        )
        _, gradient, _ = loss_and_gradient(SPEC, params, batch)
        return jax.tree.map(lambda sum_, g: sum_ + probability * g, total, gradient), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zeros, (group_probabilities, groups, advantages))[0]


@functools.partial(jax.jit, static_argnames=("objective", "reduce"))
def advantages_of_groups(objective, rewards, clusters, choices, reduce):
    """[7^N, N], the mean over the choices of sets [choices, K, M], or over all sets where there is no choice."""

    def of_group(rewards_N, clusters_N):
        given = functools.partial(marginal_advantages, objective, rewards_N, clusters_N, reduce=reduce)
        if choices is None:
            return given()
        return jnp.mean(jax.vmap(lambda sets_SM: given(sets_SM=sets_SM))(choices), axis=0)

    return jax.vmap(of_group)(rewards, clusters)


def test_every_completion_is_known():
    total = jax.jit(probabilities)(params())
    assert float(jnp.sum(total)) == pytest.approx(1, abs=1e-12)
    assert float(jnp.min(total)) > 1e-3


# Two sets have opposite advantages, so that the mean over them is the sum: hence three, too.
CASES = [
    (Polychromic(2), reference.polychromic, 4, (None, 2, 3)),
    (MajorityAtN(3), reference.majority, 4, (None, 3)),
    (Polychromic(2, require_distinct=True), reference.polychromic_distinct, 3, (None, 2)),
    (Minority(2), reference.minority, 3, (None, 2)),
    *((make(2), f, 3, (None, 2)) for make, f in OBJECTIVES.values()),
]


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize(
    ("objective", "f", "num_generations", "num_sets"),
    [
        pytest.param(objective, f, N, K, marks=[pytest.mark.slow] if index > 3 and K is None else [])
        for index, (objective, f, N, nums_sets) in enumerate(CASES)
        for K in nums_sets
    ],
)
def test_expected_gradient_of_the_loss_is_that_of_the_objective(objective, f, num_generations, num_sets, reduce):
    N, n = num_generations, objective.set_size
    groups = tuples(N)
    choices = None if num_sets is None else choices_of_sets(N, n, num_sets)
    advantages = advantages_of_groups(objective, REWARDS[groups], CLUSTERS[groups], choices, reduce)
    update = jax.tree.map(lambda g: -N * MAX_LENGTH * g, expected_gradient(params(), groups, advantages))
    expected = jax.tree.map(lambda g: factor(N, n, num_sets, reduce) * g, gradient_of_expectation(f, n))
    size = float(optax.tree.norm(expected))
    assert size > 1e-2
    assert float(optax.tree.norm(optax.tree.sub(update, expected))) < 1e-10 * size
