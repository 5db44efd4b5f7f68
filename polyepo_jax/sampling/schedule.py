"""Which generation each slot samples, and which prompts are prefilled: plain bookkeeping on the host.

The generations of all prompts, in their order, are cut into one share for each device that rows are cut over. A device
works its share off with a fixed number of slots. All processes keep the same books.
"""

import math

import numpy as np


def slots_per_shard(num_rows: int, num_generations: int, max_rows: int, num_shards: int) -> int:
    """Slots of each device that rows are cut over: as many as `max_rows` allows all of them, but no more than are busy
    to the end where all generations are of one length; where there is room, whole prompts."""
    share = -(-num_rows // num_shards)
    most = min(max(max_rows // num_shards, 1), share)
    unit = num_generations if most >= num_generations else 1
    most = most // unit * unit
    slots = -(-share // -(-share // most))
    return -(-slots // unit) * unit


class Schedule:
    """The books of one rollout.

    Rows are numbered p * N + n; those of a device lie in a row. A prompt has an entry in a device's pool from its
    prefill until its last generation there has ended.

    Args:
      num_prompts, num_generations: P and N.
      num_shards: S, devices that rows are cut over.
      num_slots: B, of each device.

    Attributes:
      row_SB: the generation of each slot, -1 where it is idle.
      entry_SB: the pool entry of its prompt.
      num_entries: E, of each device's pool.
      batch: prompts that one prefill takes, a device.
    """

    def __init__(self, num_prompts: int, num_generations: int, num_shards: int, num_slots: int):
        self.num_generations, self.num_rows = num_generations, num_prompts * num_generations
        share = -(-self.num_rows // num_shards)
        self._next_row = np.minimum(np.arange(num_shards) * share, self.num_rows)
        self._last_row = np.minimum(self._next_row + share, self.num_rows)
        self._next_prompt = self._next_row // num_generations
        self._last_prompt = -(-self._last_row // num_generations)
        most_prompts = max(int(np.max(self._last_prompt - self._next_prompt)), 1)
        # Enough to fill all slots: one more where the first prompt lies on two devices.
        straddles = bool(np.any(self._next_row % num_generations))
        self.batch = min(-(-num_slots // num_generations) + straddles, most_prompts)
        # Of generations that end at random, the slots hold those of batch * H(N) prompts at a time; besides them two
        # batches wait.
        self.num_entries = min(self.batch * (math.ceil(math.log(num_generations)) + 3), most_prompts)
        self.group = math.gcd(num_generations, num_slots)
        self.row_SB = np.full((num_shards, num_slots), -1)
        self.entry_SB = np.zeros((num_shards, num_slots), np.int32)
        self._prompt_SE = np.full((num_shards, self.num_entries), -1)
        self._unfinished_SE = np.zeros((num_shards, self.num_entries), int)

    @property
    def num_waiting(self) -> int:
        """Generations that no slot has begun."""
        return int(np.sum(self._last_row - self._next_row))

    @property
    def done(self) -> bool:
        """Whether all generations have ended."""
        return self.num_waiting == 0 and bool(np.all(self.row_SB < 0))

    def admit(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The prompts to prefill now and the entries that they take, [S, batch] each; -1 and E where there is none.

        None: every idle slot has a prompt to go on with, or has to wait until a batch of entries is free.
        """
        idle_S = np.sum(self.row_SB < 0, axis=1)
        ready_S = np.minimum(self._next_prompt * self.num_generations, self._last_row) - self._next_row
        remaining_S = self._last_prompt - self._next_prompt
        free_S = np.sum(self._prompt_SE < 0, axis=1)
        short_S = (np.maximum(ready_S, 0) < idle_S) & (remaining_S > 0)
        # A prefill costs as much for one prompt as for a batch.
        fits_S = free_S >= np.where(idle_S * 2 > self.row_SB.shape[1], 1, np.minimum(self.batch, remaining_S))
        if not np.any(short_S & fits_S):
            return None
        prompt_SQ = np.full((len(free_S), self.batch), -1)
        entry_SQ = np.full(prompt_SQ.shape, self.num_entries, np.int32)
        for shard in range(len(free_S)):
            count = min(self.batch, int(free_S[shard]), int(remaining_S[shard]))
            entries = np.flatnonzero(self._prompt_SE[shard] < 0)[:count]
            prompts = self._next_prompt[shard] + np.arange(count)
            prompt_SQ[shard, :count], entry_SQ[shard, :count] = prompts, entries
            self._prompt_SE[shard, entries] = prompts
            first, last = (np.clip((prompts + i) * self.num_generations, *self._share(shard)) for i in (0, 1))
            self._unfinished_SE[shard, entries] = last - first
            self._next_prompt[shard] += count
        return prompt_SQ, entry_SQ

    def _share(self, shard: int) -> tuple[int, int]:
        share = -(-self.num_rows // len(self._next_row))
        return min(shard * share, self.num_rows), min((shard + 1) * share, self.num_rows)

    def fill(self) -> np.ndarray:
        """Gives idle slots the next generations whose prompts are prefilled: which ones begin, bool[S, B]."""
        begins_SB = np.zeros(self.row_SB.shape, bool)
        for shard in range(len(self.row_SB)):
            ready = min(self._next_prompt[shard] * self.num_generations, self._last_row[shard])
            idle = np.flatnonzero(self.row_SB[shard] < 0)[: max(ready - self._next_row[shard], 0)]
            rows = self._next_row[shard] + np.arange(len(idle))
            self.row_SB[shard, idle] = rows
            begins_SB[shard, idle] = True
            entry_of = {int(prompt): entry for entry, prompt in enumerate(self._prompt_SE[shard]) if prompt >= 0}
            self.entry_SB[shard, idle] = [entry_of[row // self.num_generations] for row in rows.tolist()]
            self._next_row[shard] += len(idle)
        return begins_SB

    def entries_of_groups(self) -> np.ndarray:
        """The entries of adjacent slots that share one, [S, G]: groups of a prompt's slots as long as no slot has gone
        over to another prompt alone, else a group for every slot."""
        entry_SGN = self.entry_SB.reshape(len(self.entry_SB), -1, self.group)
        busy_SGN = (self.row_SB >= 0).reshape(entry_SGN.shape)
        most_SG = np.max(np.where(busy_SGN, entry_SGN, -1), axis=2)
        least_SG = np.min(np.where(busy_SGN, entry_SGN, self.num_entries), axis=2)
        if np.all((most_SG == least_SG) | (most_SG < 0)):
            return np.maximum(most_SG, 0).astype(np.int32)
        return self.entry_SB

    def end(self, done_SB: np.ndarray) -> np.ndarray:
        """Frees the slots whose generations have ended, and the entries of prompts that are done: the rows, sorted."""
        ended_SB = done_SB & (self.row_SB >= 0)
        rows = np.sort(self.row_SB[ended_SB])
        for shard in np.flatnonzero(np.any(ended_SB, axis=1)):
            np.subtract.at(self._unfinished_SE[shard], self.entry_SB[shard, ended_SB[shard]], 1)
            self._prompt_SE[shard, (self._unfinished_SE[shard] == 0)] = -1
        self.row_SB[ended_SB] = -1
        return rows
