"""What a sampled token costs against rows, context, depth and capacity: python -m benchmarks.token_cost --plot FILE

A few minutes on one core. The model is *tiny* of benchmarks.throughput, 4 layers of width 128. Cases of a series take
turns, five times, and the least time of each counts, for the machine's neighbours change them.

  --series NAME ...   rows, context, depth, capacity; all if not given
  --json FILE         all figures
  --plot FILE         draw them
"""

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

TURNS, CHUNK = 5, 64


@dataclasses.dataclass(frozen=True)
class Case:
    """Rollouts of `rows` generations, 8 of each prompt.

    context: tokens of a prompt. completion_length: the most of a completion. mean_length: of geometric lengths; 0 where
    all are as long as they may be.
    """

    rows: int = 32
    layers: int = 4
    context: int = 64
    completion_length: int = 3 * CHUNK
    mean_length: int = 0


SERIES: dict[str, dict[int, Case]] = {
    "rows": {rows: Case(rows=rows) for rows in (8, 16, 32, 64, 128, 256)},
    "context": {context: Case(context=context) for context in (64, 128, 256, 512, 1024, 2048)},
    "depth": {layers: Case(layers=layers) for layers in (2, 4, 8, 16, 32)},
    "capacity": {most: Case(completion_length=most, mean_length=16) for most in (256, 512, 1024, 2048, 4096)},
}
LABELS = {
    "rows": "generations at a time",
    "context": "tokens of the prompt",
    "depth": "layers",
    "capacity": "max_completion_length (mean 16)",
}


def sampler_of(case: Case) -> Any:
    """A function that samples the case and yields the seconds and tokens after the first steps."""
    import jax

    from benchmarks.throughput.cases import MODELS
    from polyepo_jax.model import ModelConfig, init
    from polyepo_jax.sampling import GenerationSpec, Rollout
    from polyepo_jax.sharding import MeshConfig, make_mesh
    from polyepo_jax.types import Prompts

    model = ModelConfig(**dataclasses.asdict(MODELS["tiny"]) | {"num_hidden_layers": case.layers})
    stop_ids = range(1, 1 + round(model.vocab_size / case.mean_length)) if case.mean_length else ()
    spec = GenerationSpec(model, 8, case.completion_length, tuple(stop_ids), pad_id=0, chunk_length=CHUNK)
    params = jax.jit(init, static_argnums=0)(model, jax.random.key(0))
    shape = case.rows // 8, case.context
    tokens: Any = np.random.default_rng(0).integers(0, model.vocab_size, shape).astype(np.int32)
    mask: Any = np.ones(shape, bool)
    ids: Any = np.arange(shape[0], dtype=np.int32)
    mesh, prompts = make_mesh(MeshConfig(data=1), jax.devices()[:1]), Prompts(tokens, mask, ids)

    def sample() -> tuple[float, int]:
        whole = time.perf_counter()
        rollout = Rollout(spec, params, prompts, jax.random.key(0), mesh, case.rows)
        chunks = rollout.finished()
        next(chunks)
        started = time.perf_counter()
        for _ in chunks:
            pass
        ended = time.perf_counter()
        count = int(np.sum(np.asarray(rollout.rollouts().completion_mask_PNT)))
        # Where lengths differ all of it counts; else what comes after the prompts and the first steps.
        return (ended - whole, count) if case.mean_length else (ended - started, count - case.rows * CHUNK)

    return sample


def measure(name: str) -> dict[int, float]:
    """Microseconds of a token in each case of a series."""
    samplers = {value: sampler_of(case) for value, case in SERIES[name].items()}
    least = dict.fromkeys(samplers, float("inf"))
    for turn in range(1 + TURNS):
        for value, sample in samplers.items():
            seconds, tokens = sample()
            if turn:  # the first one compiles
                least[value] = min(least[value], seconds / tokens * 1e6)
    return least


def draw(results: dict[str, dict[int, float]], file: Path) -> None:
    """A panel a series."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(3.4 * len(results), 3.0), squeeze=False, layout="constrained")
    for axis, (name, costs) in zip(axes[0], results.items(), strict=True):
        axis.plot(list(costs), list(costs.values()), marker="o", color="#0072b2")
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(costs), [f"{value:,}" for value in costs], fontsize=8)
        axis.set_xlabel(LABELS[name], fontsize=9)
        axis.set_ylim(0, 1.15 * max(costs.values()))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("µs a token")
    figure.savefig(file, dpi=150)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", nargs="+", choices=list(SERIES), default=list(SERIES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    results = {}
    for name in options.series:
        results[name] = measure(name)
        print(f"{name}: " + ", ".join(f"{value:,} {cost:.1f} µs" for value, cost in results[name].items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.plot:
        draw(results, options.plot)


if __name__ == "__main__":
    main()
