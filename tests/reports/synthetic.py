"""Run directories as training and evaluation leave them, from simulated generations."""

import json
import math
from collections import Counter

import numpy as np


def pass_at_k(m, c, k):
    return 1 - math.comb(m - c, k) / math.comb(m, k)


def powers(m):
    return sorted({2**i for i in range(m.bit_length())} | {m})


def simulate(p_correct, num_clusters, num_problems, m, seed):
    """Rewards and clusters [P][M]: `num_clusters` right answers, as many wrong ones, a few degenerate samples."""
    rng = np.random.default_rng(seed)
    difficulty = np.clip(p_correct + 0.15 * np.random.default_rng(0).standard_normal(num_problems), 0.02, 0.98)
    rewards = (rng.random((num_problems, m)) < difficulty[:, None]).astype(float)
    answers = np.minimum(rng.geometric(1 / num_clusters, (num_problems, m)) - 1, 40)
    clusters = np.where(rewards > 0, answers, 100 + answers)
    return rewards, np.where(rng.random((num_problems, m)) < 0.02, -1, clusters)


def problem_row(name, i, rewards, clusters, hidden=False):
    """A line of eval_problems.jsonl; the votes are made up, the rest is counted."""
    m, c = len(rewards), int((rewards > 0).sum())
    right = Counter(int(k) for k, r in zip(clusters, rewards, strict=True) if r > 0 and k != -1)
    share = max(Counter(clusters.tolist()).values()) / m
    rarefied = {
        str(s): sum(1 - math.comb(c - size, s) / math.comb(c, s) for size in right.values())
        for s in powers(m)
        if s <= c
    }
    distinct = len(set(clusters.tolist()) - {-1})
    row = {
        "benchmark": name,
        "id": i,
        "prompt": f"y=x^2+{i}x+{i % 7}",
        "num_samples": m,
        "num_correct": c,
        "pass_at_k": {str(k): pass_at_k(m, c, k) for k in powers(m)},
        "majority_at_k": {str(k): c / m for k in powers(m)},
        "vote_share_at_k": {str(k): max(share, 1 / k) for k in powers(m)},
        "coverage": float(c > 0),
        "distinct": distinct,
        "distinct_correct": len(right),
        "distinct_incorrect": distinct - len(right),
        "distinct_correct_if_solved": len(right) if c else None,
        "rarefied_correct": rarefied,
        "degenerate_frac": float((clusters == -1).mean()),
        "truncated_frac": 0.0,
        "branching": {str(t): min(distinct, 1 + (t - 1) * distinct / 12) for t in (1, 2, 4, 8, 16)},
        "first_divergence": 3.5,
        "identical_pairs_frac": share**2,
        "mean_length": 12.0,
    }
    return row | ({"hidden_at_k": {str(k): pass_at_k(m, c // 3, k) for k in powers(m)}} if hidden else {})


def mean_of(rows, name):
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values:
        return None
    if isinstance(values[0], dict):
        return {k: float(np.mean([v[k] for v in values if k in v])) for k in max(values, key=len)}
    return float(np.mean(values))


def benchmark_entry(rows):
    """An entry of eval.json without intervals, which the report then computes."""
    names = [name for name in rows[0] if name not in ("benchmark", "id", "prompt", "num_samples", "num_correct")]
    counts = Counter(s for row in rows for s in row["rarefied_correct"])
    return {"num_prompts": len(rows), "rarefied_problems": dict(counts)} | {name: mean_of(rows, name) for name in names}


def metrics_rows(steps, trained, distinct, seed, judge=False):
    rng = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        t = step / steps
        noise = rng.standard_normal()
        row = {"step": step, "loss/grad_norm": 1.0 + 0.2 * noise, "time/step_s": 0.6, "time/update_s": 0.2}
        if not trained:
            yield row | {"loss/supervised": 2 * math.exp(-3 * t) + 0.02 * noise}
            continue
        row |= {
            "rewards/mean": 0.4 + 0.5 * t + 0.03 * noise,
            "coverage": min(1.0, 0.9 + 0.1 * t),
            "clusters/distinct": 6 + distinct / 8 * t + 0.2 * noise,
            "clusters/distinct_correct": 3 + (distinct / 5 - 3) * t + 0.2 * noise,
            "clusters/degenerate_frac": 0.02,
            "advantages/nonzero_frac": 0.9 - 0.3 * t,
            "completions/mean_length": 13 + noise,
            "completions/truncated_frac": None,
            "completions/entropy": 0.8 - 0.5 * t + 0.01 * noise,
            "time/rollout_s": 0.3,
            "time/rollout_wait_s": 0.25,
            "time/grade_s": 0.02,
            "time/advantage_s": 0.01,
        }
        if judge:
            row |= {
                "judge/failure_frac": 0.1 * (step % 7 == 0),
                "judge/failures/timeout": float(step % 7 == 0),
                "judge/failures/not_json": 0.0,
                "judge/transport/rate_limit": float(step % 5),
                "judge/calls": 32.0,
                "judge/latency_s": 1.2 + 0.3 * abs(noise),
                "judge/exposed_s": 0.2,
                "verifier/failure_frac": 0.0,
                "verifier/faults/no_answer": 2.0,
            }
        if step % 20 == 0:
            row |= {"eval/distinct_correct": distinct + noise, "eval/coverage": 1.0, "eval/pass_at_1": 0.4 + 0.5 * t}
        yield row


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sample_rows(name, rewards, clusters):
    for i, (reward, cluster) in enumerate(zip(rewards, clusters, strict=True)):
        for j, (r, c) in enumerate(zip(reward, cluster, strict=True)):
            yield {
                "benchmark": name,
                "id": i,
                "prompt": f"y=x^2+{i}x+{i % 7}",
                "sample": j,
                "response": f"({int(c)},{int(c) ** 2 + i * int(c) + i % 7 if r else 3})$",
                "reward": r,
                "cluster": int(c),
                "length": 9,
                "truncated": False,
            }


def make_run(
    directory,
    *,
    p_correct=0.6,
    num_clusters=6,
    trained=True,
    seed=0,
    init="runs/warm_start",
    num_problems=24,
    m=16,
    names=("polynomial/held_out",),
    steps=60,
    hidden=False,
    judge=False,
    changes=None,
):
    """A complete run directory. `trained=False` is a warm start, whose log has no metric of reinforcement."""
    directory.mkdir(parents=True)
    config = {
        "class": "polyepo_jax.config.sections:Config" if trained else "polyepo_jax.config.sections:SFTConfig",
        "task": {"class": "polyepo_jax.tasks.polynomial:Polynomial", "split_seed": 0},
        "seed": seed,
        "num_generations": 8,
        "evaluation": {"num_samples": m},
        "algorithm": {"advantage": {"class": f"polyepo_jax.sets.advantages:{directory.name.rstrip('0123456789_')}"}},
    } | ({"init": {"run_dir": init}} if trained else {})
    (directory / "config.json").write_text(json.dumps(config | (changes or {})))
    problems, samples, entries = [], [], {}
    for i, name in enumerate(names):
        rewards, clusters = simulate(p_correct, num_clusters, num_problems, m, seed + 10 * i)
        rows = [problem_row(name, j, r, c, hidden) for j, (r, c) in enumerate(zip(rewards, clusters, strict=True))]
        problems += rows
        samples += sample_rows(name, rewards, clusters)
        entries[name] = benchmark_entry(rows)
    evaluation = {
        "checkpoint_step": steps,
        "num_samples": m,
        "sampling": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0},
        "high_variance_above_k": m // 2,
        "benchmarks": entries,
    }
    (directory / "eval.json").write_text(json.dumps(evaluation))
    write_lines(directory / "eval_problems.jsonl", problems)
    write_lines(directory / "eval_samples.jsonl", samples)
    write_lines(directory / "metrics.jsonl", metrics_rows(steps, trained, 2.0 * num_clusters, seed, judge))
    return directory


def demo(root, **options):
    """A warm start, GRPO and Poly-EPO, as the demo has them."""
    kinds = {"warm_start": (0.4, 8, False), "grpo": (0.9, 1.3, True), "poly_epo": (0.8, 9, True)}
    return [
        make_run(root / name, p_correct=p, num_clusters=n, trained=trained, seed=0, **options)
        for name, (p, n, trained) in kinds.items()
    ]
