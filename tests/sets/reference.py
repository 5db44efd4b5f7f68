"""The definitions of the paper in exact Python arithmetic: every subset, or every count, one at a time.

Written from the text alone and importing nothing of the package, so that an error there cannot hide here.
"""

import itertools
import math
from collections import Counter
from fractions import Fraction

DEGENERATE = -1


def distinct(clusters):
    return len({c for c in clusters if c != DEGENERATE})


def polychromic(rewards, clusters):
    """Eq. 10 and 11."""
    n = len(rewards)
    return sum(rewards) / n * Fraction(distinct(clusters), n)


def polychromic_distinct(rewards, clusters):
    """Eq. 10 with the indicator of at least two distinct clusters."""
    return polychromic(rewards, clusters) if distinct(clusters) >= 2 else Fraction(0)


def mean_reward(rewards, clusters):
    return sum(rewards) / len(rewards)


def best_reward(rewards, clusters):
    return max(rewards)


def advantages(f, rewards, clusters, set_size=None, *, sets=None, valid=None, reduce="mean"):
    """Eq. 8 as it reads: a list of Fractions, over `sets` or over all subsets of the valid generations."""
    everyone = range(len(rewards))
    valid = [True] * len(rewards) if valid is None else [bool(v) for v in valid]
    if sets is None:
        sets = itertools.combinations(everyone, set_size)
    sets = [tuple(int(i) for i in group) for group in sets]
    sets = [group for group in sets if all(valid[i] for i in group)]
    result = [Fraction(0)] * len(rewards)
    if not sets:
        return result
    exact = [Fraction(float(r)) if v else None for r, v in zip(rewards, valid, strict=True)]
    ids = [int(c) for c in clusters]
    scores = [Fraction(f([exact[i] for i in group], [ids[i] for i in group])) for group in sets]
    baseline = sum(scores) / len(scores)
    for i in everyone:
        own = [score - baseline for score, group in zip(scores, sets, strict=True) if i in group]
        if own:
            result[i] = sum(own) if reduce == "sum" else sum(own) / len(own)
    return result


def grpo(rewards):
    exact = [Fraction(float(r)) for r in rewards]
    return [r - sum(exact) / len(exact) for r in exact]


def grpo_div(rewards, clusters, weight):
    """The paper's additive baseline; a degenerate generation gets no bonus."""
    N = len(rewards)
    sizes = Counter(int(c) for c in clusters)
    utilities = []
    for reward, cluster in zip(rewards, clusters, strict=True):
        bonus = Fraction(0)
        if cluster != DEGENERATE and N > 1:
            bonus = (Fraction(N, sizes[int(cluster)]) - 1) / (N - 1)
        utilities.append(Fraction(float(reward)) + Fraction(weight) * bonus)
    return [u - sum(utilities) / N for u in utilities]


def pass_at_k(num_samples, num_correct, k):
    """Correctly rounded: a quotient of two exact integers."""
    total = math.comb(num_samples, k)
    return (total - math.comb(num_samples - num_correct, k)) / total


# Counting instead of enumerating, for groups whose subsets are too many. Slower to write down than to trust:
# the tests compare it with `advantages` where both are possible.


def _comb(n, k):
    return math.comb(n, k) if n >= 0 and k >= 0 else 0


def polychromic_advantages_by_counting(rewards, clusters, set_size, require_distinct=False):
    """Advantages of Polychromic over all subsets, from counts of subsets, at any N and n."""
    N, n = len(rewards), set_size
    ids = [int(c) for c in clusters]
    sizes = Counter(c for c in ids if c != DEGENERATE)
    num_degenerate = ids.count(DEGENERATE)

    def weighted_sets(members):
        """Sum over the sets that hold all `members` of the number of clusters that counts."""
        f = len(members)
        total = 0
        for c, size in sizes.items():
            touched = any(ids[i] == c for i in members)
            total += _comb(N - f, n - f) - (0 if touched else _comb(N - f - size, n - f))
            if require_distinct and all(ids[i] in (c, DEGENERATE) for i in members):
                # Sets of c and degenerate generations only, but not of degenerate generations only.
                total -= _comb(size + num_degenerate - f, n - f)
                total += 0 if touched else _comb(num_degenerate - f, n - f)
        return total

    kinds = {}  # the count depends on the clusters of the members alone
    exact = [Fraction(float(r)) for r in rewards]
    means = []
    for i in range(N):
        total = Fraction(0)
        for j in range(N):
            members = {i, j}
            kind = (len(members), *sorted(ids[m] for m in members))
            if kind not in kinds:
                kinds[kind] = weighted_sets(members)
            total += exact[j] * kinds[kind]
        means.append(total / (n * n * math.comb(N - 1, n - 1)))
    return [m - sum(means) / N for m in means]


def best_reward_advantages_by_counting(rewards, set_size):
    """Advantages of the best reward over all subsets: how often is each generation the best of a set?"""
    N, n = len(rewards), set_size
    exact = [Fraction(float(r)) for r in rewards]
    order = sorted(range(N), key=lambda i: -exact[i])
    means = [Fraction(0)] * N
    for position, i in enumerate(order):
        means[i] += exact[i] * _comb(N - 1 - position, n - 1)  # i itself is the best
        for better in range(position):
            means[i] += exact[order[better]] * _comb(N - 2 - better, n - 2)
    means = [m / math.comb(N - 1, n - 1) for m in means]
    return [m - sum(means) / N for m in means]
