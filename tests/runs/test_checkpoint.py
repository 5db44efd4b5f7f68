"""Checkpoints by themselves: exact, sealed, never silently skipped, onto another mesh."""

import contextlib
import json
import math
import shutil
import sys
import types
import zlib

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint._src.futures.future import CommitFuture

from polyepo_jax.losses import PolicyLoss
from polyepo_jax.model import init
from polyepo_jax.runs.checkpoints import (
    IN_FLIGHT,
    CheckpointError,
    Checkpoints,
    RestoreError,
    SaveError,
    any_checkpoint,
    orbax_threads,
)
from polyepo_jax.runs.checkpoints.manifests import Manifests
from polyepo_jax.sharding import MeshConfig, make_mesh, row_sharding, shard_rows
from polyepo_jax.training.update import OptimizerConfig, UpdateSpec, init_state, state_shardings
from polyepo_jax.types import Rollouts
from tests.tiny import MODEL

SPEC = UpdateSpec(MODEL, PolicyLoss(), OptimizerConfig(), learning_rate=1e-2, prompt_length=2)


META = {"fingerprint": "f", "config_hash": "c", "data": {"next_index": 5}}


def state_at(step):
    """A state whose every number depends on the step; nothing of it is computed, so nothing is compiled."""
    abstract = jax.eval_shape(lambda: init_state(SPEC, init(MODEL, jax.random.key(0))))
    values = jax.tree.map(lambda x: np.arange(x.size, dtype=x.dtype).reshape(x.shape) + x.dtype.type(step), abstract)
    return jax.device_put(values, state_shardings(SPEC, make_mesh(MeshConfig(data=8))))


def opened(directory, **options):
    return contextlib.closing(Checkpoints(directory, **options))


def rollouts_at(step, num_prompts=8):
    """Rollouts whose every number depends on the step, on the mesh of `state_at`."""
    shape = num_prompts, 2, 3
    tokens = np.arange(math.prod(shape), dtype=np.int32).reshape(shape) + step
    rollouts = Rollouts(tokens, tokens % 3 == 0, np.float32(0.1) * tokens, tokens[:, :, 0] % 2 == 0)
    return shard_rows(make_mesh(MeshConfig(data=8)), rollouts)


def test_what_is_restored_is_what_was_saved_also_onto_another_mesh(tmp_path):
    in_flight = [rollouts_at(3), rollouts_at(4)]
    metas = {3: META, 4: META | {IN_FLIGHT: [{"num_steps": 2}, {"num_steps": 3}]}}
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_at(3), metas[3])
        checkpoints.save(state_at(4), metas[4], in_flight)
    assert not (tmp_path / "checkpoints" / "3" / IN_FLIGHT).exists()
    assert IN_FLIGHT not in json.loads((tmp_path / "manifests" / "3.json").read_text())
    warnings = []
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    place = row_sharding(mesh, 8)
    rollouts = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), in_flight[0])
    for step, expected in ((4, in_flight), (3, [])):
        with opened(tmp_path) as checkpoints:
            abstract = jax.eval_shape(lambda: state_at(0))
            state, restored, kept = checkpoints.restore_latest(
                abstract, state_shardings(SPEC, mesh), warnings.append, rollouts
            )
        chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(state_at(step)))
        assert state.params["norm"]["scale"].sharding.mesh == mesh
        assert restored == metas[step]
        chex.assert_trees_all_equal(jax.device_get(kept), jax.device_get(expected))
        assert all(x.sharding == place for x in jax.tree.leaves(kept))
        shutil.rmtree(tmp_path / "checkpoints" / "4", ignore_errors=True)
    assert warnings == []


def test_rollouts_of_another_shape_are_refused(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_at(1), META | {IN_FLIGHT: [{}]}, [rollouts_at(1)])
    arguments = jax.eval_shape(lambda: state_at(0)), state_shardings(SPEC, make_mesh(MeshConfig(data=8))), print
    refusal = r"its in_flight\['0'\]\['completion_mask_PNT'\] is bool\[8, 2, 3\], expected bool\[16, 2, 3\]"
    with opened(tmp_path) as checkpoints, pytest.raises(CheckpointError, match=refusal):
        checkpoints.restore_latest(*arguments, rollouts_at(1, num_prompts=16))
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_a_manifest_is_written_with_every_save_and_dropped_with_its_checkpoint(tmp_path):
    with opened(tmp_path, max_to_keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state_at(step), META)
            checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
    assert sorted(p.name for p in (tmp_path / "manifests").iterdir()) == ["2.json", "3.json"]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_a_manifest_says_what_a_checkpoint_holds(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_at(3), META)
    manifest = json.loads((tmp_path / "manifests" / "3.json").read_text())
    folder = tmp_path / "checkpoints" / "3"
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert manifest["files"] == {name: [len(content), zlib.crc32(content)] for name, content in files.items()}
    assert manifest["fingerprint"] == "f"
    assert manifest["config_hash"] == "c"
    assert manifest["params"]["['embed_tokens']"] == f"float32[{MODEL.vocab_size}, {MODEL.hidden_size}]"
    assert manifest["rest"]["['step']"] == "int32[]"
    assert len(manifest["params"]) == len(jax.tree.leaves(state_at(0).params))


def test_a_checkpoint_without_manifest_gets_one_when_it_is_restored(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_at(1), META)
    before = (tmp_path / "manifests" / "1.json").read_text()
    (tmp_path / "manifests" / "1.json").unlink()
    assert restored(tmp_path) is not None
    assert (tmp_path / "manifests" / "1.json").read_text() == before


def test_saving_a_step_twice_is_an_error(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_at(1), META)
        with pytest.raises(RuntimeError, match="checkpoint 1 was not written"):
            checkpoints.save(state_at(1), META)
    assert (tmp_path / "manifests" / "1.json").exists()


def restored(directory, warn=print):
    shardings = state_shardings(SPEC, make_mesh(MeshConfig(data=8)))
    with opened(directory) as checkpoints:
        return checkpoints.restore_latest(jax.eval_shape(lambda: state_at(0)), shardings, warn)


def written(directory, *steps):
    with opened(directory) as checkpoints:
        for step in steps:
            checkpoints.save(state_at(step), META)


def test_orbax_has_the_private_names_by_which_a_failed_save_ends_at_once(tmp_path):
    with opened(tmp_path) as checkpoints:
        manager = getattr(checkpoints._checkpointer, "_async_manager", None)
        lacking = [name for name in ("_thread", "_commit_futures") if not hasattr(manager, name)]
        assert not lacking, f"orbax {ocp.__version__} has no {lacking}: see runs/checkpoints/orbax_threads.py"
        checkpoints.save(state_at(1), META)
        commits = manager._commit_futures
        assert commits
        assert all(hasattr(commit, name) for commit in commits for name in ("cancel", "result"))
    orbax_threads._say_that_directories_are_made()


def other_orbax(monkeypatch):
    """An orbax that has not one of these names."""
    monkeypatch.setattr(orbax_threads, "_of_manager", lambda checkpointer, name: None)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint._src.futures.synchronization", None)


def test_where_orbax_has_other_names_its_end_is_waited_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint._src.futures.synchronization", None)
    with pytest.raises(ImportError):
        orbax_threads._say_that_directories_are_made()
    waited = []
    checkpointer = types.SimpleNamespace(wait_until_finished=lambda: waited.append(True))
    assert orbax_threads.writer_of(checkpointer) is None
    orbax_threads.abandon(checkpointer, timeout_s=1)
    assert waited == [True]


@pytest.mark.parametrize("orbax_is_known", [True, False])
def test_a_save_that_fails_behind_the_scenes_is_told_and_the_next_one_succeeds(tmp_path, monkeypatch, orbax_is_known):
    if not orbax_is_known:
        other_orbax(monkeypatch)
    real = Manifests.write

    def broken(self, save, contents):
        if save.step == 2:
            raise OSError(28, "No space left on device")
        real(self, save, contents)

    monkeypatch.setattr(Manifests, "write", broken)
    with opened(tmp_path, max_to_keep=1) as checkpoints:
        checkpoints.save(state_at(1), META)
        checkpoints.wait()
        checkpoints.save(state_at(2), META)
        with pytest.raises(SaveError, match="checkpoint 2 could not be written: No space left on device"):
            checkpoints.wait()
        assert 1 in checkpoints.steps()  # an older one is deleted only once a newer one is whole
        checkpoints.save(state_at(3), META)
        assert checkpoints.steps() == [3]


def test_orbax_that_fails_leaves_nothing_in_the_way(tmp_path, monkeypatch):
    written(tmp_path, 1)

    async def write_more(folder):
        folder.mkdir(parents=True)
        for i in range(300):
            (folder / str(i)).touch()

    def full(self, directory, *args, **kwargs):
        # What orbax had begun for the other items goes on in threads of its own.
        CommitFuture(write_more(tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-late"))
        raise OSError(28, "No space left on device", "somewhere")

    with opened(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(ocp.JsonCheckpointHandler, "async_save", full)
            checkpoints.save(state_at(2), META)
            assert (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-late" / "299").exists()
            assert checkpoints.failed
            with pytest.raises(SaveError, match="checkpoint 2 could not be written: No space left on device: some"):
                checkpoints.wait()
        assert checkpoints.steps() == [1]
        checkpoints.save(state_at(2), META)
        assert checkpoints.steps() == [1, 2]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


def test_where_nothing_can_be_written_is_found_out_before_orbax_is_asked(tmp_path):
    written(tmp_path, 1)
    with opened(tmp_path) as checkpoints:
        (tmp_path / "checkpoints" / "probe").mkdir()  # as root may write anywhere: in the way
        (tmp_path / "checkpoints" / "probe" / "file").touch()
        checkpoints._clean = lambda: None
        with pytest.raises(SaveError, match="checkpoint 2 could not be written: Is a directory"):
            checkpoints.save(state_at(2), META)
        assert checkpoints.steps() == [1]


def test_what_a_killed_process_left_is_removed(tmp_path):
    written(tmp_path, 1)
    for name in ("2.orbax-checkpoint-tmp-5", "0.deleted"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "part").touch()
    state, _, _ = restored(tmp_path)
    assert int(state.step) == 1
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]


def largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes instead of"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]), "the checksum of"),
    ],
    ids=["cut", "gone", "flipped"],
)
@pytest.mark.parametrize("item", ["params", "rest", "meta"])
def test_a_damaged_file_is_found_named_and_passed_over(tmp_path, item, damage, said):
    written(tmp_path, 1, 2)
    victim = largest_file(tmp_path / "checkpoints" / "2" / item)
    damage(victim)
    warnings = []
    state, _, _ = restored(tmp_path, warnings.append)
    assert int(state.step) == 1
    [warning] = warnings
    assert victim.name in warning
    assert said in warning
    assert "going on from checkpoint 1" in warning
    assert (tmp_path / "corrupt_checkpoints" / "2").is_dir()
    assert not (tmp_path / "manifests" / "2.json").exists()


def test_another_model_is_refused_and_nothing_is_put_aside(tmp_path):
    written(tmp_path, 1)
    manifest = tmp_path / "manifests" / "1.json"
    manifest.write_text(manifest.read_text().replace("float32[16, 16]", "float32[16, 32]"))
    with pytest.raises(CheckpointError, match=r"of another model.*is float32\[16, 32\], expected float32\[16, 16\]"):
        restored(tmp_path)
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_a_manifest_of_another_run_is_not_its_own(tmp_path):
    written(tmp_path, 1, 2)
    manifest = tmp_path / "manifests" / "2.json"
    manifest.write_text(manifest.read_text().replace('"fingerprint": "f"', '"fingerprint": "g"'))
    warnings = []
    state, _, _ = restored(tmp_path, warnings.append)
    assert int(state.step) == 1
    assert "its manifest is of another run: fingerprint g, not f" in warnings[0]


def test_only_the_newest_of_all_damaged_ones_is_no_start_from_scratch(tmp_path):
    written(tmp_path, 1)
    largest_file(tmp_path / "checkpoints" / "1" / "params").unlink()
    with pytest.raises(CheckpointError, match=r"none of the checkpoints \[1\]"):
        restored(tmp_path)
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_an_unfinished_one_in_object_storage_is_removed_and_takes_nobodys_place(tmp_path, monkeypatch):
    """There it has its final name, and a marker once it is whole."""
    written(tmp_path, 1, 2)
    unfinished = tmp_path / "checkpoints" / "3"
    monkeypatch.setattr("polyepo_jax.runs.checkpoints.files.is_url", lambda path: True)
    monkeypatch.setattr(ocp.utils, "is_checkpoint_finalized", lambda path: not (path / "unfinished").exists())

    def leave_unfinished():
        (unfinished / "params").mkdir(parents=True)
        (unfinished / "unfinished").touch()

    leave_unfinished()
    with opened(tmp_path, max_to_keep=2) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        leave_unfinished()
        checkpoints.save(state_at(4), META)
        assert checkpoints.steps() == [2, 4]
    assert not unfinished.exists()


def test_what_cannot_be_restored_without_being_damaged_is_not_moved(tmp_path, monkeypatch):
    """Fewer devices have less memory, and network file systems have bad moments."""
    written(tmp_path, 1, 2)
    for owner, place, error in (
        (Checkpoints, "_restored", jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")),
        (Manifests, "check_files", OSError(116, "Stale file handle")),
    ):

        def fail(*args, error=error, **kwargs):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(owner, place, fail)
            with pytest.raises(
                RestoreError, match=r"checkpoint 2 .* not damaged: .*(RESOURCE_EXH|Stale).*same command"
            ):
                restored(tmp_path)
    state, _, _ = restored(tmp_path)
    assert int(state.step) == 2


def test_a_directory_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("polyepo_jax.runs.checkpoints.files.children", fail)
    with pytest.raises(RestoreError, match="cannot be read: Input/output error"):
        any_checkpoint(tmp_path)


def test_what_a_user_keeps_beside_the_checkpoints_stays(tmp_path):
    written(tmp_path, 1)
    (tmp_path / "checkpoints" / "1.best").mkdir()
    (tmp_path / "checkpoints" / "1.best" / "part").touch()
    written(tmp_path, 2)
    assert (tmp_path / "checkpoints" / "1.best" / "part").exists()


def test_the_only_one_that_has_lost_its_parameters_is_no_start_from_scratch(tmp_path):
    written(tmp_path, 1)
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "params")
    with pytest.raises(CheckpointError, match=r"the checkpoints \[1\] .* were whole and have lost"):
        restored(tmp_path)
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_a_manifest_that_was_cut_off_is_damage(tmp_path):
    written(tmp_path, 1, 2)
    (tmp_path / "manifests" / "2.json").write_text("")
    warnings = []
    state, _, _ = restored(tmp_path, warnings.append)
    assert int(state.step) == 1
    assert "its manifest is no JSON" in warnings[0]
