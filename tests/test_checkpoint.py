"""Checkpoints by themselves: exact, sealed, never silently skipped, onto another mesh."""

import contextlib
import json

import chex
import grain
import jax
import numpy as np
import pytest

from polyepo_jax.checkpoint import Checkpoints
from polyepo_jax.losses import PolicyLoss
from polyepo_jax.model import init
from polyepo_jax.sharding import MeshConfig, make_mesh
from polyepo_jax.update import OptimizerConfig, UpdateSpec, init_state, state_shardings
from tests.tiny import MODEL

SPEC = UpdateSpec(MODEL, PolicyLoss(), OptimizerConfig(), learning_rate=1e-2, prompt_length=2)


def data():
    return iter(grain.MapDataset.range(100).shuffle(3).repeat().to_iter_dataset())


def state_at(step):
    """A state whose every number depends on the step; nothing of it is computed, so nothing is compiled."""
    abstract = jax.eval_shape(lambda: init_state(SPEC, init(MODEL, jax.random.key(0))))
    values = jax.tree.map(lambda x: np.arange(x.size, dtype=x.dtype).reshape(x.shape) + x.dtype.type(step), abstract)
    return jax.device_put(values, state_shardings(SPEC, make_mesh(MeshConfig(data=8))))


def opened(directory, **options):
    return contextlib.closing(Checkpoints(directory, **options))


def test_what_is_restored_is_what_was_saved_also_onto_another_mesh(tmp_path):
    iterator = data()
    for _ in range(5):
        next(iterator)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_at(3), iterator, {"fingerprint": "f"})
    expected = next(iterator)
    resumed, warnings = data(), []
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    with opened(tmp_path) as checkpoints:
        abstract = jax.eval_shape(lambda: state_at(0))
        state, meta = checkpoints.restore_latest(abstract, state_shardings(SPEC, mesh), resumed, warnings.append)
    chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(state_at(3)))
    assert state.params["norm"]["scale"].sharding.mesh == mesh
    assert next(resumed) == expected
    assert meta == {"fingerprint": "f"}
    assert warnings == []


def test_a_manifest_is_written_with_every_save_and_dropped_with_its_checkpoint(tmp_path):
    with opened(tmp_path, max_to_keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state_at(step), data(), {})
            checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
    assert sorted(p.name for p in (tmp_path / "manifests").iterdir()) == ["2.json", "3.json"]
    sums = json.loads((tmp_path / "manifests" / "3.json").read_text())
    files = [p for p in (tmp_path / "checkpoints" / "3").rglob("*") if p.is_file()]
    assert len(sums) == len(files)


def test_a_checkpoint_without_manifest_gets_one_when_it_is_restored(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_at(1), data(), {})
    (tmp_path / "manifests" / "1.json").unlink()
    with opened(tmp_path) as checkpoints:
        shardings = state_shardings(SPEC, make_mesh(MeshConfig(data=8)))
        assert checkpoints.restore_latest(jax.eval_shape(lambda: state_at(0)), shardings, data(), print) is not None
    assert (tmp_path / "manifests" / "1.json").exists()


def test_saving_a_step_twice_is_an_error(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_at(1), data(), {})
        with pytest.raises(RuntimeError, match="checkpoint 1 was not written"):
            checkpoints.save(state_at(1), data(), {})
    assert (tmp_path / "manifests" / "1.json").exists()


def test_a_failure_behind_the_scenes_is_raised(tmp_path, monkeypatch):
    def broken(directory):
        raise OSError("disk full")

    monkeypatch.setattr("polyepo_jax.checkpoint._checksums", broken)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(1), data(), {})
    with pytest.raises(OSError, match="disk full"):
        checkpoints.close()
