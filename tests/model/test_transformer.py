"""The model against itself in other arrangements: cached, padded, differentiated, scanned."""

import dataclasses
import functools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyepo_jax.model import (
    ModelConfig,
    hidden_states,
    init_cache,
    logical_axes,
    output_params,
    rounded_output,
    unembed,
)
from polyepo_jax.model import forward as eager_forward
from polyepo_jax.model import init as eager_init

# Compiled once a shape: op by op the same tests take five times as long.
forward = jax.jit(eager_forward, static_argnums=0)
init = jax.jit(eager_init, static_argnums=0)

CONFIG = ModelConfig(
    vocab_size=31,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,
)


@pytest.fixture(scope="module")
def params():
    # Scales other than 1, so that a norm applied wrongly is seen.
    tree = init(CONFIG, jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + rng.normal(scale=0.1, size=x.shape).astype(np.float32), tree)


def tokens_of(shape, seed=0):
    return jax.random.randint(jax.random.key(seed), shape, 0, CONFIG.vocab_size)


def reference_forward(config, params, tokens_T):
    """One sequence in NumPy float64, written from the architecture's equations with explicit loops over heads."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * scale

    def rope(x_TA):
        half = config.head_dim // 2
        out = np.empty_like(x_TA)
        for t in range(x_TA.shape[0]):
            for i in range(half):
                angle = t * config.rope_theta ** (-2 * i / config.head_dim)
                a, b = x_TA[t, i], x_TA[t, i + half]
                out[t, i] = a * np.cos(angle) - b * np.sin(angle)
                out[t, i + half] = b * np.cos(angle) + a * np.sin(angle)
        return out

    x = p["embed_tokens"][tokens_T]
    T = len(tokens_T)
    group = config.num_attention_heads // config.num_key_value_heads
    for layer in range(config.num_hidden_layers):
        w = jax.tree.map(lambda leaf: leaf[layer], p["layers"])  # noqa: B023
        h = norm(x, w["input_layernorm"]["scale"])
        attended = np.zeros_like(x)
        for head in range(config.num_attention_heads):
            kv = head // group
            bias = {x: w["self_attn"][f"{x}_bias"][head if x == "q" else kv] if config.qkv_bias else 0 for x in "qkv"}
            q = rope(norm(h @ w["self_attn"]["q_proj"][:, head] + bias["q"], w["self_attn"]["q_norm"]["scale"]))
            k = rope(norm(h @ w["self_attn"]["k_proj"][:, kv] + bias["k"], w["self_attn"]["k_norm"]["scale"]))
            v = h @ w["self_attn"]["v_proj"][:, kv] + bias["v"]
            for t in range(T):
                scores = k[: t + 1] @ q[t] / np.sqrt(config.head_dim)
                weights = np.exp(scores - scores.max())
                attended[t] += (weights / weights.sum()) @ v[: t + 1] @ w["self_attn"]["o_proj"][head]
        x = x + attended + (w["self_attn"]["o_bias"] if config.o_bias else 0)
        h = norm(x, w["post_attention_layernorm"]["scale"])
        gate = h @ w["mlp"]["gate_proj"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["mlp"]["up_proj"])) @ w["mlp"]["down_proj"]
    x = norm(x, p["norm"]["scale"])
    return x @ (p["embed_tokens"].T if config.tie_word_embeddings else p["lm_head"])


@pytest.mark.parametrize(("tied", "biased"), [(False, False), (True, False), (False, True)])
def test_equals_the_equations_in_float64(tied, biased):
    config = dataclasses.replace(
        CONFIG, tie_word_embeddings=tied, qkv_bias=biased, o_bias=biased, dtype="float64", param_dtype="float64"
    )
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        # No scale is 1, no bias 0.
        params = jax.tree.map(lambda x: x + rng.normal(scale=0.1, size=x.shape), init(config, jax.random.key(0)))
        tokens = tokens_of((2, 9))
        logits, cache = forward(config, params, tokens)
        assert cache is None
        assert logits.dtype == jnp.float64
        expected = np.stack([reference_forward(config, params, np.asarray(row)) for row in tokens])
        np.testing.assert_allclose(logits, expected, atol=1e-11)


def test_cached_decoding_equals_the_full_forward(params):
    tokens = tokens_of((3, 12))
    full, _ = forward(CONFIG, params, tokens)
    cache = init_cache(CONFIG, 3, 16)
    parts = []
    for start, stop in [(0, 5), (5, 6), (6, 7), (7, 12)]:
        logits, cache = forward(CONFIG, params, tokens[:, start:stop], cache=cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full, atol=1e-5)
    assert int(cache.length) == 12


def test_forked_cache_continues_each_row_as_its_own(params):
    prompts, continuations = tokens_of((2, 5)), tokens_of((6, 4), seed=1)
    _, cache = forward(CONFIG, params, prompts, cache=init_cache(CONFIG, 2, 5))
    logits, _ = forward(CONFIG, params, continuations, cache=cache.fork(3, 9))
    full, _ = forward(CONFIG, params, jnp.concatenate([jnp.repeat(prompts, 3, axis=0), continuations], axis=1))
    np.testing.assert_allclose(logits, full[:, 5:], atol=1e-5)


def test_a_logit_depends_on_earlier_tokens_only(params):
    tokens = tokens_of((1, 8))

    def embedded(embedding_TD):
        # Token t is looked up as row t of a private embedding, so that its gradient belongs to position t alone.
        private = params | {"embed_tokens": embedding_TD}
        return hidden_states(CONFIG, private, jnp.arange(8)[None])[0][0]

    jacobian = jax.jit(jax.jacobian(embedded))(params["embed_tokens"][tokens[0]])  # [T out, D, T in, D]
    influence = np.abs(np.asarray(jacobian)).max(axis=(1, 3))
    assert np.all(influence[np.triu_indices(8, 1)] == 0)
    assert np.all(influence[np.tril_indices(8)] > 0)


def test_rows_do_not_see_each_other(params):
    tokens = tokens_of((3, 7))
    together, _ = forward(CONFIG, params, tokens)
    changed, _ = forward(CONFIG, params, tokens.at[1].set(0))
    np.testing.assert_array_equal(together[0], changed[0])
    np.testing.assert_array_equal(together[2], changed[2])


@pytest.mark.parametrize("cached", [False, True])
def test_left_padding_changes_nothing(params, cached):
    tokens = tokens_of((2, 6))
    plain, _ = forward(CONFIG, params, tokens)
    padded = jnp.pad(tokens, ((0, 0), (4, 0)), constant_values=3)
    mask = jnp.broadcast_to(jnp.arange(10) >= 4, (2, 10))
    cache = init_cache(CONFIG, 2, 12) if cached else None
    logits, cache = forward(CONFIG, params, padded, mask_BT=mask, cache=cache)
    np.testing.assert_allclose(logits[:, 4:], plain, atol=1e-5)
    assert bool(jnp.all(jnp.isfinite(logits)))
    if cached:
        token = tokens_of((2, 1), seed=5)
        continued, _ = forward(CONFIG, params, token, cache=cache)
        full, _ = forward(CONFIG, params, jnp.concatenate([tokens, token], axis=1))
        np.testing.assert_allclose(continued[:, 0], full[:, -1], atol=1e-5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_neither_value_nor_gradient(params, remat):
    tokens = tokens_of((2, 6))

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.value_and_grad, argnums=1)
    def loss(config, params):
        return jnp.mean(jnp.square(eager_forward(config, params, tokens)[0]))

    plain = loss(CONFIG, params)
    again = loss(dataclasses.replace(CONFIG, remat=remat), params)
    chex.assert_trees_all_close(plain, again, rtol=1e-5, atol=1e-7)


def test_bfloat16_is_near_float32_and_gives_float32_logits(params):
    tokens = tokens_of((2, 6))
    exact, _ = forward(CONFIG, params, tokens)
    rough, _ = forward(dataclasses.replace(CONFIG, dtype="bfloat16"), params, tokens)
    assert rough.dtype == jnp.float32
    difference = np.abs(np.asarray(rough - exact))
    assert 0 < difference.max() < 0.1 * float(jnp.std(exact))


def test_logical_axes_name_every_dimension(params):
    axes = logical_axes(CONFIG)
    named = jax.tree.map(lambda x, names: len(names) == x.ndim, params, axes)
    assert all(jax.tree.leaves(named))
    assert axes["layers"]["self_attn"]["q_proj"] == ("layers", "embed", "heads", "head_dim")


def test_unembed_is_the_last_step_of_forward(params):
    tokens = tokens_of((2, 3))
    logits = jax.jit(lambda p: unembed(CONFIG, p, hidden_states(CONFIG, p, tokens)[0]))(params)
    np.testing.assert_array_equal(logits, forward(CONFIG, params, tokens)[0])


@pytest.mark.parametrize("tied", [True, False])
def test_logits_in_bfloat16_have_a_gradient_summed_in_float32(tied):
    """Against float64; a table that was rounded before gives the same, and takes none of the gradient."""
    config = dataclasses.replace(CONFIG, dtype="bfloat16", tie_word_embeddings=tied)
    output = output_params(config, init(config, jax.random.key(4)))
    rng = np.random.default_rng(4)
    hidden, weights = rng.normal(size=(4, 50, config.hidden_size)), rng.normal(size=(4, 50, config.vocab_size))
    rounded_weights = weights.astype(jnp.bfloat16).astype(np.float64)
    hidden = jnp.asarray(hidden, jnp.bfloat16)

    def total(hidden, output, rounded):
        return jnp.sum(unembed(config, output | rounded, hidden) * weights.astype(np.float32))

    rounded = rounded_output(config, output)
    by_hidden, by_output = jax.jit(jax.grad(total, argnums=(0, 1)))(hidden, output, {})
    same = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(hidden, output, rounded)
    jax.tree.map(np.testing.assert_array_equal, (by_hidden, by_output), same[:2])
    assert all(not np.any(x) for x in jax.tree.leaves(same[2]))
    (table,), (by_table,) = output.values(), by_output.values()
    exact = np.einsum("BTV,BTD->VD" if tied else "BTV,BTD->DV", rounded_weights, np.asarray(hidden, np.float64))
    assert by_table.dtype == table.dtype == np.float32
    np.testing.assert_allclose(by_table, exact, atol=1e-5 * np.abs(exact).max())
    exact = np.einsum("BTV,VD->BTD" if tied else "BTV,DV->BTD", rounded_weights, np.asarray(table, jnp.bfloat16))
    np.testing.assert_allclose(np.asarray(by_hidden, np.float64), exact, rtol=2**-7, atol=2**-7 * np.abs(exact).max())


def test_scanned_and_unrolled_layers_agree(monkeypatch):
    config = dataclasses.replace(CONFIG, num_hidden_layers=3)
    params = init(config, jax.random.key(2))
    tokens = tokens_of((2, 6))
    unrolled, _ = eager_forward(config, params, tokens)
    for name in ("_MAX_UNROLLED_LAYERS", "_MAX_UNROLLED_LAYERS_ON_CPU"):
        monkeypatch.setattr(sys.modules["polyepo_jax.model.transformer"], name, 0)
    scanned, _ = eager_forward(config, params, tokens)
    np.testing.assert_allclose(scanned, unrolled, atol=1e-5)


def test_depth_does_not_lengthen_the_program():
    def program(num_layers):
        config = dataclasses.replace(CONFIG, num_hidden_layers=num_layers)
        params = jax.eval_shape(lambda: eager_init(config, jax.random.key(0)))
        return jax.jit(eager_forward, static_argnums=0).lower(config, params, jnp.zeros((1, 4), int)).as_text()

    # Up to 32 layers are unrolled on CPUs.
    assert len(program(33).splitlines()) == len(program(40).splitlines())


def test_refuses_impossible_shapes():
    with pytest.raises(ValueError, match="multiple of"):
        dataclasses.replace(CONFIG, num_key_value_heads=3)
    with pytest.raises(ValueError, match="even"):
        dataclasses.replace(CONFIG, head_dim=7)
    with pytest.raises(ValueError, match="num_hidden_layers must be at least 1"):
        dataclasses.replace(CONFIG, num_hidden_layers=0)
    with pytest.raises(ValueError, match="do not fit into a cache of 4"):
        forward(CONFIG, init(CONFIG, jax.random.key(0)), tokens_of((1, 5)), cache=init_cache(CONFIG, 1, 4))
