"""Figures over the steps of training: one metric each, a line for each method, bands over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polyepo_jax.reports.comparisons import estimates_of
from polyepo_jax.reports.differences import Method
from polyepo_jax.reports.figures import canvas, palette
from polyepo_jax.reports.figures.canvas import Picture
from polyepo_jax.reports.figures.curves import averaging_note, line_of
from polyepo_jax.reports.figures.lines import Line, compact, draw_lines, label_ends, share_axis, steps_axis, vertical
from polyepo_jax.reports.figures.metrics import Metric

Styles = Mapping[str, palette.Style]
_MOST_POINTS = 2_000  # of all lines of a figure, so that its file stays small


def how_to_read_steps(methods: Sequence[Method]) -> str:
    """What lines, bands and gaps of figures over steps are."""
    notes = ["Faint: as logged; strong: a moving average, of long series. Gaps: undefined."]
    several = ", ".join(f"{method.label} n = {method.num_seeds}" for method in methods if method.num_seeds > 1)
    if several:
        notes.append(f"Of several seeds ({several}) lines are means over the steps that all logged, bands their range.")
    return " ".join(notes)


def _setting(method: Method, *path: str) -> Any:
    """A value of config.json, None where there is none."""
    value: Any = method.runs[0].config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _num_samples(method: Method, metric: Metric) -> int | None:
    """Among how many samples of a prompt a metric was measured; None where the configuration does not say."""
    path = ("evaluation", "num_samples") if metric.name.startswith("eval/") else ("num_generations",)
    count = _setting(method, *path)
    return count if isinstance(count, int) else None


def _references(methods: Sequence[Method], metric: Metric, drawn: Sequence[Method]) -> dict[str, float]:
    """Values on the test problems of methods without a curve, where they compare with the curves of all others.

    They do if those have the same benchmark first, and samples are equally many.
    """
    firsts = {next(iter(run.benchmarks), "") for method in drawn for run in method.runs} - {""}
    counts = {_num_samples(method, metric) for method in drawn}
    if not metric.reference or len(firsts) != 1 or len(counts) != 1:
        return {}
    (name,), (count,) = firsts, counts
    found = {}
    for method in methods:
        if any(run.series(metric.name)[0].size for run in method.runs) or not method.evaluated(name):
            continue
        estimate = estimates_of(method, name).get(metric.reference)
        if estimate is not None and method.evaluated(name)[0].benchmarks[name].num_samples == count:
            found[method.label] = estimate.value
    return found


def _comparable(methods: Sequence[Method], metric: Metric) -> list[Method]:
    """Those counted among as many samples as the first."""
    counts = {method.label: _num_samples(method, metric) for method in methods}
    known = [count for count in counts.values() if count is not None]
    return [m for m in methods if not metric.counted or not known or counts[m.label] in (None, known[0])]


def draw_metric(figure: Figure, metric: Metric, methods: Sequence[Method], styles: Styles, column: int = 0) -> str:
    """A metric of all methods that logged it, into a column of the figure; returns the caption, "" if none can be."""
    logged = _logged(methods, metric)
    comparable = _comparable(logged, metric)
    most = max(60, _MOST_POINTS // len(methods))
    found = {m.label: line_of(m, metric.name, most, metric.unit) for m in comparable}
    drawn = [pair for pair in found.values() if pair is not None]
    if not drawn:
        return ""
    shown = [method for method in comparable if found[method.label] is not None]
    lines, references = [line for line, _ in drawn], _references(methods, metric, shown)
    labels = [*(line.label for line in lines), *references]
    ax = canvas.add_panel(figure, metric.title, metric.subtitle, "step", labels, column)
    label_ends(ax, _draw(ax, metric, lines, references, styles), styles)
    left_out = [method for method in logged if method not in comparable]
    caption = metric.caption + _caption(metric, shown, left_out, bool(references))
    return caption + _nowhere([m for m in comparable if m not in shown]) + averaging_note([a for _, a in drawn])


def _logged(methods: Sequence[Method], metric: Metric) -> list[Method]:
    return [method for method in methods if any(run.series(metric.name)[0].size for run in method.runs)]


def _nowhere(methods: Sequence[Method]) -> str:
    """Of methods whose seeds have no step in common."""
    names = ", ".join(method.label for method in methods)
    return f" Not shown, for at no step all seeds have it: {names}." if names else ""


def _draw_nothing(figure: Figure, metric: Metric, methods: Sequence[Method]) -> str:
    """Where `draw_metric` cannot draw what was logged, an empty panel; returns its caption, "" if nothing was."""
    logged = _logged(methods, metric)
    if not logged:
        return ""
    ax = canvas.add_panel(figure, metric.title, metric.subtitle, "")
    ax.set_axis_off()
    ax.text(
        0.5,
        0.5,
        "no step at which all seeds have it",
        transform=ax.transAxes,
        ha="center",
        color=palette.MUTED,
        fontsize=9,
    )
    return metric.caption + _nowhere(logged)


def _draw(
    ax: Axes, metric: Metric, lines: Sequence[Line], references: Mapping[str, float], styles: Styles
) -> dict[str, float]:
    """Lines and references with their axes; returns where each ends."""
    ends = draw_lines(ax, lines, styles)
    for label, value in references.items():
        ax.axhline(value, color=styles[label].color, linestyle=palette.DASHED, linewidth=1.2)
        ends[label] = value
    steps_axis(ax)
    if metric.share:
        share_axis(ax, lines, [*references.values()])
    else:
        lowest = min(float(np.nanmin([*line.y, *line.low, *line.raw])) for line in lines)  # each has some value
        vertical(ax, compact, 0 if metric.from_zero and lowest >= 0 else None)
    return ends


def _caption(metric: Metric, shown: Sequence[Method], left_out: Sequence[Method], dashed: bool) -> str:
    """Among how many samples, who is not shown for having another number, what is dashed."""
    notes = []
    counts = [count for count in (_num_samples(method, metric) for method in shown) if count is not None]
    if metric.counted and counts:
        notes.append(f"{counts[0]} samples of each.")
    if left_out:
        others = ", ".join(f"{method.label} ({_num_samples(method, metric)})" for method in left_out)
        notes.append(f"Not shown, for other numbers of samples do not compare: {others}.")
    if dashed:
        notes.append("Dashed level: on the test problems, of a model without such a curve.")
    return "".join(f" {note}" for note in notes)


def pictures_of(metrics: Sequence[Metric], methods: Sequence[Method], styles: Styles, suffix: str) -> list[Picture]:
    """A figure for each metric that some method logged."""
    pictures = []
    for metric in metrics:
        figure = canvas.new_figure(len(methods))
        caption = draw_metric(figure, metric, methods, styles) or _draw_nothing(figure, metric, methods)
        if caption:
            pictures.append(Picture(f"{metric.name.replace('/', '_')}{suffix}", metric.title, caption, figure))
    return pictures
