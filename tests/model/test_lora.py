"""Low-rank adapters in a model: their numbers by hand, what they start from, how they are merged."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyepo_jax.config.files import from_json, to_json
from polyepo_jax.model import LoRA, ModelNumerics, forward, init, joined, merged, split, unstacked, without_adapters
from polyepo_jax.model.config import TARGETS
from tests.hf_directories import assert_same_bits
from tests.training.test_update import MODEL as PLAIN

LORA = LoRA(3, 5.0)
MODEL = dataclasses.replace(PLAIN, lora=LORA, num_attention_heads=4, num_key_value_heads=2)
TOKENS = jnp.arange(12)[None] % 16
make = jax.jit(init, static_argnums=0)
logits_of = jax.jit(lambda config, params: forward(config, params, TOKENS)[0], static_argnums=0)


def perturbed(params, size=0.3):
    """With other numbers everywhere, so that no adapter is 0 and no scale 1."""
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return jax.tree.map(lambda x: (x + size * jax.random.normal(next(keys), x.shape)).astype(x.dtype), params)


@pytest.fixture(scope="module")
def params():
    return make(MODEL, jax.random.key(0))


def names_of(tree) -> set[str]:
    return {path[-1].key for path, _ in jax.tree.leaves_with_path(tree)}


def test_new_adapters_change_nothing(params):
    plain = make(without_adapters(MODEL), jax.random.key(0))
    adapters, frozen = split(params)
    assert_same_bits(frozen, plain)
    assert_same_bits(joined(adapters, frozen), params)
    assert names_of(adapters) == {f"{name}_lora_{x}" for name in TARGETS for x in "ab"}
    assert_same_bits(merged(MODEL, params)[1], plain)
    with jax.disable_jit():  # each operation by itself: no product is cut otherwise for what stands beside it
        np.testing.assert_array_equal(logits_of(MODEL, params), logits_of(PLAIN_OF_MODEL, plain))


PLAIN_OF_MODEL = without_adapters(MODEL)


def test_adapters_are_initialised_as_pefts_are(params):
    """Uniform within 1 / sqrt(inputs), which is Kaiming's with a = sqrt(5); and 0."""
    layers = params["layers"]
    for part, name, inputs in (("self_attn", "q_proj", 16), ("self_attn", "o_proj", 16), ("mlp", "down_proj", 24)):
        a, b = (np.asarray(layers[part][f"{name}_lora_{x}"]) for x in "ab")
        assert a.shape[0] == b.shape[0] == 2
        assert a.shape[-1] == b.shape[1] == 3
        assert np.abs(a).max() <= inputs**-0.5
        assert np.abs(a).max() > 0.9 * inputs**-0.5
        assert a.std() == pytest.approx(inputs**-0.5 / math.sqrt(3), rel=0.15)
        assert not b.any()
        assert not np.array_equal(a[0], a[1])


def test_without_adapters_all_is_trained():
    plain = make(PLAIN_OF_MODEL, jax.random.key(0))
    assert split(plain) == (plain, ())
    assert joined(plain, ()) is plain
    assert merged(PLAIN_OF_MODEL, plain) == (PLAIN_OF_MODEL, plain)
    assert without_adapters(PLAIN_OF_MODEL) == PLAIN_OF_MODEL


@pytest.mark.parametrize("stabilized", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_merged_weights_are_the_sum_by_hand(params, stabilized):
    config = dataclasses.replace(MODEL, lora=dataclasses.replace(LORA, rank_stabilized=stabilized))
    scale = 5 / math.sqrt(3) if stabilized else 5 / 3
    params = perturbed(params)
    plain, whole = merged(config, params)
    assert plain == PLAIN_OF_MODEL
    for part in ("self_attn", "mlp"):
        theirs, ours = params["layers"][part], whole["layers"][part]
        assert not [name for name in ours if "lora" in name]
        for name in TARGETS:
            if name not in ours:
                continue
            weight, a, b = (np.asarray(theirs[name + x], np.float64) for x in ("", "_lora_a", "_lora_b"))
            for layer in range(2):
                delta = a[layer].reshape(-1, 3) @ b[layer].reshape(3, -1)
                expected = weight[layer] + scale * delta.reshape(weight[layer].shape)
                np.testing.assert_allclose(ours[name][layer], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(logits_of(plain, whole), logits_of(config, params), rtol=0, atol=2e-5)
    assert np.abs(logits_of(plain, split(params)[1]) - logits_of(plain, whole)).max() > 0.1
    in_a_tuple = unstacked(whole)["layers"]
    for one, other in zip(in_a_tuple, merged(config, unstacked(params))[1]["layers"], strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), one, other)


def test_a_merged_weight_is_rounded_once():
    """1 + 2^-8 + 2^-9 is nearest to 1 + 2^-7 in bfloat16; by themselves either of the two is lost."""
    config = dataclasses.replace(MODEL, dtype="bfloat16", lora=LoRA(2, 2.0, ("up_proj",)))
    params = make(config, jax.random.key(0))
    mlp = params["layers"]["mlp"]
    assert (mlp["up_proj"].dtype, mlp["up_proj_lora_a"].dtype) == ("bfloat16", "float32")
    assert {x.dtype.name for x in jax.tree.leaves(split(params)[1])} == {"bfloat16"}
    mlp["up_proj"] = jnp.ones_like(mlp["up_proj"])
    mlp["up_proj_lora_a"] = jnp.full_like(mlp["up_proj_lora_a"], 1.0)
    mlp["up_proj_lora_b"] = mlp["up_proj_lora_b"].at[:, 0].set(2.0**-8).at[:, 1].set(2.0**-9)
    up = merged(config, params)[1]["layers"]["mlp"]["up_proj"]
    assert up.dtype == "bfloat16"
    np.testing.assert_array_equal(np.asarray(up, np.float32), 1 + 2.0**-7)


def test_only_targets_have_adapters():
    config = dataclasses.replace(MODEL, lora=LoRA(2, targets=("down_proj", "k_proj")))
    adapters, _ = split(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    assert names_of(adapters) == {"down_proj_lora_a", "down_proj_lora_b", "k_proj_lora_a", "k_proj_lora_b"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": ("q_proj", "qkv")}, "targets has 'qkv': .*q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj"),
        ({"targets": ()}, r"targets is \(\): it takes one or several of q_proj"),
        ({"targets": ("q_proj", "q_proj")}, ".*each once"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": -3}, "rank must be at least 1, got -3"),
        ({"alpha": 0.0}, "alpha must be a number above 0, got 0.0"),
        ({"alpha": math.inf}, "alpha must be a number above 0, got inf"),
        ({"alpha": math.nan}, "alpha must be a number above 0, got nan"),
    ],
)
def test_adapters_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"model.lora.{message}"):
        LoRA(**fields)


def test_a_rank_above_a_matrix_is_refused():
    """Key and value projections have 2 heads of 4."""
    with pytest.raises(ValueError, match=r"rank must be at most the smaller side .* got 9 for k_proj of 16 x 8"):
        dataclasses.replace(MODEL, lora=LoRA(9))
    assert dataclasses.replace(MODEL, lora=LoRA(9, targets=("q_proj", "down_proj"))).lora.rank == 9
    with pytest.raises(ValueError, match="got 17 for q_proj of 16 x 16"):
        dataclasses.replace(MODEL, lora=LoRA(17, targets=("q_proj",)))


def test_the_scale():
    assert LoRA().scale == 2.0
    assert LoRA(4, 8.0, rank_stabilized=True).scale == 4.0


def test_a_config_with_adapters_is_saved_and_read():
    for model in (MODEL, ModelNumerics(dtype="bfloat16", lora=LoRA(4, targets=("q_proj",)))):
        assert from_json(to_json(model), type(model)) == model
