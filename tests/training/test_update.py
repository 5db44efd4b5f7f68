"""The update: independence of cuts and layout, minibatches, and what happens to NaN."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polyepo_jax.losses import PolicyLoss, SupervisedLoss
from polyepo_jax.model import ModelConfig, forward, init, logical_axes
from polyepo_jax.sampling import Sampling
from polyepo_jax.sharding import MeshConfig, make_mesh, param_shardings, shard_rows
from polyepo_jax.training.update import (
    OptimizerConfig,
    UpdateSpec,
    init_state,
    loss_and_gradient,
    pass_step,
    state_shardings,
    train_step,
)
from polyepo_jax.types import Batch

MODEL = ModelConfig(
    vocab_size=16,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=4,
)
PROMPT, LENGTH, ROWS = 3, 5, 8
SPEC = UpdateSpec(
    MODEL, PolicyLoss(), OptimizerConfig(), learning_rate=1e-2, prompt_length=PROMPT, max_logits=2 * ROWS * 16
)
loss_of = jax.jit(loss_and_gradient, static_argnums=0)


def make_batch(dtype=np.float32, noise=0.3):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, LENGTH + 1, ROWS)
    loss_mask = np.zeros((ROWS, PROMPT + LENGTH), bool)
    loss_mask[:, PROMPT:] = np.arange(LENGTH) < lengths[:, None]
    mask = loss_mask.copy()
    mask[:, :PROMPT] = np.arange(PROMPT) >= rng.integers(0, PROMPT, ROWS)[:, None]
    sampler = np.where(loss_mask, -2.7 + noise * rng.normal(size=mask.shape), 0).astype(dtype)
    return Batch(
        tokens_BT=jnp.asarray(rng.integers(0, 16, mask.shape).astype(np.int32)),
        mask_BT=jnp.asarray(mask),
        loss_mask_BT=jnp.asarray(loss_mask),
        sampler_logprobs_BT=jnp.asarray(sampler),
        proximal_logprobs_BT=jnp.asarray(sampler),
        advantages_B=jnp.asarray(rng.normal(size=ROWS).astype(dtype)),
    )


@pytest.fixture(scope="module")
def params():
    return jax.jit(init, static_argnums=0)(MODEL, jax.random.key(0))


def assert_close(actual, expected, tolerance):
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, actual, expected))
    assert float(difference) <= tolerance * float(optax.tree.norm(expected))


@pytest.mark.parametrize(
    ("loss", "sampling"),
    [
        (PolicyLoss(), Sampling()),
        (PolicyLoss(denominator="completion_length", beta=0.1), Sampling(temperature=0.7, top_k=12)),
        (SupervisedLoss(), Sampling()),
    ],
)
def test_loss_is_the_formula_on_a_full_forward(params, loss, sampling):
    batch = make_batch()
    reference = jax.jit(init, static_argnums=0)(MODEL, jax.random.key(5))
    spec = dataclasses.replace(SPEC, loss=loss, sampling=sampling)

    @functools.partial(jax.jit, static_argnums=2)
    def logprobs_of(p, batch, transform):
        logits, _ = forward(MODEL, p, batch.tokens_BT, mask_BT=batch.mask_BT)
        logprobs = jax.nn.log_softmax(jax.vmap(jax.vmap(transform))(logits[:, PROMPT - 1 : -1]))
        return jnp.take_along_axis(logprobs, batch.tokens_BT[:, PROMPT:, None], axis=2)[..., 0]

    logprobs, kl_to = (np.asarray(logprobs_of(p, batch, sampling.transform)) for p in (params, reference))
    mask = np.asarray(batch.loss_mask_BT[:, PROMPT:])
    total, ratios = 0.0, []
    for b in range(ROWS):
        row = 0.0
        for t in np.flatnonzero(mask[b]):
            if isinstance(loss, SupervisedLoss):
                row -= logprobs[b, t] / mask.sum() * ROWS
                continue
            log_ratio = np.clip(logprobs[b, t] - float(batch.sampler_logprobs_BT[b, PROMPT + t]), -20, 20)
            advantage = float(batch.advantages_B[b])
            ratio = np.exp(log_ratio)
            ratios.append(ratio)
            row -= min(ratio * advantage, np.clip(ratio, 0.8, 1.28) * advantage)
            gap = np.clip(kl_to[b, t] - logprobs[b, t], -20, 20)
            row += loss.beta * (np.exp(gap) - 1 - gap)
        if isinstance(loss, PolicyLoss):
            row /= LENGTH if loss.denominator == "max_length" else mask[b].sum()
        total += row / ROWS
    value, _, sums = loss_of(spec, params, batch, reference if loss.needs_reference else ())
    assert float(value) == pytest.approx(total, rel=2e-5)
    assert int(sums["tokens"]) == mask.sum()
    if ratios:
        assert (float(sums["ratio"]), float(sums["ratio_max"])) == pytest.approx((sum(ratios), max(ratios)), rel=2e-5)


# PolicyLoss() itself: tests/test_sharded_update.py, on five meshes.
@pytest.mark.parametrize(
    "loss", [PolicyLoss(denominator="completion_length"), pytest.param(SupervisedLoss(), marks=pytest.mark.slow)]
)
def test_value_and_gradient_do_not_depend_on_micro_batches(loss):
    # In float64 the only differences are of summation order.
    with jax.enable_x64(True):
        model = dataclasses.replace(MODEL, dtype="float64", param_dtype="float64", num_hidden_layers=1)
        params = jax.jit(init, static_argnums=0)(model, jax.random.key(0))
        batch = make_batch(np.float64)
        spec = dataclasses.replace(SPEC, model=model, loss=loss)
        whole = loss_of(spec, params, batch)
        assert float(optax.tree.norm(whole[1])) > 1e-3
        for rows in (1, 2, 4):
            cut = loss_of(dataclasses.replace(spec, micro_batch_rows=rows), params, batch)
            assert_close(cut, whole, 1e-12)


@pytest.mark.slow
def test_moments_agree_on_a_mesh(params):
    mesh_config = MeshConfig(2, 2, 2)
    batch = make_batch()
    spec = dataclasses.replace(SPEC, micro_batch_rows=4)
    expected, expected_stats = train_step(spec, init_state(spec, jax.tree.map(jnp.copy, params)), batch)
    mesh = make_mesh(mesh_config)
    state = jax.device_put(init_state(spec, jax.tree.map(jnp.copy, params)), state_shardings(spec, mesh))
    with jax.set_mesh(mesh):
        state, stats = train_step(spec, state, shard_rows(mesh, batch))
    # AdamW's first step is the sign of the gradient: parameters whose gradient is rounding could flip. Compare moments.
    assert_close(jax.device_get(state.opt_state[1][0].mu), expected.opt_state[1][0].mu, 1e-5)
    chex.assert_trees_all_close(jax.device_get(stats), expected_stats, rtol=1e-4, atol=1e-6)


def test_mini_batches_and_iterations_are_successive_updates(params):
    batch = make_batch(noise=0.5)
    spec = dataclasses.replace(SPEC, mini_batch_rows=4, num_iterations=2)
    state, stats = train_step(spec, init_state(spec, jax.tree.map(jnp.copy, params)), batch)
    single = init_state(SPEC, jax.tree.map(jnp.copy, params))
    losses, ratios = [], []
    for rows in (slice(0, 4), slice(4, 8)) * 2:
        single, one = train_step(SPEC, single, jax.tree.map(lambda x: x[rows], batch))  # noqa: B023
        losses.append(float(one["loss"]))
        ratios.append([float(one["ratio_mean"]), float(one["ratio_max"])])
    chex.assert_trees_all_close(state.params, single.params, atol=1e-6)
    assert float(stats["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(stats["ratio_mean"]) == pytest.approx(np.mean(ratios, axis=0)[0], rel=1e-5)
    assert float(stats["ratio_max"]) == pytest.approx(np.max(ratios, axis=0)[1], rel=1e-5)
    assert int(state.step) == 1
    # Later updates move away from the sampler: some ratios leave the clipping range.
    assert 0 < float(stats["clip_frac"]) < 1


@pytest.mark.parametrize("mini_batch_rows", [*(pytest.param(n, marks=pytest.mark.slow) for n in (None, 8)), 4])
def test_importance_weights_are_of_the_policy_before_the_first_update(mini_batch_rows):
    # In float64: Adam divides by the gradient's size, so that rounding counts where it is small.
    with jax.enable_x64(True):
        model = dataclasses.replace(MODEL, dtype="float64", param_dtype="float64")
        params = jax.jit(init, static_argnums=0)(model, jax.random.key(0))
        batch = make_batch(np.float64, noise=0.5)
        loss = PolicyLoss(importance_cap=1.2)
        num_iterations = 1 if mini_batch_rows is None else 2
        spec = dataclasses.replace(
            SPEC, model=model, loss=loss, mini_batch_rows=mini_batch_rows, num_iterations=num_iterations
        )
        state, stats = train_step(spec, init_state(spec, jax.tree.map(jnp.copy, params)), batch)
        logits, _ = forward(model, params, batch.tokens_BT, mask_BT=batch.mask_BT)
        logprobs = jax.nn.log_softmax(logits[:, PROMPT - 1 : -1])
        scored = jnp.take_along_axis(logprobs, batch.tokens_BT[:, PROMPT:, None], axis=2)[..., 0]
        proximal = jnp.zeros(batch.mask_BT.shape).at[:, PROMPT:].set(scored)
        batch = dataclasses.replace(batch, proximal_logprobs_BT=proximal)
        optimizer = spec.optimizer.build(spec.learning_rate)
        single = init_state(spec, params)
        expected, opt_state = single.params, single.opt_state
        count = ROWS // (mini_batch_rows or ROWS)
        given = dataclasses.replace(spec, mini_batch_rows=4)  # reads what the batch says
        for part in [slice(i * ROWS // count, (i + 1) * ROWS // count) for i in range(count)] * num_iterations:
            _, gradient, _ = loss_of(given, expected, jax.tree.map(lambda x: x[part], batch))  # noqa: B023
            changes, opt_state = optimizer.update(gradient, opt_state, expected)
            expected = optax.apply_updates(expected, changes)
        chex.assert_trees_all_close(state.params, expected, rtol=1e-10, atol=1e-10)
        capped = jnp.exp(scored - batch.sampler_logprobs_BT[:, PROMPT:]) > 1.2
        trained = batch.loss_mask_BT[:, PROMPT:]
        fractions = [
            float(jnp.mean(c[t])) for c, t in zip(*(jnp.split(x, count) for x in (capped, trained)), strict=True)
        ]
        assert float(stats["importance_capped_frac"]) == pytest.approx(np.mean(fractions), rel=1e-5)
        assert 0 < float(stats["importance_capped_frac"]) < 1


@pytest.mark.parametrize(("mini_batch_rows", "cap"), [pytest.param(None, None, marks=pytest.mark.slow), (4, 1.2)])
def test_the_effective_sample_size_is_kishs_of_the_first_update_s_tokens(params, mini_batch_rows, cap):
    batch = make_batch(noise=0.8)
    spec = dataclasses.replace(SPEC, loss=PolicyLoss(importance_cap=cap), mini_batch_rows=mini_batch_rows, stale=True)
    _, stats = train_step(spec, init_state(spec, jax.tree.map(jnp.copy, params)), batch)
    logits, _ = forward(MODEL, params, batch.tokens_BT, mask_BT=batch.mask_BT)
    logprobs = np.asarray(jax.nn.log_softmax(logits[:, PROMPT - 1 : -1]), np.float64)
    scored = np.take_along_axis(logprobs, np.asarray(batch.tokens_BT)[:, PROMPT:, None], axis=2)[..., 0]
    trained = np.asarray(batch.loss_mask_BT)[:mini_batch_rows, PROMPT:]
    log_weights = (scored - np.asarray(batch.sampler_logprobs_BT)[:, PROMPT:])[:mini_batch_rows][trained]
    weights = np.exp(log_weights)
    expected = weights.sum() ** 2 / (weights.size * (weights**2).sum())
    assert 1 / weights.size < expected < 0.8
    assert float(stats["effective_sample_size"]) == pytest.approx(expected, rel=1e-4)


def test_an_update_improves_the_objective(params):
    batch = make_batch(noise=0.0)
    warm_up = dataclasses.replace(SPEC.optimizer, warmup_steps=4)
    spec = dataclasses.replace(SPEC, loss=SupervisedLoss(), optimizer=warm_up, mini_batch_rows=4)
    state = init_state(spec, jax.tree.map(jnp.copy, params))
    losses, rates = [], []
    for _ in range(20):
        state, stats = train_step(spec, state, batch)
        losses.append(float(stats["loss"]))
        rates.append(float(stats["learning_rate"]) / spec.learning_rate)
    assert losses[-1] < 0.8 * losses[0]
    # Means over the two updates of a step.
    assert rates == pytest.approx([0.125, 0.625] + [1.0] * 18)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nonfinite_update_is_skipped_and_counted(params, bad):
    batch = make_batch()
    broken = dataclasses.replace(batch, advantages_B=batch.advantages_B.at[2].set(bad))
    state = init_state(SPEC, jax.tree.map(jnp.copy, params))
    state, stats = train_step(SPEC, state, batch)
    assert (int(stats["nonfinite"]), int(state.nonfinite_in_a_row)) == (0, 0)
    before = jax.device_get((state.params, state.opt_state))
    for expected in (1, 2):
        state, stats = train_step(SPEC, state, broken)
        assert (int(stats["nonfinite"]), int(state.nonfinite_in_a_row)) == (1, expected)
        chex.assert_trees_all_equal(jax.device_get((state.params, state.opt_state)), before)
    state, _ = train_step(SPEC, state, batch)
    assert int(state.nonfinite_in_a_row) == 0
    assert int(state.step) == 4


def test_learning_rate_schedules():
    def rate_at(config, step):
        optimizer = config.build(0.5)
        params = {"w": jnp.ones(())}
        state = optimizer.init(params)
        for _ in range(step + 1):
            change, state = optimizer.update({"w": jnp.ones(())}, state, params)
        return -float(change["w"])

    constant = OptimizerConfig(max_grad_norm=0, eps=0)
    assert rate_at(constant, 0) == pytest.approx(0.5, rel=1e-5)
    warm = dataclasses.replace(constant, warmup_steps=4)
    assert [rate_at(warm, t) for t in (0, 2, 6)] == pytest.approx([0.0, 0.25, 0.5], rel=1e-5)
    cosine = dataclasses.replace(constant, warmup_steps=4, decay_steps=12)
    assert [rate_at(cosine, t) for t in (2, 4, 8, 12)] == pytest.approx([0.25, 0.5, 0.25, 0.0], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"b1": 1.0}, "optimizer.b1"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay"),
        ({"max_grad_norm": float("inf")}, "optimizer.max_grad_norm"),
        ({"warmup_steps": 10, "decay_steps": 10}, "must exceed"),
    ],
)
def test_refuses_impossible_optimizers(arguments, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**arguments)


def test_sharding_places_moments_beside_their_parameters():
    mesh = make_mesh(MeshConfig(1, 2, 4))
    shardings = state_shardings(SPEC, mesh)
    assert shardings.opt_state[1][0].mu == shardings.params == param_shardings(mesh, logical_axes(MODEL))
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        make_mesh(MeshConfig(3, 1, 1))
    with pytest.raises(ValueError, match="at most one of them -1"):
        MeshConfig(-1, -1, 1)


@pytest.mark.parametrize(("cap", "stale"), [(None, False), (2.0, True)])
def test_a_step_without_an_update_has_the_numbers_of_one_with(params, cap, stale):
    spec = dataclasses.replace(SPEC, loss=PolicyLoss(importance_cap=cap), stale=stale)
    state = jax.eval_shape(functools.partial(init_state, spec), params)
    _, stats = jax.eval_shape(functools.partial(train_step, spec), state, make_batch())
    _, without = jax.eval_shape(functools.partial(pass_step, spec), state)
    assert without.keys() == stats.keys() - {"kl"}
    assert ("effective_sample_size" in stats) is stale
