"""The comparison of runs as cells of text, for the terminal and for the page alike."""

import dataclasses
from collections.abc import Sequence

from polyepo_jax.reports.runs import Run


@dataclasses.dataclass(frozen=True)
class Table:
    """One benchmark over all runs that have it.

    title: the benchmark and what was sampled.
    columns, rows: text; the first column names the run, the others hold numbers.
    note: one sentence under the table, "" for none.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


def benchmark_title(name: str) -> str:
    """A benchmark's name as people write it: "polynomials/held_out" becomes "Polynomials, held out"."""
    title = name.replace("/", ", ").replace("_", " ")
    return title[:1].upper() + title[1:]


def benchmark_names(runs: Sequence[Run]) -> list[str]:
    """All benchmarks, in the order of the first run and then of the others."""
    return list(dict.fromkeys(name for run in runs for name in run.benchmarks))


def same_num_samples(runs: Sequence[Run]) -> bool:
    """Whether counts of distinct answers can be compared: more samples find more answers."""
    return len({run.num_samples for run in runs}) == 1


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.1f}x" if value >= base else f"{value / base:.2f}x"


def _note(name: str, runs: Sequence[Run]) -> str:
    """How many times the distinct correct answers of the first run, and of the poorest, each run finds."""
    if len(runs) < 2:
        return ""
    if not same_num_samples(runs):
        return "The runs were evaluated with different numbers of samples: their distinct answers do not compare."
    found = {run.label: run.benchmarks[name].distinct_correct for run in runs}
    parts = []
    for base in dict.fromkeys([runs[0].label, min(found, key=lambda label: found[label])]):
        if found[base] > 0:
            ratios = ", ".join(
                f"{label} {_ratio(value, found[base])}" for label, value in found.items() if label != base
            )
            parts.append(f"relative to {base}: {ratios}")
    return f"Distinct correct answers a prompt, {'; '.join(parts)}." if parts else ""


def _table(name: str, runs: Sequence[Run]) -> Table:
    curves = [run.benchmarks[name] for run in runs]
    common = set.intersection(*(set(curve.pass_at_k) & set(curve.majority_at_k) for curve in curves))
    largest = max(common, default=1)
    ks = [k for k in (1, 8) if k in common and k < largest]
    columns = ("run", "step", *(f"pass@{k}" for k in [*ks, largest]), f"majority@{largest}")
    rows = tuple(
        (
            run.label,
            f"{run.checkpoint_step:,}",
            *(_share(curve.pass_at_k, k) for k in [*ks, largest]),
            _share(curve.majority_at_k, largest),
            f"{curve.distinct:.2f}",
            f"{curve.distinct_correct:.2f}",
        )
        for run, curve in zip(runs, curves, strict=True)
    )
    prompts = " or ".join(dict.fromkeys(f"{curve.num_prompts:,}" for curve in curves))
    samples = " or ".join(dict.fromkeys(f"{run.num_samples:,}" for run in runs))
    return Table(
        title=f"{benchmark_title(name)} ({prompts} prompts, {samples} samples each)",
        columns=(*columns, "distinct answers", "distinct correct answers"),
        rows=rows,
        note=_note(name, runs),
    )


def _share(curve: dict[int, float], k: int) -> str:
    return f"{curve[k]:.1%}" if k in curve else "-"


def comparison_tables(runs: Sequence[Run]) -> list[Table]:
    """One table a benchmark, the training task's first; a run without the benchmark is left out of its table."""
    return [_table(name, [run for run in runs if name in run.benchmarks]) for name in benchmark_names(runs)]
