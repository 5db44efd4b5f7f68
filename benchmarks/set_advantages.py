"""Marginal advantages of Polychromic for a batch of prompts: closed form, enumeration, sampled sets, Python loops.

    JAX_PLATFORMS=cpu python benchmarks/set_advantages.py [--prompts 128] [--repeats 20]

Each figure is the median over the repeats, after a warm-up that compiles; the arrays are on the device already.
The loop with arrays visits every subset of every prompt with an array operation a term, as public code does it with
tensors (NumPy's overhead a call is smaller than theirs); the loop with numbers is the fastest that plain Python can
do. Where a loop takes too long it does the first prompts only, and its time is scaled up to all of them (marked ~).
The last column is the greatest difference from the closed form; sampled sets are an estimate, and so differ.
"""

import argparse
import itertools
import math
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from polyepo_jax.sets import DEGENERATE, Polychromic, SetAdvantage, all_sets, marginal_advantages

SHAPES = [(8, 4), (16, 8), (64, 16)]
MAX_ENUMERATED_SETS = 20_000
MAX_LOOP_SETS = 2_000_000
SAMPLED_SETS = 70  # K of the paper


def loop_with_arrays(rewards_PN, clusters_PN, set_size):
    """The definition, one subset after the other, each scored and credited by array operations."""
    result = []
    for rewards_N, clusters_N in zip(rewards_PN, clusters_PN, strict=True):
        sets = list(itertools.combinations(range(len(rewards_N)), set_size))
        scores_S = np.empty(len(sets))
        for index, members in enumerate(sets):
            members_M = np.array(members)
            clusters_M = clusters_N[members_M]
            distinct = np.unique(clusters_M[clusters_M != DEGENERATE]).size
            scores_S[index] = rewards_N[members_M].mean() * distinct / set_size
        advantages_S = scores_S - scores_S.mean()
        totals_N = np.zeros(len(rewards_N))
        for index, members in enumerate(sets):
            totals_N[np.array(members)] += advantages_S[index]
        result.append(totals_N / math.comb(len(rewards_N) - 1, set_size - 1))
    return np.array(result)


def loop_with_numbers(rewards_PN, clusters_PN, set_size):
    """The definition, one subset after the other, in Python numbers."""
    result = []
    for rewards, clusters in zip(rewards_PN.tolist(), clusters_PN.tolist(), strict=True):
        num_generations = len(rewards)
        totals = [0.0] * num_generations
        scores = 0.0
        for members in itertools.combinations(range(num_generations), set_size):
            distinct = len({clusters[i] for i in members if clusters[i] != DEGENERATE})
            score = sum(rewards[i] for i in members) / set_size * distinct / set_size
            scores += score
            for i in members:
                totals[i] += score
        mean = scores / math.comb(num_generations, set_size)
        result.append([total / math.comb(num_generations - 1, set_size - 1) - mean for total in totals])
    return np.array(result)


def median_ms(function, repeats):
    """Median milliseconds of a call, after one that compiles, and the result of the last."""
    result = jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times), np.asarray(result)


def measure(num_prompts, num_generations, set_size, repeats):
    """Rows (method, milliseconds, scaled up?, greatest difference from the closed form)."""
    rng = np.random.default_rng(0)
    shape = (num_prompts, num_generations)
    rewards_PN = (rng.random(shape) < 0.4).astype(np.float32)
    clusters_PN = rng.integers(-1, 6, shape).astype(np.int32)
    on_device = jax.device_put((rewards_PN, clusters_PN))
    objective = Polychromic(set_size)
    num_sets = math.comb(num_generations, set_size)

    closed_form = jax.jit(jax.vmap(lambda r, c: marginal_advantages(objective, r, c)))
    milliseconds, exact_PN = median_ms(lambda: closed_form(*on_device), repeats)
    rows = [("closed form", milliseconds, False, 0.0)]

    if num_sets <= MAX_ENUMERATED_SETS:
        sets_SM = all_sets(num_generations, set_size)
        enumerate_sets = jax.jit(jax.vmap(lambda r, c: marginal_advantages(objective, r, c, sets_SM=sets_SM)))
        repeats = repeats if num_sets < 1000 else min(repeats, 3)
        milliseconds, advantages_PN = median_ms(lambda: enumerate_sets(*on_device), repeats)
        rows.append(("enumeration, jit", milliseconds, False, np.max(np.abs(advantages_PN - exact_PN))))

    advantage = SetAdvantage(objective, num_sets=SAMPLED_SETS)
    keys = jax.random.split(jax.random.key(0), num_prompts)
    valid_PN = jnp.ones(shape, bool)
    sample = jax.jit(jax.vmap(advantage))
    milliseconds, advantages_PN = median_ms(lambda: sample(keys, *on_device, valid_PN), repeats)
    rows.append((f"{SAMPLED_SETS} sampled sets", milliseconds, False, np.max(np.abs(advantages_PN - exact_PN))))

    loop_prompts = min(num_prompts, MAX_LOOP_SETS // num_sets)
    for method, loop in (("loop with numbers", loop_with_numbers), ("loop with arrays", loop_with_arrays)):
        if loop_prompts:
            start = time.perf_counter()
            advantages_PN = loop(rewards_PN[:loop_prompts], clusters_PN[:loop_prompts], set_size)
            milliseconds = 1e3 * (time.perf_counter() - start) * num_prompts / loop_prompts
            difference = np.max(np.abs(advantages_PN - exact_PN[:loop_prompts]))
            rows.append((method, milliseconds, loop_prompts < num_prompts, difference))
    return num_sets, rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()

    print(f"{arguments.prompts} prompts on {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"{'N':>3} {'n':>3} {'sets a prompt':>14}  {'method':<18} {'ms':>11} {'ratio':>9} {'difference':>11}")
    for num_generations, set_size in SHAPES:
        num_sets, rows = measure(arguments.prompts, num_generations, set_size, arguments.repeats)
        for method, milliseconds, scaled, difference in rows:
            figure = f"{'~' if scaled else ''}{milliseconds:.3f}"
            print(
                f"{num_generations:>3} {set_size:>3} {num_sets:>14.3g}  {method:<18} {figure:>11}"
                f" {milliseconds / rows[0][1]:>9.1f} {difference:>11.1e}"
            )


if __name__ == "__main__":
    main()
