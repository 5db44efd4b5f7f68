"""One update is the same update on every mesh and for every cut into micro-batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polyepo_jax.losses import PolicyLoss
from polyepo_jax.model import LoRA, init, logical_axes, split
from polyepo_jax.planning.hlo import collectives, dot_flops
from polyepo_jax.sharding import MeshConfig, make_mesh, param_shardings, shard_rows
from polyepo_jax.training.update import UpdateSpec, init_state, state_shardings, train_step
from tests.training.test_update import MODEL, PROMPT, ROWS, SPEC, make_batch

# data, fsdp, tensor; two that cut by all of them, and those that show by which it goes wrong
ALL_MESHES = ((2, 2, 2), (1, 4, 2), (8, 1, 1), (4, 2, 1), (1, 1, 8))


def most_slow(num_quick):
    return [*ALL_MESHES[:num_quick], *(pytest.param(axes, marks=pytest.mark.slow) for axes in ALL_MESHES[num_quick:])]


MICRO_BATCHES = [None, 4, 2, 1]
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


@dataclasses.dataclass(frozen=True)
class SGD:
    """At learning rate 1 a parameter moves by its gradient: a comparison of parameters is one of gradients."""

    schedule = staticmethod(optax.constant_schedule)

    def build(self, learning_rate):
        return optax.sgd(self.schedule(learning_rate))


def case(dtype, skip_zero_advantage=False, lora=None):
    """The update's spec, parameters and batch."""
    model = dataclasses.replace(MODEL, dtype=dtype, param_dtype=dtype, num_hidden_layers=1, lora=lora)
    spec = UpdateSpec(
        model, PolicyLoss(), SGD(), 1.0, PROMPT, max_logits=SPEC.max_logits, skip_zero_advantage=skip_zero_advantage
    )
    params = jax.jit(init, static_argnums=0)(model, jax.random.key(0))
    if lora is not None:  # the second of each pair is 0 at first, and the first then has no gradient
        keys = iter(jax.random.split(jax.random.key(1), 99))
        params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape, x.dtype), params)
    return spec, params, make_batch(np.dtype(dtype))


def updated(spec, params, batch, mesh=None):
    """Parameters and statistics after an update, on the host."""
    trained, frozen = split(params)
    state = init_state(spec, jax.tree.map(jnp.copy, trained))
    if mesh is None:
        return jax.device_get(train_step(spec, state, batch, (), frozen))
    state = jax.device_put(state, state_shardings(spec, mesh))
    if frozen:
        frozen = jax.device_put(frozen, split(param_shardings(mesh, logical_axes(spec.model)))[1])
    with jax.set_mesh(mesh):
        state, stats = train_step(spec, state, shard_rows(mesh, batch), (), frozen)
    by_tensor, by_fsdp = ("up_proj_lora_b", "up_proj_lora_a") if frozen else ("up_proj", "up_proj")
    if mesh.shape["tensor"] > 1:
        assert "tensor" in state.params["layers"]["mlp"][by_tensor].sharding.spec
    if mesh.shape["fsdp"] > 1:
        assert "fsdp" in jax.tree.leaves(tuple(state.params["layers"]["mlp"][by_fsdp].sharding.spec))
    return jax.device_get((state, stats))


def assert_same_update(actual, expected, params, tolerance):
    gradient_norm = float(expected[1]["grad_norm"])
    assert gradient_norm > 1e-2
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, actual[0].params, expected[0].params))
    assert float(difference) < tolerance * gradient_norm
    assert abs(float(actual[1]["loss"] - expected[1]["loss"])) < tolerance * gradient_norm
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, expected[0].params, split(params)[0]))
    assert float(moved) == pytest.approx(gradient_norm, rel=1e-4)


# What is wrong shows in float64; float32 is the same programs once more.
@pytest.mark.parametrize(
    ("dtype", "micro_batches"),
    [
        ("float64", (None, 2)),
        pytest.param("float64", (4, 1), marks=pytest.mark.slow),
        pytest.param("float32", MICRO_BATCHES, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("axes", most_slow(2), ids=str)
def test_an_update_does_not_depend_on_mesh_or_micro_batches(axes, dtype, micro_batches):
    with jax.enable_x64(dtype == "float64"):
        spec, params, batch = case(dtype)
        expected = updated(spec, params, batch)
        mesh = make_mesh(MeshConfig(*axes))
        for micro_batch_rows in micro_batches:
            cut = dataclasses.replace(spec, micro_batch_rows=micro_batch_rows)
            actual = updated(cut, params, batch, mesh)
            assert_same_update(actual, expected, params, TOLERANCE[dtype])
            for name in ("ratio_mean", "ratio_max"):
                assert float(actual[1][name]) == pytest.approx(float(expected[1][name]), rel=TOLERANCE[dtype])


@pytest.mark.parametrize("axes", most_slow(1), ids=str)
def test_an_update_of_adapters_does_not_depend_on_mesh_or_micro_batches(axes):
    with jax.enable_x64(True):
        spec, params, batch = case("float64", lora=LoRA(3, 4.0))
        expected = updated(spec, params, batch)
        mesh = make_mesh(MeshConfig(*axes))
        for micro_batch_rows in (None, 2):
            actual = updated(dataclasses.replace(spec, micro_batch_rows=micro_batch_rows), params, batch, mesh)
            assert_same_update(actual, expected, params, TOLERANCE["float64"])


IDLE = np.array([0, 2, 3, 5, 7])  # rows without advantage; more than two micro-batches of two


def with_idle_rows(batch):
    return dataclasses.replace(batch, advantages_B=batch.advantages_B.at[IDLE].set(0))


@pytest.mark.parametrize("axes", [None, (2, 2, 2)])
def test_skipping_rows_without_advantage_changes_nothing(axes):
    mesh = None if axes is None else make_mesh(MeshConfig(*axes))
    with jax.enable_x64(True):
        spec, params, batch = case("float64")
        batch = with_idle_rows(batch)
        expected = updated(spec, params, batch)
        skip = dataclasses.replace(spec, skip_zero_advantage=True, micro_batch_rows=2)
        actual = updated(skip, params, batch, mesh)
        assert_same_update(actual, expected, params, 1e-12)
        computed = np.setdiff1d(np.arange(ROWS), IDLE)
        assert int(actual[1]["tokens"]) == np.asarray(batch.mask_BT)[computed].sum()
        assert int(expected[1]["tokens"]) == np.asarray(batch.mask_BT).sum()


def test_skipped_rows_are_not_computed():
    with jax.enable_x64(True):
        spec, params, batch = case("float64")
        batch = with_idle_rows(batch)
        expected = updated(spec, params, batch)
        # A logprob that is not a number would reach the loss of any row that is computed, also at advantage 0.
        poisoned = dataclasses.replace(batch, sampler_logprobs_BT=batch.sampler_logprobs_BT.at[IDLE[1:]].set(jnp.nan))
        skip = dataclasses.replace(spec, skip_zero_advantage=True, micro_batch_rows=2)
        assert_same_update(updated(skip, params, poisoned), expected, params, 1e-12)
        assert int(updated(spec, params, poisoned)[1]["nonfinite"]) == 1


def test_rows_without_trained_tokens_are_skipped_too():
    with jax.enable_x64(True):
        spec, params, batch = case("float64")
        masked = dataclasses.replace(batch, loss_mask_BT=batch.loss_mask_BT.at[:6].set(False))
        skip = dataclasses.replace(spec, skip_zero_advantage=True, micro_batch_rows=2)
        actual = updated(skip, params, masked)
        assert_same_update(actual, updated(spec, params, masked), params, 1e-12)
        assert int(actual[1]["tokens"]) == np.asarray(masked.mask_BT)[6:].sum()


def test_a_batch_without_any_advantage_moves_nothing():
    spec, params, batch = case("float32")
    skip = dataclasses.replace(spec, skip_zero_advantage=True, micro_batch_rows=2)
    state, stats = updated(skip, params, dataclasses.replace(batch, advantages_B=jnp.zeros(ROWS)))
    assert (float(stats["loss"]), float(stats["grad_norm"]), int(stats["tokens"])) == (0, 0, 0)
    assert np.isnan(stats["sampler_gap"])
    jax.tree.map(np.testing.assert_array_equal, state.params, jax.device_get(params))


def test_an_advantage_that_is_no_number_is_not_skipped():
    spec, params, batch = case("float32")
    skip = dataclasses.replace(spec, skip_zero_advantage=True, micro_batch_rows=2)
    broken = dataclasses.replace(batch, advantages_B=jnp.zeros(ROWS).at[3].set(jnp.nan))
    assert int(updated(skip, params, broken)[1]["nonfinite"]) == 1


def test_skipping_is_refused_with_a_kl_term():
    with pytest.raises(ValueError, match="skip_zero_advantage needs beta = 0"):
        dataclasses.replace(SPEC, loss=PolicyLoss(beta=0.1), skip_zero_advantage=True)


def test_bfloat16_rounds_alike_on_a_mesh():
    """Parameters in float32, a table that is rounded once for all chunks."""
    spec, params, batch = case("float32")
    spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, dtype="bfloat16"))
    expected, _ = updated(spec, params, batch)
    cut = dataclasses.replace(spec, micro_batch_rows=4)
    actual, _ = updated(cut, params, batch, make_mesh(MeshConfig(2, 2, 1), jax.devices()[:4]))

    def assert_near(actual, expected, before):
        changes = expected - before
        np.testing.assert_allclose(actual - before, changes, rtol=0, atol=0.05 * np.abs(changes).max())

    jax.tree.map(assert_near, actual.params, expected.params, jax.device_get(params))


def test_nothing_is_sent_for_a_chunk_of_logits():
    """However many there are: the output table's gradient is summed over the devices once a micro-batch."""
    spec, params, batch = case("float32")
    spec = dataclasses.replace(spec, micro_batch_rows=4)
    mesh = make_mesh(MeshConfig(2, 2, 1), jax.devices()[:4])
    state = jax.device_put(init_state(spec, params), state_shardings(spec, mesh))
    with jax.set_mesh(mesh):
        text = train_step.lower(spec, state, shard_rows(mesh, batch)).compile().as_text()
    assert dot_flops(text, 2, 1) < dot_flops(text, 2, 100)  # of the chunks, whose number it does not say
    assert collectives(text, 2, 1) == collectives(text, 2, 100)
