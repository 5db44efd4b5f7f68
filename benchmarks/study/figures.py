"""The figures of docs/results.md."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from benchmarks.study.results import Estimate, Result, estimate, mean_over_seeds, powers_of
from polyepo_jax.reports.figures import canvas, lines, palette
from polyepo_jax.reports.figures.canvas import Picture
from polyepo_jax.reports.figures.lines import Line

LABELS = {
    "base": "base",
    "grpo": "GRPO",
    "grpo_div": "GRPO+DIV",
    "poly_epo": "Poly-EPO",
    "settled": "settled",
    "mixture": "mixture",
    "pass_at_n": "pass@n",
    "distinct_correct": "DistinctCorrect",
}
TITLES = {
    "polynomial": "Polynomials",
    "polynomial_hard": "Hard polynomials",
    "multiplication": "Multiplication",
    "smollm": "SmolLM2",
}
STYLES = {
    label: palette.Style(color, marker, label == "base")
    for label, color, marker in (
        ("base", "#6b6b6b", "o"),
        ("GRPO", "#d55e00", "s"),
        ("GRPO+DIV", "#008060", "D"),
        ("Poly-EPO", "#0072b2", "^"),
        ("settled", "#332288", "X"),
        ("mixture", "#2a9db5", "p"),
        ("pass@n", "#aa3377", "v"),
        ("DistinctCorrect", "#8a6d00", "P"),
    )
}

# Of one task, by method, in the order of LABELS.
ByMethod = Mapping[str, Sequence[Result]]


def _line(label: str, points: Mapping[int, Estimate], above: float = math.inf) -> Line:
    x = np.array([*points], float)
    y, low, high = (np.array([getattr(e, end) for e in points.values()]) for end in ("value", "low", "high"))
    return Line(label, x, y, low, high, hollow=x > above, raw=np.array([]))


def _over_k(figure: Figure, column: int, title: str, subtitle: str, drawn: Sequence[Line]) -> None:
    ax = canvas.add_panel(figure, title, subtitle, "k samples", [line.label for line in drawn], column)
    ends = lines.draw_lines(ax, drawn, STYLES)
    lines.powers_axis(ax, [x for line in drawn for x in line.x])
    lines.share_axis(ax, drawn)
    lines.label_ends(ax, ends, STYLES)


def frontier(tasks: Mapping[str, ByMethod]) -> Picture:
    """pass@1 against distinct correct answers, a panel for each task, every seed a point of its own."""
    num_rows = math.ceil(len(tasks) / 2)
    figure = canvas.new_figure(len(LABELS), canvas.WIDTH * min(len(tasks), 2), num_rows)
    for index, (task, methods) in enumerate(tasks.items()):
        samples = next(iter(methods.values()))[0].num_samples
        subtitle = f"distinct correct answers of {samples}"
        labels = [LABELS[method] for method in methods]
        place = {"column": index % 2, "row": index // 2, "num_rows": num_rows}
        ax = canvas.add_panel(figure, TITLES[task], subtitle, "pass@1", labels, **place)
        heights = {}
        for method, results in methods.items():
            style = STYLES[LABELS[method]]
            x, y = estimate(results, "pass_at_k/1"), estimate(results, "distinct_correct")
            ax.plot(x.seeds, y.seeds, style.marker, color=style.color, markersize=4, alpha=0.45, markeredgewidth=0)
            ax.plot(x.value, y.value, style.marker, color=style.color, markersize=7)
            heights[LABELS[method]] = y.value
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: lines.percent(value) if value <= 1 else ""))
        lines.vertical(ax, lines.compact, 0, 1.1 * ax.get_ylim()[1])
        lines.label_ends(ax, heights, STYLES)
    caption = "Up is more variety, right is more often correct. Small marks: the seeds; large ones: their mean."
    return Picture("results_frontier", "pass@1 against distinct correct answers, held out", caption, figure)


def coverage(methods: ByMethod) -> Picture:
    """pass@k and majority@k on the hard split."""
    figure = canvas.new_figure(len(methods), 2 * canvas.WIDTH)
    any_result = next(iter(methods.values()))[0]
    ks = powers_of(any_result)
    passes = [
        _line(LABELS[m], {k: estimate(r, f"pass_at_k/{k}") for k in ks}, any_result.num_samples / 2)
        for m, r in methods.items()
    ]
    _over_k(figure, 0, "pass@k", "some of k samples is correct; bands: 95 % over problems", passes)
    votes = []
    for method, results in methods.items():
        points = {k: Estimate(v, math.nan, math.nan, ()) for k, v in mean_over_seeds(results, "majority_at_k").items()}
        votes.append(_line(LABELS[method], points, any_result.num_samples / 2))
    _over_k(figure, 1, "majority@k", "the most frequent of k answers is correct", votes)
    caption = "Hollow: more than half of all samples, unsteady."
    return Picture("results_coverage", "Hard polynomials, held out", caption, figure)


def _learning(results: Sequence[Result], name: str) -> dict[int, Estimate]:
    """The mean over seeds, and their range."""
    steps = [*map(int, results[0].curves["step"])]
    values_SE = np.array([result.curves[name] for result in results])
    return {
        step: Estimate(float(v.mean()), float(v.min()), float(v.max()), ())
        for step, v in zip(steps, values_SE.T, strict=True)
    }


def learning(task: str, methods: ByMethod) -> Picture:
    """Distinct correct answers and pass@1 while training, on the validation split."""
    figure = canvas.new_figure(len(LABELS), 2 * canvas.WIDTH)
    trained = {method: results for method, results in methods.items() if results[0].curves["step"]}
    for column, (name, title) in enumerate((("distinct_correct", "Distinct correct answers"), ("pass_at_1", "pass@1"))):
        drawn = [_line(LABELS[method], _learning(results, name)) for method, results in trained.items()]
        ax = canvas.add_panel(
            figure, title, "validation; bands: range of seeds", "step", [x.label for x in drawn], column
        )
        ends = lines.draw_lines(ax, drawn, STYLES)
        lines.steps_axis(ax)
        if name == "pass_at_1":
            lines.share_axis(ax, drawn)
        else:
            lines.vertical(ax, lines.compact, 0, None)
        lines.label_ends(ax, ends, STYLES)
    return Picture(f"results_learning_{task}", f"{TITLES[task]}, while training", "", figure)


def pictures(tasks: Mapping[str, ByMethod]) -> list[Picture]:
    """All figures of the tasks that there are results of."""
    drawn = [frontier(tasks)]
    if "polynomial_hard" in tasks:
        drawn.append(coverage(tasks["polynomial_hard"]))
    return drawn + [learning(task, methods) for task, methods in tasks.items()]
