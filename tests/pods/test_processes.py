"""Processes that find each other and agree; the arrays of a mesh that no process has whole."""

import dataclasses
import json
import math
import types

import numpy as np
import pytest

from polyepo_jax.errors import InputError, TransientError
from polyepo_jax.pods import collectives, processes
from polyepo_jax.pods.processes import Placement, placement
from polyepo_jax.sharding import MeshConfig, local_rows, make_mesh, row_owners, row_sharding
from tests import pod_worker
from tests.pod import Pod

FLAGS = ("--coordinator-address", "--num-processes", "--process-id")
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def test_flags_come_before_the_environment_which_may_fill_them_up():
    environment = dict(zip(VARIABLES, ("host:1", "4", "3"), strict=True))
    assert placement({}, environment) == Placement("host:1", 4, 3)
    assert placement({"--process-id": "2", "--num-processes": None}, environment) == Placement("host:1", 4, 2)
    assert placement(dict(zip(FLAGS, ("[::1]:80", "2", "0"), strict=True)), {}) == Placement("[::1]:80", 2, 0)


@pytest.mark.parametrize(
    "environment", [{}, {"JAX_NUM_PROCESSES": "1"}, {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}]
)
def test_a_process_may_be_alone(environment):
    assert placement({}, environment) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("host:1", "2", None), "also needs --process-id"),
        ((None, "2", "0"), "also needs --coordinator-address"),
        (("host", "2", "0"), "must be HOST:PORT, got 'host'"),
        (("host:99999", "2", "0"), "must be HOST:PORT"),
        (("host:1", "2", "2"), "must be from 0 to 1"),
        (("host:1", "two", "0"), "must be whole numbers, got two and 0"),
        (("host:1", "-2", "0"), "must be whole numbers"),
    ],
)
def test_places_that_make_no_sense_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        placement(dict(zip(FLAGS, values, strict=True)), {})


@pytest.mark.parametrize(
    ("error", "given", "raised", "status"),
    [
        (RuntimeError("no coordinator host-0:8476"), {}, TransientError, 75),
        (ConnectionError("metadata.google.internal"), {}, TransientError, 75),
        (ValueError("no such cluster"), {}, InputError, 2),
        (RuntimeError("address in use"), dict(zip(FLAGS, ("host:1", "2", "0"), strict=True)), InputError, 2),
    ],
)
def test_only_what_was_detected_may_be_better_at_the_next_try(monkeypatch, error, given, raised, status):
    def initialize(**arguments):
        raise error

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "host-[0-1]")
    with pytest.raises(raised, match=str(error)) as caught:
        processes.initialize(given, 60, 300)
    assert caught.value.status == status


def test_alone_all_agree(tmp_path):
    assert collectives.gather({"a": math.inf}) == [{"a": math.inf}]
    assert collectives.gather_rows([1, 0], ["b", "a"]) == ["a", "b"]
    with pytest.raises(InputError, match="mine"), collectives.agreed():
        raise InputError("mine")


@dataclasses.dataclass(frozen=True)
class Device:
    process_index: int


def test_rows_that_several_processes_hold_are_shared_among_them():
    """Eight rows over three processes: two hold the first four, one the rest; or all hold all."""
    device = [Device(process_index) for process_index in (0, 2, 1)]
    halves = {device[0]: (slice(0, 4),), device[1]: (slice(0, 4),), device[2]: (slice(4, None),)}
    sharding = types.SimpleNamespace(devices_indices_map=lambda shape: halves)
    assert row_owners(sharding, 8).tolist() == [0, 2, 0, 2, 1, 1, 1, 1]
    sharding.devices_indices_map = lambda shape: {d: (slice(None),) for d in device}
    assert row_owners(sharding, 4).tolist() == [0, 1, 2, 0]


def test_one_process_holds_all_rows():
    mesh = make_mesh(MeshConfig(fsdp=2))
    assert local_rows(row_sharding(mesh, 8), 8).all()


@pytest.mark.slow
def test_two_processes_see_what_one_does(tmp_path):
    """Two of four devices here, and this one with eight: the same global meshes."""
    with Pod(2, 4, ["-m", "tests.pod_worker", str(tmp_path / "seen.json")], tmp_path) as pod:
        assert pod.wait() == [0, 0], pod.said()
    seen = json.loads((tmp_path / "seen.json").read_text())
    first, second = seen["gathered"]
    assert (first["index"], second["index"], second["text"]) == (0, 1, "ü" * 1000)
    assert math.isnan(second["undefined"])
    assert seen["refusals"] == ["process 1: no such file", "no such file"]
    [difference] = set(seen["differences"])
    assert difference.startswith("processes 1 have other training problems than process 0")
    assert seen["agreed"] == [None, None]
    for name, sizes in {"data": {}, "fsdp": {"fsdp": 4}, "tensor": {"fsdp": 2, "tensor": 2}}.items():
        mesh = make_mesh(MeshConfig(**sizes))
        assert seen[f"tokens/{name}"] == [pod_worker.tokens(mesh, count) for count in (12, 16)]
        assert seen[f"any/{name}"] == [True, False]
        whole = np.arange(24).reshape(8, 3)
        assert seen[f"to_host/{name}"] == [whole.tolist()] * 2
