"""The books of a rollout: every generation is sampled once, from its own prompt, with as few idle slots as may be."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from polyepo_jax.sampling.generate import first_ring
from polyepo_jax.sampling.schedule import Schedule, slots_per_shard

sizes = {
    "num_prompts": st.integers(1, 40),
    "num_generations": st.integers(1, 12),
    "num_shards": st.sampled_from([1, 2, 3, 8]),
    "max_rows": st.integers(1, 200),
}


def run(schedule: Schedule, ends):
    """Works everything off; yields what slots work on at each chunk. `ends` says which of the slots then end."""
    while True:
        begins = schedule.fill()
        while (admitted := schedule.admit()) is not None:
            yield "prefill", admitted
            begins |= schedule.fill()
        if schedule.done:
            return
        yield "decode", begins
        schedule.ended = schedule.end(ends(schedule.row_SB))


@hypothesis.given(**sizes, seed=st.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=200)
def test_every_generation_is_sampled_once_and_from_its_own_prompt(
    num_prompts, num_generations, num_shards, max_rows, seed
):
    random = np.random.default_rng(seed)
    slots = slots_per_shard(num_prompts * num_generations, num_generations, max_rows, num_shards)
    schedule = Schedule(num_prompts, num_generations, num_shards, slots)
    held = {}  # (shard, entry) -> prompt
    begun, ended = [], []
    for what, value in run(schedule, lambda row_SB: random.random(row_SB.shape) < 0.4):
        if what == "prefill":
            prompts_SQ, entries_SQ = value
            for shard, (prompts, entries) in enumerate(zip(prompts_SQ, entries_SQ, strict=True)):
                assert np.all((prompts < 0) == (entries == schedule.num_entries))
                # No entry that a slot still reads is taken.
                busy = schedule.entry_SB[shard][schedule.row_SB[shard] >= 0]
                assert not set(busy) & set(entries[prompts >= 0])
                held |= {(shard, e): p for p, e in zip(prompts, entries, strict=True) if p >= 0}
            continue
        ended += schedule.ended.tolist() if hasattr(schedule, "ended") else []
        begun += schedule.row_SB[value].tolist()
        groups_SG = schedule.entries_of_groups()
        entry_SB = np.repeat(groups_SG, slots // groups_SG.shape[1], axis=1)
        for shard, slot in np.argwhere(schedule.row_SB >= 0):
            assert held[shard, entry_SB[shard, slot]] == schedule.row_SB[shard, slot] // num_generations
    ended += schedule.ended.tolist()
    assert sorted(begun) == sorted(ended) == list(range(num_prompts * num_generations))


@hypothesis.given(**sizes)
def test_slots_are_as_many_as_allowed_and_as_needed(num_prompts, num_generations, num_shards, max_rows):
    rows = num_prompts * num_generations
    slots = slots_per_shard(rows, num_generations, max_rows, num_shards)
    share = -(-rows // num_shards)
    most = min(max(max_rows // num_shards, 1), share)
    if most >= num_generations:  # whole prompts
        assert slots % num_generations == 0
        most = most // num_generations * num_generations
    assert 1 <= slots <= most
    assert -(-share // slots) == -(-share // most)  # as many passes as with the most slots


@pytest.mark.parametrize(
    ("arguments", "slots"),
    [
        ((80, 8, 64, 1), 40),  # two passes of 40, not 64 and 16
        ((64, 8, 64, 1), 64),
        ((100, 8, 64, 1), 56),  # whole prompts
        ((2048, 8, 64, 1), 64),
        ((8, 8, 1024, 8), 1),  # the generations of one prompt on eight devices
        ((6, 3, 1, 4), 1),
    ],
)
def test_slots_by_hand(arguments, slots):
    assert slots_per_shard(*arguments) == slots


def test_slots_share_prompts_until_one_goes_over_to_another():
    schedule = Schedule(num_prompts=4, num_generations=4, num_shards=1, num_slots=8)
    schedule.admit()
    schedule.fill()
    np.testing.assert_array_equal(schedule.entries_of_groups(), [[0, 1]])
    done = np.zeros((1, 8), bool)
    done[0, 5] = True
    schedule.end(done)
    np.testing.assert_array_equal(schedule.entries_of_groups(), [[0, 1]])  # an idle slot reads anything
    schedule.admit()
    schedule.fill()
    assert schedule.row_SB[0, 5] == 8
    np.testing.assert_array_equal(schedule.entries_of_groups(), [[0, 0, 0, 0, 1, 2, 1, 1]])


@pytest.mark.parametrize("num_generations", [1, 4, 16])
def test_slots_are_rarely_idle_with_lengths_at_random(num_generations):
    """A slot waits for a prompt only where the pool is full: geometric lengths, refilled after every step."""
    random = np.random.default_rng(0)
    schedule = Schedule(2048 // num_generations, num_generations, 1, 64)
    busy = []
    for what, _ in run(schedule, lambda row_SB: random.random(row_SB.shape) < 1 / 20):
        if what == "decode" and schedule.num_waiting:
            busy.append(np.mean(schedule.row_SB >= 0))
    assert np.mean(busy) > 0.97
    assert schedule.num_entries * num_generations <= 64 * (math.log(num_generations) + 4)


@pytest.mark.parametrize(("length", "capacity"), [(24, 24), (64, 64), (127, 127), (128, 64), (200, 100), (400, 100)])
def test_the_first_ring_doubles_to_what_is_needed(length, capacity):
    assert first_ring(length, 64) == capacity
    while capacity < length:
        capacity *= 2
    assert length <= capacity < length + length / 64 + 1


@pytest.mark.parametrize(("length", "capacity"), [(24, 64), (512, 512), (1000, 1024), (5000, 640), (10000, 640)])
def test_rings_of_accelerators_are_whole_blocks(length, capacity):
    assert first_ring(length, 512, 64) == capacity
