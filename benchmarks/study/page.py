"""docs/results.md, its figures and its files, from what is kept of the runs: python -m benchmarks.study.page

Everything follows from docs/results/TASK/*.json, so that tables and figures can be made again without a run.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.study import figures, results
from benchmarks.study.figures import LABELS, ByMethod
from benchmarks.study.results import Estimate, Result, estimate
from benchmarks.study.runs import BASE, SEEDS, STEPS, TASKS
from polyepo_jax.reports.figures.canvas import png_bytes

ROOT = Path(__file__).resolve().parents[2]


def _share(e: Estimate) -> str:
    return f"{100 * e.value:.1f} ({100 * e.low:.1f} to {100 * e.high:.1f})"


def _number(e: Estimate) -> str:
    return f"{e.value:.1f} ({e.low:.1f} to {e.high:.1f})"


def _seeds(e: Estimate, percent: bool) -> str:
    return ", ".join(f"{100 * v:.1f}" if percent else f"{v:.1f}" for v in e.seeds)


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary(found: Sequence[Result]) -> list[dict[str, Any]]:
    """One object a run on its test split, in summary.json."""
    return [
        {
            "task": result.task,
            "method": result.method,
            "seed": result.seed,
            "num_prompts": len(result.num_correct),
            "num_samples": result.num_samples,
            "pass_at_k": {
                str(k): round(float(result.problems(f"pass_at_k/{k}").mean()), 5) for k in results.powers_of(result)
            },
            "distinct_correct": round(statistics.fmean(result.distinct_correct), 4),
            "steps": result.steps,
            "config": result.config,
        }
        for result in found
        if result.split == "test"
    ]


def by_task(found: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    """Test results by task and method, both in the order of tables; methods of one setting each."""
    tasks: dict[str, dict[str, list[Result]]] = {}
    for task in TASKS:
        methods = {m: [r for r in found if (r.task, r.method, r.split) == (task, m, "test")] for m in LABELS}
        if any(methods.values()):
            tasks[task] = {method: runs for method, runs in methods.items() if runs}
    return tasks


def main_table(methods: Mapping[str, Sequence[Result]], ks: Sequence[int], hidden: Sequence[int] = ()) -> str:
    """pass@k and distinct correct answers with intervals, and each seed's numbers."""
    num_samples = next(iter(methods.values()))[0].num_samples
    heading = ["", *(f"pass@{k}" for k in ks), *(f"hidden@{k}" for k in hidden)]
    heading += [f"distinct correct of {num_samples}", "seeds: pass@1", "seeds: distinct correct"]
    rows = []
    for method, runs in methods.items():
        distinct, first = estimate(runs, "distinct_correct"), estimate(runs, "pass_at_k/1")
        shares = [_share(estimate(runs, f"pass_at_k/{k}")) for k in ks]
        shares += [_share(estimate(runs, f"hidden_at_k/{k}")) for k in hidden]
        rows.append([LABELS[method], *shares, _number(distinct), _seeds(first, True), _seeds(distinct, False)])
    return table(heading, rows)


def paired_table(methods: Mapping[str, Sequence[Result]], ks: Sequence[int]) -> str:
    """pass@k minus the base's, problem by problem, in points."""
    rows = []
    for method, runs in methods.items():
        if method == BASE:
            continue
        seeds = {run.seed for run in runs}
        others = [run for run in methods[BASE] if run.seed in seeds]
        differences = [estimate(runs, f"pass_at_k/{k}", others) for k in ks]
        cells = [f"{100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})" for d in differences]
        rows.append([LABELS[method], *cells])
    return table(["", *(f"k = {k}" for k in ks)], rows)


def budget_table(methods: Mapping[str, Sequence[Result]], budgets: Sequence[int]) -> str:
    """pass@k where all samples of a problem together have so many tokens; the tokens of a sample; seconds that the
    command took to draw and grade all samples, the fastest of the runs."""
    rows = []
    for method, runs in methods.items():
        length = statistics.fmean(run.mean_length for run in runs)
        cells = []
        for budget in budgets:
            k = min(max(1, int(budget / length)), runs[0].num_samples)
            cells.append(f"{100 * estimate(runs, f'pass_at_k/{k}').value:.1f}")
        seconds = [run.evaluation_seconds for run in runs if run.evaluation_seconds is not None]
        rows.append([LABELS[method], f"{length:.1f}", f"{min(seconds):.0f} s" if seconds else "", *cells])
    heading = ["", "tokens of a sample", "time of all samples", *(f"{budget:,} tokens" for budget in budgets)]
    return table(heading, rows)


def variants_table(found: Sequence[Result], method: str) -> str:
    """A method as it is and with one setting changed, on the validation split; empty where there are no such runs."""
    rows = []
    for result in sorted(found, key=lambda result: result.method):
        name, _, change = result.method.partition(" ")
        if name == method and result.split == "validation":
            cells = [_share(estimate([result], "pass_at_k/1")), _number(estimate([result], "distinct_correct"))]
            rows.append([change or "unchanged", *cells])
    return table(["", "pass@1", "distinct correct of 64"], rows) if len(rows) > 1 else ""


def along_training(found: Sequence[Result], task: str, suffix: str) -> str:
    """Poly-EPO beside GRPO at evaluations of the validation split, in the runs whose methods end in the suffix; empty
    where they are not both there."""
    by_method = {r.method: r.curves for r in found if r.task == task and r.method.endswith(suffix)}
    if len(by_method) < 2:
        return ""
    grpo, poly_epo = by_method[f"grpo{suffix}"], by_method[f"poly_epo{suffix}"]
    every = max(1, len(grpo["step"]) // 6)
    rows = []
    for i in range(every - 1, len(grpo["step"]), every):
        distinct = grpo["distinct_correct"][i], poly_epo["distinct_correct"][i]
        accurate = f"{100 * grpo['pass_at_1'][i]:.1f}, {100 * poly_epo['pass_at_1'][i]:.1f}"
        ratio = f"{distinct[1] / distinct[0]:.1f}"
        rows.append([f"{grpo['step'][i]:.0f}", accurate, f"{distinct[0]:.1f}, {distinct[1]:.1f}", ratio])
    return table(["step", "pass@1: GRPO, Poly-EPO", "distinct correct: GRPO, Poly-EPO", "ratio"], rows)


def _mean_of(tasks: Mapping[str, ByMethod]) -> Callable[..., float]:
    """What the template's sentences ask for numbers by."""

    def mean(task: str, method: str, name: str, minus: str | None = None) -> float:
        """Of a method's runs, `name` as of `Result.problems`; less another method's of the same seeds, if given."""
        runs = tasks[task][method]
        others = [run for run in tasks[task][minus] if run.seed in {r.seed for r in runs}] if minus else ()
        return estimate(runs, name, others).value

    return mean


def markdown(found: Sequence[Result]) -> str:
    """The page; its template calls the functions above."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    tasks = by_task(found)
    functions = {f.__name__: f for f in (main_table, paired_table, budget_table, variants_table, along_training)}
    runs = {(r.task, r.method, r.seed): r.seconds for r in found}  # some were evaluated on two splits
    seconds = sum(runs.values()) + sum(r.evaluation_seconds or 0 for r in found)
    return environment.get_template("results.md.j2").render(
        **functions,
        found=found,
        tasks=tasks,
        num_runs=len(runs),
        hours=seconds / 3600,
        steps=STEPS.get,
        seeds=SEEDS,
        mean=_mean_of(tasks),
    )


def write(found: Sequence[Result], docs: Path) -> Path:
    """Writes results/ below `docs`, and of all that it then holds results.md and the figures; the page's path."""
    for result in found:
        results.save(result, docs / "results")
    found = results.load(docs / "results")  # those of tasks that were left out this time, too
    lines = ",\n".join(json.dumps(entry) for entry in summary(found))
    (docs / "results" / "summary.json").write_text(f"[\n{lines}\n]\n")
    (docs / "images").mkdir(exist_ok=True)
    for picture in figures.pictures(by_task(found)):
        (docs / "images" / f"{picture.name}.png").write_bytes(png_bytes(picture))
    path = docs / "results.md"
    path.write_text(markdown(found))
    return path


if __name__ == "__main__":
    print(f"wrote {write([], ROOT / 'docs')}")
