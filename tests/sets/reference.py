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


def worst_reward(rewards, clusters):
    return min(rewards)


def diversity(rewards, clusters):
    """Eq. 11."""
    return Fraction(distinct(clusters), len(clusters))


def distinct_correct(rewards, clusters):
    return Fraction(distinct([c for r, c in zip(rewards, clusters, strict=True) if r > 0]), len(clusters))


def _cluster_of_size(choose, rewards, clusters):
    """Mean reward of the cluster whose size `choose` picks; of several such clusters, the mean of their means."""
    members = {}
    for reward, cluster in zip(rewards, clusters, strict=True):
        if cluster != DEGENERATE:
            members.setdefault(cluster, []).append(reward)
    if not members:
        return Fraction(0)
    size = choose(len(own) for own in members.values())
    means = [sum(own) / Fraction(size) for own in members.values() if len(own) == size]
    return sum(means) / len(means)


def majority(rewards, clusters):
    return _cluster_of_size(max, rewards, clusters)


def minority(rewards, clusters):
    return _cluster_of_size(min, rewards, clusters)


def weighted_sum(*terms):
    """sum_k w_k f_k of the pairs (w_k, f_k)."""
    return lambda rewards, clusters: sum(Fraction(w) * f(rewards, clusters) for w, f in terms)


def product(*parts):
    return lambda rewards, clusters: math.prod((f(rewards, clusters) for f in parts), start=Fraction(1))


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


def mean_over_sets(f, rewards, clusters, set_size=None, *, sets=None, valid=None):
    """E[f] over `sets` or over all subsets of the valid generations; 0 where there is none."""
    valid = [True] * len(rewards) if valid is None else valid
    sets = itertools.combinations(range(len(rewards)), set_size) if sets is None else sets
    scores = [
        Fraction(f([Fraction(float(rewards[i])) for i in group], [int(clusters[i]) for i in group]))
        for group in sets
        if all(valid[i] for i in group)
    ]
    return sum(scores, Fraction(0)) / max(len(scores), 1)


def two_terms(rewards, clusters, set_size, *, valid=None, require_distinct=False):
    """Eq. 15: the two parts of each polychromic advantage over all sets, 0 where not valid; two lists of Fractions."""
    everyone = [i for i in range(len(rewards)) if valid is None or valid[i]]
    exact = {i: Fraction(float(rewards[i])) for i in everyone}
    scored = []
    for group in itertools.combinations(everyone, set_size):
        num_clusters = distinct([int(clusters[i]) for i in group])
        counts = num_clusters >= 2 or not require_distinct
        scored.append((group, sum(exact[i] for i in group) / set_size, Fraction(num_clusters * counts, set_size)))

    def product_and_covariance(sets):
        reward, diversity, both = (
            sum(values) / len(sets) for values in zip(*((r, d, r * d) for _, r, d in sets), strict=True)
        )
        return reward * diversity, both - reward * diversity

    terms = [[Fraction(0)] * len(rewards) for _ in range(2)]
    if len(scored) > 1:
        over_all = product_and_covariance(scored)
        for i in everyone:
            own = product_and_covariance([s for s in scored if i in s[0]])
            for term, mine, all_sets in zip(terms, own, over_all, strict=True):
                term[i] = mine - all_sets
    return terms


# Baselines: lists of exact numbers for the generations given, all of which are valid.

EPSILON = Fraction(1, 10**6)


def grpo(rewards):
    exact = [Fraction(float(r)) for r in rewards]
    return [r - sum(exact) / len(exact) for r in exact]


def grpo_by_std(rewards):
    """(r - mean r) / (std r + 1e-6), std with N - 1; 0 for equal rewards. Floats: a root is not rational."""
    centered = grpo(rewards)
    if not any(centered):
        return [0.0] * len(centered)
    std = math.sqrt(sum(a * a for a in centered) / (len(centered) - 1))
    return [float(a) / (std + float(EPSILON)) for a in centered]


def leave_one_out(rewards):
    """r_i - mean of the others; 0 where there are none."""
    exact = [Fraction(float(r)) for r in rewards]
    if len(exact) == 1:
        return [Fraction(0)]
    return [r - (sum(exact) - r) / (len(exact) - 1) for r in exact]


def max_rl(rewards):
    """(r - mean r) / (mean r + 1e-6); NaN throughout a group with a negative reward."""
    exact = [Fraction(float(r)) for r in rewards]
    if min(exact) < 0:
        return [math.nan] * len(exact)
    mean = sum(exact) / len(exact)
    return [(r - mean) / (mean + EPSILON) for r in exact]


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
