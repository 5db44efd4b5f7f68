"""How fast rollouts and updates are, beside google-tunix and transformers: python -m benchmarks.throughput

Every contestant runs alone in a process of its own, on the same cores; before and after it the rate of a large matrix
product and of a copy are measured, for the machine's neighbours change them. Peers are no dependency, and google-tunix
0.1.7 cannot be installed beside this project (it wants an older safetensors): they have an environment of their own,

    python -m venv /tmp/peers && /tmp/peers/bin/pip install google-tunix==0.1.7 torch transformers rich

that --python names. What is not installed is left out, and said to be.

  --cases NAME ...    of the table; all if not given
  --cores N           cores to run on, 1 if not given
  --peers NAME ...    tunix, transformers; both if not given
  --python FILE       the interpreter of the peers' environment
  --json FILE         write all figures there
  --plot FILE         draw them
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import rich.console
import rich.table

from benchmarks.throughput.cases import CASES, Case

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = """
import importlib.metadata, json
names = {"jax", "google-tunix", "torch", "transformers"}
print(json.dumps({d.name: d.version for d in importlib.metadata.distributions() if d.name in names}))
"""
BATCHES = "ours, in batches"  # that wait for their longest generation


def measure(module: str, cores: int, python: str, *arguments: str) -> dict[str, Any]:
    """What a worker says; an "error" where it fails."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(cores),
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(
        [python, "-m", f"benchmarks.throughput.{module}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:]),
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"error": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    return json.loads(lines[-1])


def run_case(case: Case, peers: list[str], cores: int, python: str) -> dict[str, Any]:
    """All contestants of a case, one after the other, the machine's limits between them."""
    contestants = [("polyepo_jax", "ours", case, sys.executable)]
    if case.kind == "rollout" and case.mixed:
        contestants.append((BATCHES, "ours", dataclasses.replace(case, name=f"{case.name} batches"), sys.executable))
    contestants += [(peer, peer, case, python) for peer in peers]
    before = measure("limits", cores, sys.executable)
    results = {}
    for name, module, of_case, interpreter in contestants:
        result = measure(module, cores, interpreter, json.dumps(dataclasses.asdict(of_case)))
        after = measure("limits", cores, sys.executable)
        flops, copied = ((before[key] + after[key]) / 2 for key in ("flops", "bytes"))
        before = after
        if "error" not in result:
            seconds = result["tokens"] / result["tokens_per_s"]
            counted = result["tokens"]
            if case.kind == "update":
                counted -= case.rows * case.prompt_length
            result |= {
                "matmul_flops": flops,
                "copy_bytes": copied,
                "matmul_share": case.flops(counted) / seconds / flops,
            }
        results[name] = result
    return results


def show(results: dict[str, dict[str, Any]]) -> None:
    """The table."""
    console = rich.console.Console(width=110)
    table = rich.table.Table("case", "contestant", "tokens/s", "of the matmul rate", "peak memory", "row-steps used")
    for case, contestants in results.items():
        for name, result in contestants.items():
            if "error" in result:
                table.add_row(case, name, result["error"], "", "", "")
                continue
            used = result.get("row_steps_used")
            table.add_row(
                case,
                name,
                f"{result['tokens_per_s']:,.0f}",
                f"{result['matmul_share']:.0%} of {result['matmul_flops'] / 1e9:.0f} GFLOP/s",
                f"{result['peak_bytes'] / 2**30:.1f} GiB",
                "" if used is None else f"{used:.0%}",
            )
            case = ""
        ours = contestants["polyepo_jax"].get("tokens_per_s")
        others = [r["tokens_per_s"] for n, r in contestants.items() if n != "polyepo_jax" and "tokens_per_s" in r]
        if ours and others:
            table.add_row("", "ratio to the best other", f"{ours / max(others):.2f}", "", "", "", end_section=True)
    console.print(table)


def plot(results: dict[str, dict[str, Any]], file: Path) -> None:
    """Tokens a second of all contestants, as multiples of the best other one's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for contestants in results.values() for name in contestants))
    colours = dict(zip(names, ("#0072b2", "#56b4e9", "#e69f00", "#999999"), strict=False))
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.6 * len(results)), layout="constrained")
    for row, contestants in enumerate(results.values()):
        rates = {name: result.get("tokens_per_s") for name, result in contestants.items()}
        best = max((rate for name, rate in rates.items() if name != "polyepo_jax" and rate), default=None)
        there = [(name, rate / best) for name, rate in rates.items() if rate and best]
        for place, (name, ratio) in enumerate(there):
            y = row + 0.8 * ((place + 0.5) / len(there) - 0.5)
            axes.barh(y, ratio, 0.75 / len(there), color=colours[name])
            axes.text(ratio, y, f" {rates[name]:,.0f}", va="center", fontsize=7)
    axes.set_yticks(range(len(results)), results)
    axes.invert_yaxis()
    axes.set_xlabel("tokens/s, as a multiple of the best other contestant's")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)
    figure.savefig(file, dpi=150)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--peers", nargs="*", choices=["tunix", "transformers"], default=["tunix", "transformers"])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    results = {}
    for case in CASES:
        if arguments.cases and case.name not in arguments.cases:
            continue
        print(f"{case.name} ...", file=sys.stderr)
        results[case.name] = run_case(case, arguments.peers, arguments.cores, arguments.python)
        show({case.name: results[case.name]})
    if arguments.plot:
        plot(results, arguments.plot)
    if arguments.json:
        there = json.loads(subprocess.run([arguments.python, "-c", VERSIONS], capture_output=True, text=True).stdout)
        about = {
            "date": time.strftime("%Y-%m-%d"),
            "cores": arguments.cores,
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "jax": importlib.metadata.version("jax"),
            "peers": there,
        }
        arguments.json.write_text(json.dumps({"about": about, "results": results}, indent=1))


if __name__ == "__main__":
    main()
