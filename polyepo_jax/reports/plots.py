"""Plots of runs as matplotlib figures, made without pyplot so that no global state is touched."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from polyepo_jax.reports.runs import Run
from polyepo_jax.reports.tables import benchmark_names, benchmark_title, same_num_samples

# Okabe and Ito's palette (safe for colour-blind readers), without the hues too light for text on white.
_COLORS = {"warm_start": "#6b6b6b", "grpo": "#d55e00", "grpo_div": "#008060", "poly_epo": "#0072b2"}
_SPARE_COLORS = ("#aa3377", "#8a6d00", "#332288", "#2a9db5", "#882255", "#44691f")
_MARKERS = "osD^vPX"
_DASHES = (0, (4, 2))  # of models that were not trained by reinforcement
Styles = dict[str, dict[str, Any]]  # how to draw a line, by the run's label
_INK, _MUTED, _GRID = "#1b1f24", "#59636e", "#e3e6ea"
_DPI = 200  # twice the pixels that a page shows for each inch: sharp on dense screens
_LABEL_POINTS = 12.5  # distance between the lines' labels

# The same quantity on held-out prompts and, among fewer samples, on training prompts; never both on one axis.
_HELD_OUT, _TRAINING = "eval/distinct_correct", "clusters/distinct_correct"


def _styles(runs: Sequence[Run]) -> Styles:
    """Line style by label: a colour and marker for each run, the colour of a known method always the same."""
    spare = [*_SPARE_COLORS, *_COLORS.values()]
    styles: Styles = {}
    for i, run in enumerate(runs):
        taken = [style["color"] for style in styles.values()]
        color = _COLORS.get(run.kind)
        if color is None or color in taken:
            color = next((c for c in spare if c not in taken), spare[i % len(spare)])
        line = _DASHES if run.kind == "warm_start" else "-"
        styles[run.label] = {"color": color, "marker": _MARKERS[i % len(_MARKERS)], "linestyle": line}
    return styles


def _short(text: str) -> str:
    return text if len(text) <= 22 else f"{text[:10]}…{text[-11:]}"


def _panel(ax: Axes, title: str, xlabel: str) -> None:
    ax.set_title(title, loc="left", fontsize=10.5, color=_INK, pad=8, parse_math=False)
    ax.set_xlabel(xlabel, loc="left", fontsize=9.5, color=_MUTED)
    ax.tick_params(colors=_MUTED, labelsize=9.5, length=0, pad=5)
    ax.grid(axis="y", color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#b6bcc4")


def _spread(heights: Sequence[float], distance: float, top: float) -> np.ndarray:
    """Moves label heights in [0, top] to be `distance` apart, by the least sum of squares, keeping their order.

    Less i * distance they need only be non-decreasing: isotonic regression, by pooling adjacent violators.
    """
    order = np.argsort(heights, kind="stable")
    offsets = distance * np.arange(len(order))
    pools: list[list[float]] = []
    for height in np.asarray(heights, float)[order] - offsets:
        pools.append([height])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    placed = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    result = np.empty(len(order))
    result[order] = np.clip(placed, 0, max(top - offsets[-1], 0)) + offsets
    return result


def _label_lines(panels: Sequence[tuple[Axes, dict[str, float]]], styles: Styles) -> None:
    """Writes each run's name beside the end of its line, in its colour. The figure must be complete otherwise.

    Args:
      panels: all panels of a figure, each with the ends of its lines by label.
    """
    figure = panels[0][0].get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles the layout, and with it the panels' heights
    for ax, ends in panels:
        if ends:
            _label_panel(ax, ends, styles, 72 / figure.dpi)


def _label_panel(ax: Axes, ends: dict[str, float], styles: Styles, points: float) -> None:
    box = ax.get_window_extent()
    pixels = ax.transData.transform([(1, end) for end in ends.values()])[:, 1] - box.y0
    heights = _spread(pixels * points, _LABEL_POINTS, box.height * points)
    for label, height in zip(ends, heights, strict=True):
        ax.annotate(
            _short(label),
            (1, 0),
            (7, height),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            fontweight="bold",
            color=styles[label]["color"],
            annotation_clip=False,
            parse_math=False,
        )


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Centred moving average over about a twentieth of the run."""
    kernel = np.ones(2 * (len(values) // 40) + 1)
    weights = np.convolve(np.ones(len(values)), kernel, mode="same")
    return np.convolve(values, kernel, mode="same")[: len(values)] / weights


def _draw_pass_at_k(ax: Axes, runs: Sequence[Run], name: str, styles: Styles) -> dict[str, float]:
    """pass@k of the runs that have the benchmark; returns where each line ends."""
    ends, all_ks = {}, set()
    for run in runs:
        if name not in run.benchmarks:
            continue
        curve = run.benchmarks[name].pass_at_k
        ks, values = np.array(list(curve)), np.array(list(curve.values()))
        ax.plot(ks, values, **styles[run.label], linewidth=2, markersize=5)
        few = ks > run.num_samples / 2  # hollow: few disjoint draws of so many samples, so these vary much
        ax.plot(ks[few], values[few], **styles[run.label] | {"linestyle": ""}, markersize=5, markerfacecolor="white")
        ends[run.label] = values[-1]
        all_ks |= set(curve)
    _panel(ax, "pass@k", "k  (hollow: over half of the samples, high variance)")
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(all_ks), [str(k) for k in sorted(all_ks)])
    ax.xaxis.set_minor_locator(NullLocator())
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, 0), min(high, 1.02))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    return ends


def _draw_curves(ax: Axes, runs: Sequence[Run], metric: str, styles: Styles) -> dict[str, float]:
    """A metric over the steps; returns where each line ends. Long series are smoothed over their faint raw values."""
    ends = {}
    for run in runs:
        steps, values = run.series(metric)
        if not steps:
            continue
        style = styles[run.label]
        many = len(steps) > 40
        smooth = _smooth(values) if many else np.array(values)
        if many:
            ax.plot(steps, values, color=style["color"], alpha=0.18, linewidth=0.8)
        ax.plot(steps, smooth, **style | ({"marker": ""} if many else {}), linewidth=2, markersize=4.5)
        ends[run.label] = float(smooth[-1])
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    return ends


def _setting(run: Run, *path: str) -> Any:
    """A value of config.json, None where there is none."""
    value: Any = run.config
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _trained(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.series(_TRAINING)[0] or len(run.series(_HELD_OUT)[0]) > 1]


def _draw_distinct_correct(ax: Axes, runs: Sequence[Run], styles: Styles) -> dict[str, float]:
    """Distinct correct answers a prompt over training, as bars where no run has a curve; returns the lines' ends.

    More samples find more answers, so one axis holds only counts among equally many.
    """
    trained = _trained(runs)
    if not trained:
        _draw_bars(ax, runs, styles)
        return {}
    counts = {_setting(run, "evaluation", "num_samples") for run in trained}
    held_out = len(counts) == 1 and all(len(run.series(_HELD_OUT)[0]) > 1 for run in trained)
    if not held_out:
        counts = {_setting(run, "num_generations") for run in trained}
    ends = _draw_curves(ax, trained, _HELD_OUT if held_out else _TRAINING, styles)
    count = counts.pop() if len(counts) == 1 else None
    name = benchmark_names(runs)[0]
    for run in runs:
        # A model that was not trained here has one value, which compares with the held-out points alone.
        if held_out and run not in trained and name in run.benchmarks and run.num_samples == count:
            value = run.benchmarks[name].distinct_correct
            ax.axhline(value, color=styles[run.label]["color"], linestyle=_DASHES, linewidth=1.5)
            ends[run.label] = value
    where = "validation prompts" if held_out else "training prompts"
    samples = f", {count} samples" if count else ""
    dashed = "; dashed: test" if len(ends) > len(trained) else ""
    _panel(ax, "Distinct correct answers per prompt", f"step  ({where}{samples}{dashed})")
    ax.set_ylim(0, max(ax.get_ylim()[1], 1e-3))
    return ends


def _draw_bars(ax: Axes, runs: Sequence[Run], styles: Styles) -> None:
    name = benchmark_names(runs)[0]
    present = [run for run in runs if name in run.benchmarks]
    values = [run.benchmarks[name].distinct_correct for run in present]
    bars = ax.barh(range(len(present)), values, color=[styles[run.label]["color"] for run in present], height=0.6)
    ax.bar_label(bars, fmt="%.2f", padding=4, fontsize=9.5, color=_INK)
    ax.set_yticks(range(len(present)), [_short(run.label) for run in present], parse_math=False)
    ax.set_ylim(max(len(present), 4) - 0.5, -0.5)
    samples = f"{present[0].num_samples} samples each" if same_num_samples(present) else "different numbers of samples"
    _panel(ax, "Distinct correct answers per prompt", f"held-out prompts, {samples}")
    ax.grid(False)
    ax.set_xlim(0, 1.12 * max([*values, 1e-3]))


def _figure(width: float, height: float, title: str) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.08)
    figure = Figure(figsize=(width, height), dpi=_DPI, layout=layout, facecolor="white")
    figure.suptitle(title, x=0.011, ha="left", fontsize=12.5, fontweight="bold", color=_INK, parse_math=False)
    return figure


def report_title(runs: Sequence[Run]) -> str:
    """What the runs were trained for: the name of the first benchmark, the training task's held-out split."""
    return benchmark_title(benchmark_names(runs)[0])


def comparison_figure(runs: Sequence[Run]) -> Figure:
    """pass@k on the training task's held-out split, beside distinct correct answers over training."""
    name, styles = benchmark_names(runs)[0], _styles(runs)
    figure = _figure(9, 3.8, report_title(runs))
    left, right = figure.subplots(1, 2)
    ends = _draw_pass_at_k(left, runs, name, styles), _draw_distinct_correct(right, runs, styles)
    _label_lines([(left, ends[0]), (right, ends[1])], styles)
    return figure


def pass_at_k_figure(runs: Sequence[Run]) -> Figure:
    """pass@k against k, a panel for each benchmark."""
    names, styles = benchmark_names(runs), _styles(runs)
    num_columns = min(len(names), 2)
    num_rows = -(-len(names) // num_columns)
    alone = len(names) == 1
    figure = _figure(5.6 if alone else 9, 3.4 * num_rows + 0.4, report_title(runs) if alone else "pass@k")
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    panels = []
    for name, ax in zip(names, axes[: len(names)], strict=True):
        panels.append((ax, _draw_pass_at_k(ax, runs, name, styles)))
        if not alone:
            ax.set_title(benchmark_title(name), loc="left", fontsize=10.5, color=_INK, pad=8, parse_math=False)
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    _label_lines(panels, styles)
    return figure


def training_figure(runs: Sequence[Run]) -> Figure:
    """Distinct correct answers over training, beside the mean reward of the training prompts."""
    styles, rewarded = _styles(runs), [run for run in _trained(runs) if run.series("rewards/mean")[0]]
    figure = _figure(9 if rewarded else 5.6, 3.8, report_title(runs))
    axes = figure.subplots(1, 2 if rewarded else 1, squeeze=False)[0]
    panels = [(axes[0], _draw_distinct_correct(axes[0], runs, styles))]
    if rewarded:
        panels.append((axes[1], _draw_curves(axes[1], rewarded, "rewards/mean", styles)))
        _panel(axes[1], "Mean reward", "training step  (training prompts)")
    _label_lines(panels, styles)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
