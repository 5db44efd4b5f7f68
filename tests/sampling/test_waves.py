"""Waves: how prompts are cut into them, and that cutting changes no token and keeps the devices busy."""

import contextlib
import math

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from polyepo_jax.errors import Interrupted
from polyepo_jax.sampling import in_waves, prompts_per_wave, until_stopped
from polyepo_jax.sharding import MeshConfig, make_mesh
from polyepo_jax.types import Prompts


def make_prompts(count: int) -> Prompts:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 5, count)
    mask = np.arange(4)[None] >= 4 - lengths[:, None]
    tokens = np.where(mask, generator.integers(1, 12, (count, 4)), 0).astype(np.int32)
    return Prompts(tokens, mask, np.arange(100, 100 + count, dtype=np.int32))


numbers = {
    "num_prompts": st.integers(1, 300),
    "num_generations": st.integers(1, 40),
    "max_rows": st.integers(1, 600),
    "num_shards": st.integers(1, 64),
}


@hypothesis.given(**numbers)
@hypothesis.settings(max_examples=500)
def test_waves_cover_all_prompts_within_the_limit(num_prompts, num_generations, max_rows, num_shards):
    size = prompts_per_wave(num_prompts, num_generations, max_rows, num_shards)
    assert size >= 1
    assert size == 1 or size * num_generations <= max_rows
    # A multiple of the shards wherever one is within the limit.
    multiple = math.lcm(num_generations, num_shards)
    assert (size * num_generations) % num_shards == 0 or multiple > max_rows
    # As few waves as the limit allows: no larger size that is as good has fewer.
    step = multiple // num_generations if multiple <= max_rows else 1
    most = max(max_rows // num_generations // step * step, 1)
    assert -(-num_prompts // size) == -(-num_prompts // most)
    # And none larger than the prompts need.
    assert size - step < num_prompts or multiple > max_rows


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ((128, 8, 128), 16),
        ((128, 8, 128, 4), 16),
        ((128, 8, 1), 1),  # the generations of a prompt stay together
        ((10, 8, 64), 5),  # two waves of 5, not 8 and 2
        ((10, 8, 64, 16), 6),  # 6 * 8 is a multiple of 16, 5 * 8 is not
        ((10, 3, 7, 16), 2),  # no multiple of 16 below 7
        ((3, 4, 1000, 8), 4),  # more than there are, for the shards' sake
    ],
)
def test_sizes_by_hand(arguments, size):
    assert prompts_per_wave(*arguments) == size


def test_each_wave_is_dispatched_before_its_predecessor_is_yielded():
    events = []

    def record(prompts):
        events.append(("dispatched", int(prompts.ids_P[0])))
        return prompts

    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    stream = in_waves(record, make_prompts(5), mesh, 2)
    assert events == [("dispatched", 100)]  # before anything is asked for
    for wave in stream:
        events.append(("yielded", int(wave.ids_P[0])))
    assert events == [
        ("dispatched", 100),
        ("dispatched", 102),
        ("yielded", 100),
        ("dispatched", 104),
        ("yielded", 102),
        ("yielded", 104),
    ]


@pytest.mark.parametrize(
    ("num_processes", "asked_at", "last"),
    [(1, -1, 0), (1, 0, 0), (1, 2, 2), (1, 3, 3), (1, 9, None), (2, -1, 0), (2, 0, 1), (2, 2, 3), (2, 3, None)],
)
def test_a_run_that_is_asked_to_end_is_given_no_further_waves(monkeypatch, num_processes, asked_at, last):
    """Asked while it has a wave, it ends with that one, or, where processes have to agree, with the next."""
    monkeypatch.setattr(jax, "process_count", lambda: num_processes)
    seen = []
    ended = contextlib.nullcontext() if last is None else pytest.raises(Interrupted)
    with ended:
        for wave in until_stopped(range(4), make_mesh(MeshConfig()), lambda: [-1, *seen][-1] >= asked_at):
            seen.append(wave)
    assert seen == list(range(4 if last is None else last + 1))
