"""Updates of low-rank adapters: their gradient by the chain rule, what is left alone, what full rank can do."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from polyepo_jax.losses import PolicyLoss, SupervisedLoss
from polyepo_jax.model import LoRA, init, joined, merged, split, without_adapters
from polyepo_jax.model.config import TARGETS
from polyepo_jax.planning.hlo import dot_flops
from polyepo_jax.training.start_kl import kl_to_start
from polyepo_jax.training.update import OptimizerConfig, init_state, loss_and_gradient, train_step
from tests.hf_directories import assert_same_bits
from tests.model.test_lora import perturbed
from tests.training.test_update import MODEL as PLAIN
from tests.training.test_update import PROMPT, ROWS, SPEC, make_batch

LORA = LoRA(3, 5.0)
MODEL = dataclasses.replace(PLAIN, lora=LORA)
LOSS = PolicyLoss(beta=0.1)
value_and_gradient = jax.jit(loss_and_gradient, static_argnums=0)


def params_of(model, seed=0):
    return perturbed(jax.jit(init, static_argnums=0)(model, jax.random.key(seed)))


# A chunk of positions at a time, and all logits at once.
@pytest.mark.parametrize("max_logits", [SPEC.max_logits, pytest.param(2**25, marks=pytest.mark.slow)])
def test_the_gradient_is_that_of_merged_weights_by_the_chain_rule(max_logits):
    """W + s A B: the gradient by A is s (that by W) Bᵀ, and by B s Aᵀ (that by W)."""
    with jax.enable_x64(True):
        model = dataclasses.replace(MODEL, dtype="float64", param_dtype="float64")
        params, start, batch = params_of(model), params_of(model, 5), make_batch(np.float64)
        spec = dataclasses.replace(SPEC, model=model, loss=LOSS, micro_batch_rows=4, max_logits=max_logits)
        start = joined(split(start)[0], split(params)[1])
        adapters, frozen = split(params)
        loss, gradient, sums = value_and_gradient(spec, adapters, batch, split(start)[0], frozen)
        plain, whole = merged(model, params)
        plain_spec = dataclasses.replace(spec, model=plain)
        expected, by_weights, expected_sums = value_and_gradient(plain_spec, whole, batch, merged(model, start)[1])
    assert float(loss) == pytest.approx(float(expected), rel=1e-10)
    assert float(sums["kl"]) == pytest.approx(float(expected_sums["kl"]), rel=1e-10)
    assert float(sums["kl"]) > 0.1
    assert len(jax.tree.leaves(gradient)) == 2 * len(TARGETS)
    for part in ("self_attn", "mlp"):
        ours, by_weight, own = (tree["layers"][part] for tree in (gradient, by_weights, adapters))
        for name in {key[: -len("_lora_a")] for key in ours}:
            for layer in range(2):
                a, b = (np.asarray(own[f"{name}_lora_{x}"][layer]) for x in "ab")
                a, b = a.reshape(-1, 3), b.reshape(3, -1)
                g = np.asarray(by_weight[name][layer]).reshape(a.shape[0], b.shape[1])
                for x, wanted in (("a", 5 / 3 * g @ b.T), ("b", 5 / 3 * a.T @ g)):
                    found = np.asarray(ours[f"{name}_lora_{x}"][layer]).reshape(wanted.shape)
                    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10 * np.abs(wanted).max())


def test_an_update_leaves_what_is_frozen_alone():
    spec = dataclasses.replace(SPEC, model=MODEL)
    adapters, frozen = split(params_of(MODEL))
    before, first = jax.device_get(frozen), jax.device_get(adapters)
    state = init_state(spec, adapters)
    moments = [x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sorted(moments) == sorted(2 * [x.shape for x in jax.tree.leaves(first)])
    for _ in range(3):
        state, stats = train_step(spec, state, make_batch(), (), frozen)
    assert int(stats["nonfinite"]) == 0
    assert_same_bits(frozen, before)
    assert all(np.abs(x - y).max() > 1e-3 for x, y in zip(*map(jax.tree.leaves, (state.params, first)), strict=True))


# All logits at once, and a chunk of positions at a time.
@pytest.mark.parametrize("max_logits", [2**25, SPEC.max_logits])
def test_no_gradient_of_what_is_frozen_is_computed(max_logits):
    """A matrix takes one product of the backward pass and not two; of what the first layer reads none."""
    flops, tokens, rank = {}, ROWS * (PROMPT + 5), 8
    for lora in (None, LoRA(rank)):
        model = dataclasses.replace(PLAIN, num_hidden_layers=1, lora=lora)
        spec = dataclasses.replace(SPEC, model=model, loss=SupervisedLoss(), max_logits=max_logits)
        trained, frozen = split(jax.eval_shape(functools.partial(init, model), jax.random.key(0)))
        state = jax.eval_shape(functools.partial(init_state, spec), trained)
        flops[lora] = dot_flops(train_step.lower(spec, state, make_batch(), (), frozen).compile().as_text())
    sizes = MODEL.matrix_sizes
    first = [sizes[name] for name in ("q_proj", "k_proj", "v_proj")]
    by_weights = tokens * sum(a * b for a, b in sizes.values()) + ROWS * 5 * 16 * 16  # and by the output table
    by_inputs = tokens * sum(a * b for a, b in first)
    own = tokens * rank * (3 * sum(a + b for a, b in sizes.values()) - sum(a for a, _ in first))
    assert flops[None] - flops[LoRA(rank)] == pytest.approx(2 * (by_weights + by_inputs - own), rel=0.02)


@pytest.mark.slow
def test_kl_to_start_of_adapters():
    spec, batch = dataclasses.replace(SPEC, model=MODEL), make_batch()
    params, start = params_of(MODEL), params_of(MODEL, 5)
    (adapters, frozen), (first, _) = split(params), split(start)
    measured = float(kl_to_start(spec, adapters, first, batch, frozen))
    plain = dataclasses.replace(spec, model=without_adapters(MODEL))
    whole, other = (merged(MODEL, joined(own, frozen))[1] for own in (adapters, first))
    assert measured == pytest.approx(float(kl_to_start(plain, whole, other, batch)), rel=1e-4)
    assert measured > 0.01
    assert float(kl_to_start(spec, first, first, batch, frozen)) == 0


@pytest.mark.slow
def test_full_rank_reaches_the_loss_of_full_training():
    """A batch learned by heart: 16 columns are all that a matrix with a side of 16 can use.

    The output table is enlarged, for a frozen one bounds the logits that a normalised state can have.
    """
    batch, losses = make_batch(), {}
    for model in (PLAIN, dataclasses.replace(PLAIN, lora=LoRA(16, 16.0))):
        spec = dataclasses.replace(
            SPEC, model=model, loss=SupervisedLoss(), optimizer=OptimizerConfig(decay_steps=400), learning_rate=1e-2
        )
        params = jax.jit(init, static_argnums=0)(model, jax.random.key(0))
        trained, frozen = split({**params, "lm_head": 5 * params["lm_head"]})
        state = init_state(spec, trained)
        for _ in range(400):
            state, stats = train_step(spec, state, batch, (), frozen)
            losses.setdefault(model.lora, []).append(stats["loss"])
    first, by_all, by_adapters = (float(x) for x in (losses[None][0], losses[None][-1], losses[LoRA(16, 16.0)][-1]))
    assert by_all < 0.05 * first
    assert by_adapters < by_all + 0.01 * first
