"""The kernels of whole sequences against `attend`; prefill."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from polyepo_jax.model import ModelConfig, forward, hidden_states, init, init_cache, prefill
from polyepo_jax.model import attention as module
from polyepo_jax.model.attention import attend, cudnn_attend, kernel_of, self_attend, splash_attend
from polyepo_jax.sharding import AXES, MeshConfig, make_mesh

forward = jax.jit(forward, static_argnums=0)
hidden_states = jax.jit(hidden_states, static_argnums=0)
prefill = jax.jit(prefill, static_argnums=0)


def rows_of_all_kinds(length: int) -> np.ndarray:
    """Masks: no padding; a left-padded prompt with a right-padded completion; padding left; right; a row of nothing."""
    slots = np.arange(length)
    third = length // 3
    kinds = (
        slots >= 0,
        (slots >= third) & (slots < length - third),
        slots >= length - 1 - third,
        slots <= third,
        slots < 0,
    )
    return np.stack(kinds)


def random_inputs(length: int, heads: int, kv_heads: int, head_dim: int, dtype="float32", rows: int = 5):
    """Query, keys, values and the cotangent of what is attended. Scores spread over several units."""
    rng = np.random.default_rng(length + heads)
    shapes = [(rows, length, h, head_dim) for h in (heads, kv_heads, kv_heads, heads)]
    query, *others = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return 2 * query, *others


def reference(query, keys, values, mask_BT):
    """Every query with every key, those after it and padding masked."""
    causal_TT = jnp.asarray(np.tri(query.shape[1], dtype=bool))
    return attend(query, keys, values, mask_BT[:, None, :] & causal_TT[None])


def value_and_gradients(function, inputs, mask_BT):
    """What real tokens get, zero on padding; and the gradients by query, keys and values, whole."""
    *arrays, cotangent = inputs
    mask_BT = jnp.asarray(mask_BT)

    def weighted(*arrays):
        attended = function(*arrays, mask_BT)
        # Multiplied, not selected: a NaN on padding, in the value or in the gradient, comes through.
        attended = attended * mask_BT[:, :, None, None]
        return jnp.sum((attended * cotangent).astype(jnp.promote_types(attended.dtype, jnp.float32))), attended

    (_, attended), gradients = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return attended, *gradients


def assert_equals_reference(function, inputs, mask_BT, atol: float):
    expected = value_and_gradients(reference, inputs, mask_BT)
    actual = value_and_gradients(function, inputs, mask_BT)
    for name, x, y in zip(("attended", "query", "keys", "values"), actual, expected, strict=True):
        assert x.dtype == inputs[0].dtype
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=0, atol=atol, err_msg=name)
    # The comparison is of something: tokens with several others to look at.
    if inputs[0].shape[1] > 2:
        assert all(float(jnp.max(jnp.abs(y))) > 0.3 for y in expected)


# --- kernels ---


def test_blocks_whose_scores_are_kept_equal_the_reference_in_float64():
    assert len(module.query_blocks(150)) == 3
    with jax.enable_x64(True):
        inputs = random_inputs(150, 4, 2, 6, "float64")
        assert_equals_reference(functools.partial(self_attend, "xla"), inputs, rows_of_all_kinds(150), 1e-12)


# Below, at and above the block, multiples of it and others; above it, scores are computed again.
@pytest.mark.parametrize("length", [1, 8, 9, 29])
def test_blocked_equals_the_reference_in_float64(monkeypatch, length):
    monkeypatch.setattr(module, "KEPT_LENGTH", 8)
    with jax.enable_x64(True):
        inputs = random_inputs(length, 4, 2, 6, "float64")
        assert_equals_reference(functools.partial(self_attend, "xla"), inputs, rows_of_all_kinds(length), 1e-12)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2)])
def test_blocked_equals_the_reference_in_float32(monkeypatch, heads, kv_heads):
    monkeypatch.setattr(module, "KEPT_LENGTH", 16)
    inputs = random_inputs(24, heads, kv_heads, 10)
    assert_equals_reference(functools.partial(self_attend, "xla"), inputs, rows_of_all_kinds(24), 2e-5)


@pytest.mark.parametrize("length", [150, 1100])
def test_blocked_in_bfloat16_is_near_the_reference_in_float32(length):
    """Value and gradients, relative to the largest; scores kept, and computed again."""
    mask = rows_of_all_kinds(length)[:2]
    inputs = random_inputs(length, 4, 2, 24, rows=2)
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
    wide = [x.astype(jnp.float32) for x in rounded]
    expected = value_and_gradients(reference, wide, mask)
    actual = value_and_gradients(functools.partial(self_attend, "xla"), rounded, mask)
    for name, x, y in zip(("attended", "query", "keys", "values"), actual, expected, strict=True):
        assert x.dtype == jnp.bfloat16
        error = np.abs(np.asarray(x, np.float32) - np.asarray(y)) * mask[:, :, None, None]
        assert error.max() < 0.01 * np.abs(y).max(), name


def test_blocked_holds_no_square_of_scores():
    length = 4 * module.KEPT_LENGTH  # in eight blocks
    shape = jax.ShapeDtypeStruct((1, length, 1, 2), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, length), bool)

    gradient = jax.grad(lambda q, k, v, m: self_attend("xla", q, k, v, m).sum(), argnums=(0, 1, 2))
    program = str(jax.make_jaxpr(gradient)(shape, shape, shape, mask))
    sizes = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\w\[([\d,]+)\]", program)]
    assert max(sizes) == length / 8 * length

    def kept(length: int) -> int:
        arrays = [jax.ShapeDtypeStruct((1, length, 1, 2), jnp.float32)] * 3
        mask = jax.ShapeDtypeStruct((1, length), bool)
        pull_back = jax.eval_shape(
            lambda q, k, v, m: jax.vjp(lambda *x: self_attend("xla", *x, m), q, k, v)[1], *arrays, mask
        )
        return max(x.size for x in jax.tree.leaves(pull_back))

    assert kept(module.KEPT_LENGTH) == 128 * module.KEPT_LENGTH  # the last block's scores
    assert kept(module.KEPT_LENGTH + 1) == 2 * (module.KEPT_LENGTH + 1)  # no more than queries


# Shorter than the kernel's lanes, and over three of its blocks; heads narrower than the lanes, and as wide.
@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "head_dim"), [(40, 4, 2, 64), (300, 2, 1, 128), (500, 2, 2, 16)]
)
def test_splash_equals_the_reference(length, heads, kv_heads, head_dim):
    inputs = random_inputs(length, heads, kv_heads, head_dim)
    function = functools.partial(splash_attend, interpret=True)
    assert_equals_reference(function, inputs, rows_of_all_kinds(length), 5e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3)])
def test_the_call_of_cudnn_equals_the_reference(heads, kv_heads):
    inputs = random_inputs(21, heads, kv_heads, 16)
    function = functools.partial(cudnn_attend, implementation="xla")
    assert_equals_reference(function, inputs, rows_of_all_kinds(21), 2e-5)


def test_cudnn_is_given_what_it_takes(monkeypatch):
    """Which shows on a GPU only: of masks it takes none but [T, T], and it has no gradients for odd lengths."""
    calls = []
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, *_, **named: calls.append((q, named)) or q)
    inputs = random_inputs(21, 4, 2, 16)[:3]
    assert cudnn_attend(*inputs, jnp.asarray(rows_of_all_kinds(21))).shape == inputs[0].shape
    ((query, named),) = calls
    assert named["implementation"] == "cudnn"
    assert named["is_causal"]
    assert named.get("bias") is None
    assert named.get("mask") is None
    assert query.shape[1] == 22


def has_gpu() -> bool:
    try:
        return bool(jax.devices("gpu"))
    except RuntimeError:
        return False


# tests/conftest.py takes the CPU, wherever: `python -m pytest --noconftest tests/model/test_attention.py -k cudnn`.
@pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU, and to be run with --noconftest")
@pytest.mark.parametrize("length", [64, 200, 1025])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_cudnn_equals_the_reference_in_bfloat16(length, head_dim):
    mask_BT = rows_of_all_kinds(length)
    inputs = tuple(jnp.asarray(x, jnp.bfloat16) for x in random_inputs(length, 4, 2, head_dim))
    # Against float32 of the same rounded inputs: what is left is the kernel's own rounding.
    expected = value_and_gradients(reference, tuple(x.astype(jnp.float32) for x in inputs), mask_BT)
    actual = value_and_gradients(functools.partial(self_attend, "cudnn"), inputs, mask_BT)
    for name, x, y in zip(("attended", "query", "keys", "values"), actual, expected, strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y)
        assert x.shape == y.shape
        assert np.linalg.norm(x - y) < 0.02 * np.linalg.norm(y), name
        np.testing.assert_allclose(x, y, rtol=0, atol=0.03 * np.abs(y).max(), err_msg=name)


@pytest.mark.parametrize("kernel", ["xla", "cudnn", "splash"])
def test_a_kernel_is_called_with_the_rows_as_they_are(monkeypatch, kernel):
    """`self_attend` hands on; which function runs is seen by a mark that each leaves."""
    for name, function in {"xla": "_blocked", "cudnn": "cudnn_attend", "splash": "splash_attend"}.items():
        monkeypatch.setattr(module, function, lambda *arrays, name=name: (name, *arrays))
    inputs = *random_inputs(4, 2, 1, 2)[:3], np.ones((5, 4), bool)
    chosen, *arrays = self_attend(kernel, *inputs)
    assert chosen == kernel
    for x, y in zip(arrays, inputs, strict=True):
        np.testing.assert_array_equal(x, y)


# --- splash on a mesh ---


@pytest.mark.parametrize(
    ("mesh", "rows", "heads", "kv_heads"),
    [
        (MeshConfig(data=2, fsdp=2, tensor=2), 4, 4, 2),
        (MeshConfig(data=1, fsdp=4, tensor=2), 3, 2, 2),  # rows that do not divide: copied
        (MeshConfig(data=1, fsdp=2, tensor=4), 2, 8, 2),  # key/value heads that do not, though query heads do
    ],
)
def test_splash_on_a_mesh_equals_one_device(monkeypatch, mesh, rows, heads, kv_heads):
    monkeypatch.setattr(module, "splash_attend", functools.partial(splash_attend, interpret=True))
    inputs = random_inputs(20, heads, kv_heads, 8, rows=rows)[:3]
    mask_BT = jnp.asarray(rows_of_all_kinds(20)[1 : 1 + rows])
    with jax.set_mesh(make_mesh(mesh)):
        attended = jax.jit(functools.partial(self_attend, "splash"))(*inputs, mask_BT)
    expected = jax.jit(reference)(*inputs, mask_BT)
    real = np.asarray(mask_BT)
    np.testing.assert_allclose(np.asarray(attended)[real], np.asarray(expected)[real], rtol=0, atol=2e-5)
    if rows == 4:
        assert not attended.sharding.is_fully_replicated


# --- choice of the kernel ---

CONFIG = ModelConfig(
    vocab_size=31,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,
)
ROUGH = dataclasses.replace(CONFIG, dtype="bfloat16")


def mesh_of(platform: str) -> AbstractMesh:
    device = jax.sharding.AbstractDevice(device_kind="some", num_cores=None, platform=platform)
    return AbstractMesh((1, 1, 1), AXES, abstract_device=device)


@pytest.mark.parametrize(
    ("platform", "config", "kernel"),
    [
        ("tpu", CONFIG, "splash"),
        ("tpu", ROUGH, "splash"),
        ("gpu", CONFIG, "xla"),  # cuDNN has no float32
        ("gpu", ROUGH, "cudnn"),
        ("cpu", CONFIG, "xla"),
        ("cpu", ROUGH, "xla"),
        ("tpu", dataclasses.replace(CONFIG, attention="xla"), "xla"),
        ("cpu", dataclasses.replace(CONFIG, attention="splash"), "splash"),
        ("cpu", dataclasses.replace(ROUGH, attention="cudnn"), "cudnn"),
    ],
)
def test_kernel_of_the_mesh_in_use(platform, config, kernel):
    with jax.sharding.use_abstract_mesh(mesh_of(platform)):
        assert kernel_of(config) == kernel
        # Also within a trace, where the model asks.
        seen = []
        jax.eval_shape(lambda: seen.append(kernel_of(config)))
        assert seen == [kernel]


def test_kernel_without_a_mesh_is_that_of_this_process():
    assert kernel_of(ROUGH) == {"cpu": "xla", "gpu": "cudnn", "tpu": "splash"}[jax.default_backend()]


def test_kernel_on_real_devices():
    with jax.set_mesh(make_mesh(MeshConfig())):
        assert kernel_of(CONFIG) == {"cpu": "xla", "gpu": "xla", "tpu": "splash"}[jax.default_backend()]


# --- prefill ---


@pytest.fixture(scope="module")
def params():
    # Scales other than 1, so that a norm applied wrongly is seen.
    rng = np.random.default_rng(1)

    def random(path, x):
        value = rng.standard_normal(x.shape)
        return ((1 + 0.1 * value) if path[-1].key == "scale" else 0.2 * value).astype(np.float32)

    return jax.tree.map_with_path(random, jax.eval_shape(lambda: init(CONFIG, jax.random.key(0))))


@pytest.fixture(scope="module")
def prompts():
    """Left-padded, one of them without padding."""
    tokens = jax.random.randint(jax.random.key(3), (3, 9), 0, CONFIG.vocab_size)
    return tokens, jnp.arange(9)[None] >= jnp.array([[5], [0], [8]])


def test_prefill_equals_hidden_states_with_an_empty_cache(params, prompts):
    tokens, mask = prompts
    expected, expected_cache = hidden_states(CONFIG, params, tokens, cache=init_cache(CONFIG, 3, 9), mask_BT=mask)
    hidden, cache = prefill(CONFIG, params, tokens, mask)
    assert hidden.dtype == expected.dtype
    np.testing.assert_allclose(hidden[mask], expected[mask], atol=1e-5)
    np.testing.assert_array_equal(cache.mask_BC, expected_cache.mask_BC)
    assert int(cache.length) == int(expected_cache.length) == 9
    for field in ("keys_LBCKA", "values_LBCKA"):
        ours, theirs = getattr(cache, field), getattr(expected_cache, field)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(ours[:, mask], theirs[:, mask], atol=1e-5, err_msg=field)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in (hidden, cache.keys_LBCKA, cache.values_LBCKA))


def test_the_cache_of_a_prefill_has_the_dtype_of_activations(params, prompts):
    hidden, cache = prefill(ROUGH, params, *prompts)
    assert hidden.dtype == cache.keys_LBCKA.dtype == cache.values_LBCKA.dtype == jnp.bfloat16


def test_continuing_a_prefill_equals_the_full_forward(params, prompts):
    copies = 2
    tokens, mask = prompts
    _, cache = prefill(CONFIG, params, tokens, mask)
    rest = jax.random.randint(jax.random.key(4), (3 * copies, 4), 0, CONFIG.vocab_size)
    cache = cache.fork(copies, 13)
    parts = []
    for start, stop in ((0, 1), (1, 2), (2, 3), (3, 4)):
        logits, cache = forward(CONFIG, params, rest[:, start:stop], cache=cache)
        parts.append(logits)
    whole = jnp.concatenate([jnp.repeat(tokens, copies, axis=0), rest], axis=1)
    whole_mask = jnp.pad(jnp.repeat(mask, copies, axis=0), ((0, 0), (0, 4)), constant_values=True)
    full, _ = forward(CONFIG, params, whole, mask_BT=whole_mask)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full[:, 9:], atol=1e-5)
    # A row alone and without padding: neither side of the comparison above is one.
    alone, _ = forward(CONFIG, params, whole[:1, 5:])
    np.testing.assert_allclose(full[0, 9:], alone[0, 4:], atol=1e-5)
