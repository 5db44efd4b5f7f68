"""Variance of advantages from K sampled sets, beside those over all sets. Minutes on a CPU.

    JAX_PLATFORMS=cpu python benchmarks/sampled_sets.py [--groups 64] [--draws 200] [--plot FILE.png]

Groups of N generations with 0/1 rewards (a share that differs between groups) and clusters of unequal sizes are
fixed; the sets are drawn anew `draws` times. By Prop. 3.1 the mean over the draws is alpha times the advantage over
all sets, alpha = (N q - n) / (N - n) for reduce="mean" (q: the chance that a generation is in any of the K sets) and
(n / N) (K - 1) T / (T - 1) for "sum" (T = C(N, n)). Reported is the variance of A / alpha, its mean over generations
and groups divided by the mean square of the advantage over all sets: at 1 the noise is as strong as the signal. The
last column checks alpha: the relative error of the mean over draws, which should be near sqrt(noise / draws).
"""

import argparse
import math
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from polyepo_jax.sets import Polychromic, SetAdvantage, marginal_advantages

SHAPES = [(8, 4), (16, 8), (64, 16)]
NUM_SETS = [4, 8, 16, 32, 64, 128, 256, 512, 1024]
COLORS = {(8, 4): "#0072b2", (16, 8): "#d55e00", (64, 16): "#008060"}


def make_groups(num_groups, num_generations, rng):
    """Rewards and clusters [groups, N]: from hard to easy prompts, a few common strategies and many rare ones."""
    shape = (num_groups, num_generations)
    rewards = (rng.random(shape) < rng.uniform(0.1, 0.9, (num_groups, 1))).astype(np.float32)
    clusters = np.minimum(rng.geometric(0.35, shape), 12).astype(np.int32) - 1
    return rewards, clusters


def alpha(num_generations, set_size, num_sets, reduce):
    """E[advantage from K sampled sets] over the advantage from all sets with reduce="mean"."""
    total = math.comb(num_generations, set_size)
    if reduce == "sum":
        return float(Fraction(set_size * (num_sets - 1) * total, num_generations * (total - 1)))
    without = math.comb(total - math.comb(num_generations - 1, set_size - 1), num_sets)
    covered = 1 - Fraction(without, math.comb(total, num_sets))
    return float((num_generations * covered - set_size) / (num_generations - set_size))


def noise(advantage, rewards, clusters, exact, factor, num_draws):
    """Variance over draws by mean square of the signal, and the relative error of the mean over draws."""
    valid = jnp.ones(rewards.shape, bool)

    @jax.jit
    def draw(key):
        keys = jax.random.split(key, rewards.shape[0])
        return jax.vmap(advantage)(keys, rewards, clusters, valid) / factor

    draws = np.stack([draw(key) for key in jax.random.split(jax.random.key(0), num_draws)])
    signal = np.mean(exact**2)
    return np.mean(np.var(draws, axis=0)) / signal, math.sqrt(np.mean((draws.mean(axis=0) - exact) ** 2) / signal)


def plot(curves, path):
    """One line a shape and reduction on logarithmic axes."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained", dpi=200)
    axes = figure.subplots()
    for (shape, reduce), points in curves.items():
        label = f"N = {shape[0]}, n = {shape[1]}" if reduce == "mean" else None
        style = "-" if reduce == "mean" else (0, (3, 2))
        axes.plot(*zip(*points, strict=True), color=COLORS[shape], linestyle=style, marker="o", ms=3.5, label=label)
    axes.plot([], [], color="#59636e", linestyle=(0, (3, 2)), label='reduce="sum"')
    axes.axhline(1, color="#b6bcc4", linewidth=1, zorder=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(NUM_SETS, [str(k) for k in NUM_SETS])
    axes.set_xlabel("sampled sets K")
    axes.set_title("Variance of the sampled advantage / mean square of the exact one", loc="left", fontsize=10.5)
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, which="both")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()

    curves: dict = {}
    print(f"{'N':>3} {'n':>3} {'K':>5} {'reduce':>6} {'alpha':>9} {'noise / signal':>14} {'error of mean':>13}")
    for num_generations, set_size in SHAPES:
        objective = Polychromic(set_size)
        rewards, clusters = make_groups(arguments.groups, num_generations, np.random.default_rng(0))
        exact = np.asarray(jax.vmap(lambda r, c, f=objective: marginal_advantages(f, r, c))(rewards, clusters))
        total = math.comb(num_generations, set_size)
        for num_sets in [k for k in NUM_SETS if k < total]:
            for reduce in ("mean", "sum"):
                factor = alpha(num_generations, set_size, num_sets, reduce)
                advantage = SetAdvantage(objective, num_sets, reduce)
                ratio, error = noise(advantage, rewards, clusters, exact, factor, arguments.draws)
                curves.setdefault(((num_generations, set_size), reduce), []).append((num_sets, ratio))
                print(
                    f"{num_generations:>3} {set_size:>3} {num_sets:>5} {reduce:>6} {factor:>9.3g} {ratio:>14.3g} "
                    f"{error:>13.2g}"
                )
    if arguments.plot:
        plot(curves, arguments.plot)
        print(f"wrote {arguments.plot}")


if __name__ == "__main__":
    main()
