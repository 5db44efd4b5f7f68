"""How the generations of a prompt part, token by token."""

import numpy as np


def _shared_lengths(tokens_NT, mask_NT) -> tuple[np.ndarray, int]:
    """Tokens that neighbours in lexicographic order have in common, int[N - 1], and the padded length T.

    A rollout that has ended keeps its end: it stays different from those that go on.
    """
    tokens_NT = np.where(np.asarray(mask_NT, bool), np.asarray(tokens_NT), -1)
    ordered_NT = tokens_NT[np.lexsort(tokens_NT.T[::-1])]
    return np.logical_and.accumulate(ordered_NT[1:] == ordered_NT[:-1], axis=1).sum(1), tokens_NT.shape[1]


def branching(tokens_NT, mask_NT) -> np.ndarray:
    """B(t), the number of different prefixes of t tokens among N rollouts of a prompt, for t = 1..T.

    A rollout that has ended keeps its end: it stays different from those that go on, so B never falls.

    Args:
      tokens_NT: int[N, T], token ids (at least 0), right-padded.
      mask_NT: bool[N, T], True on real tokens.

    Returns:
      int[T].
    """
    # In lexicographic order equal prefixes are neighbours, at every length.
    shared_N, length = _shared_lengths(tokens_NT, mask_NT)
    return 1 + np.sum(shared_N[:, None] < 1 + np.arange(length), axis=0)


def first_divergence(tokens_NT, mask_NT) -> tuple[float, float]:
    """Where two different rollouts of a prompt part, and how many are not different.

    Args:
      tokens_NT, mask_NT: as of `branching`.

    Returns:
      The position, from 1, of the first token in which two rollouts differ (or one has ended), mean over pairs that
      differ, NaN where none does; and the share of pairs that are the same, NaN where there is no pair.
    """
    shared_N, length = _shared_lengths(tokens_NT, mask_NT)
    if shared_N.size == 0:
        return np.nan, np.nan
    # Of two rollouts in this order the least that neighbours between them share.
    pairs = np.concatenate([np.minimum.accumulate(shared_N[i:]) for i in range(shared_N.size)])
    parting = pairs[pairs < length] + 1
    return float(parting.mean()) if parting.size else np.nan, float(np.mean(pairs == length))
