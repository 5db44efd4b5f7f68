"""The vote against plain enumeration, and the identities at k = 1 and k = m."""

import collections
import itertools
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from polyepo_jax.evaluation import MAX_SAMPLES, describe
from polyepo_jax.evaluation.problems import powers_of_two
from polyepo_jax.evaluation.votes import votes_at_k
from polyepo_jax.types import DEGENERATE


def enumerated_votes(rewards, clusters, k):
    """majority@k and vote share@k by going through all subsets; the winner's score is its mean in the subset."""
    majority, share, num_sets = 0.0, 0.0, 0
    for subset in itertools.combinations(range(len(rewards)), k):
        num_sets += 1
        sizes = collections.Counter(clusters[i] for i in subset if clusters[i] != DEGENERATE)
        if not sizes:
            continue
        largest = max(sizes.values())
        share += largest / k
        winners = [c for c, size in sizes.items() if size == largest]
        for winner in winners:
            majority += sum(rewards[i] for i in subset if clusters[i] == winner) / largest / len(winners)
    return majority / num_sets, share / num_sets


@st.composite
def prompts(draw, max_samples=10):
    num_samples = draw(st.integers(1, max_samples))
    ids = st.sampled_from([DEGENERATE, 0, 7, -5, 2_000_000_000, 3])
    clusters = draw(st.lists(ids, min_size=num_samples, max_size=num_samples))
    rewards = draw(st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.25]), min_size=num_samples, max_size=num_samples))
    return rewards, clusters


@hypothesis.given(prompts())
def test_votes_equal_enumeration(prompt):
    rewards, clusters = prompt
    ks = tuple(range(1, len(rewards) + 1))
    majority_K, share_K = votes_at_k(np.array(rewards), np.array(clusters), ks)
    expected = np.array([enumerated_votes(rewards, clusters, k) for k in ks])
    np.testing.assert_allclose(np.stack([majority_K, share_K], axis=1), expected, atol=1e-12)


@hypothesis.given(st.integers(1, 128), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_ends_of_the_curves(num_samples, num_clusters, seed):
    rng = np.random.default_rng(seed)
    clusters = rng.integers(-1, num_clusters, num_samples)
    rewards = rng.integers(0, 2, num_samples).astype(float)
    majority_K, share_K = votes_at_k(rewards, clusters, (1, num_samples))
    clustered = clusters != DEGENERATE

    # One sample votes for itself; it scores unless it is degenerate.
    assert majority_K[0] == pytest.approx(np.mean(rewards * clustered), abs=1e-12)
    assert share_K[0] == pytest.approx(np.mean(clustered), abs=1e-12)

    # All samples leave nothing to chance: the largest clusters win.
    ids, sizes = np.unique(clusters[clustered], return_counts=True)
    winners = ids[sizes == sizes.max(initial=0)]
    scores = [rewards[clusters == winner].mean() for winner in winners]
    assert majority_K[1] == pytest.approx(np.mean(scores) if scores else 0, abs=1e-12)
    assert share_K[1] == pytest.approx(sizes.max(initial=0) / num_samples, abs=1e-12)


@pytest.mark.parametrize("num_samples", [64, 128, MAX_SAMPLES])
def test_many_samples_against_a_known_law(num_samples):
    # Two clusters: the vote is one hypergeometric count, whose median decides.
    large = num_samples * 5 // 8
    clusters = np.arange(num_samples) >= large
    summary = describe(1.0 * ~clusters, clusters.astype(int))
    assert list(summary["majority_at_k"]) == [str(k) for k in powers_of_two(num_samples)]
    for k in powers_of_two(num_samples):
        counts = range(max(0, k - (num_samples - large)), min(k, large) + 1)
        chances = [
            math.comb(large, a) * math.comb(num_samples - large, k - a) / math.comb(num_samples, k) for a in counts
        ]
        wins = sum(p * (1.0 if 2 * a > k else 0.5 if 2 * a == k else 0.0) for a, p in zip(counts, chances, strict=True))
        largest = sum(p * max(a, k - a) for a, p in zip(counts, chances, strict=True))
        assert summary["majority_at_k"][str(k)] == pytest.approx(wins, abs=1e-9)
        assert summary["vote_share_at_k"][str(k)] == pytest.approx(largest / k, abs=1e-9)


def test_many_samples_against_all_vote_counts():
    # Every way in which k = 16 of 64 samples can fall on the clusters, by its multivariate hypergeometric chance.
    sizes, num_degenerate, k = np.array([18, 18, 12, 7]), 9, 16
    scores = np.array([0.0, 0.5, 1.0, 2.0])
    votes = np.stack(np.meshgrid(*(np.arange(size + 1) for size in sizes), indexing="ij")).reshape(len(sizes), -1)
    votes = votes[:, (votes.sum(0) <= k) & (votes.sum(0) >= k - num_degenerate)]
    ways = [
        math.comb(num_degenerate, k - sum(counts)) * math.prod(map(math.comb, sizes.tolist(), counts))
        for counts in votes.T.tolist()
    ]
    assert sum(ways) == math.comb(64, k)
    chances = np.array([way / math.comb(64, k) for way in ways])
    wins = votes == votes.max(0)
    majority = chances @ (scores @ wins / wins.sum(0))

    clusters = np.concatenate([np.repeat([3, 1, 4, 0], sizes), np.full(num_degenerate, DEGENERATE)])
    rewards = np.concatenate([np.repeat(scores, sizes), np.full(num_degenerate, 9.0)])
    order = np.random.default_rng(0).permutation(64)
    majority_K, share_K = votes_at_k(rewards[order], clusters[order], (k,))
    assert majority_K[0] == pytest.approx(majority, abs=1e-12)
    assert share_K[0] == pytest.approx(chances @ votes.max(0) / k, abs=1e-12)


def test_all_clusters_alone_share_every_vote():
    rewards = np.arange(128) % 4 == 0
    summary = describe(1.0 * rewards, np.arange(128))
    assert summary["majority_at_k"]["64"] == pytest.approx(0.25, abs=1e-12)
    assert summary["vote_share_at_k"]["64"] == pytest.approx(1 / 64, abs=1e-12)
