"""Lines with bands and their names at their ends: what nearly every figure is made of."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from polyepo_jax.reports.figures import canvas, palette

MINUS = "\N{MINUS SIGN}"


@dataclasses.dataclass(frozen=True)
class Line:
    """One method in a panel: float64[X] each, NaN where undefined.

    low, high: of its band. hollow: bool[X], estimates that vary much. raw: a faint line behind it, or empty.
    marked: with a marker at each point.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    hollow: np.ndarray
    raw: np.ndarray
    marked: bool = True


def draw_lines(ax: Axes, lines: Sequence[Line], styles: Mapping[str, palette.Style]) -> dict[str, float]:
    """Draws all lines over all bands; returns where each line ends, by label."""
    alpha = 0.16 if len(lines) <= 4 else 0.08
    for line in lines:
        color = styles[line.label].color
        banded = np.isfinite(line.low) & np.isfinite(line.high)
        if banded.any():
            ax.fill_between(line.x, line.low, line.high, where=banded, color=color, alpha=alpha, linewidth=0)
        if line.raw.size:
            ax.plot(line.x, line.raw, color=color, alpha=0.25, linewidth=0.6)
    ends = {}
    for line in lines:
        style = styles[line.label]
        marker = style.marker if line.marked else ""
        ax.plot(
            line.x,
            line.y,
            color=style.color,
            linestyle=style.linestyle,
            linewidth=1.6,
            marker=marker,
            markersize=4,
            clip_on=not marker,
            zorder=3,
        )
        if line.hollow.any():
            ax.plot(
                line.x[line.hollow],
                line.y[line.hollow],
                linestyle="",
                marker=style.marker,
                markersize=4.2,
                markerfacecolor=palette.PAPER,
                markeredgecolor=style.color,
                markeredgewidth=1.2,
                clip_on=False,
                zorder=3,
            )
        if np.isfinite(line.y).any():
            ends[line.label] = float(line.y[np.isfinite(line.y)][-1])
    return ends


def spread(heights: Sequence[float], distance: float, top: float) -> np.ndarray:
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


def label_ends(ax: Axes, ends: Mapping[str, float], styles: Mapping[str, palette.Style]) -> None:
    """Writes each method's name beside the end of its line, in its colour. The panel must be complete otherwise."""
    if not ends:
        return
    points = 72 / ax.figure.dpi
    ax.get_ylim()  # settles the limits, and with them the transformation
    box = ax.get_window_extent()
    pixels = ax.transData.transform([(ax.get_xlim()[0], end) for end in ends.values()])[:, 1] - box.y0
    heights = spread(np.clip(pixels * points, 0, box.height * points), canvas.LABEL_POINTS, box.height * points)
    for label, height in zip(ends, heights, strict=True):
        ax.annotate(
            canvas.short(label),
            (1, 0),
            (6, height),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=styles[label].color,
            annotation_clip=False,
            parse_math=False,
        )


def compact(value: float) -> str:
    """A number of an axis in a few characters: 12k, 0.25, 2.5e-5."""
    if value and (abs(value) >= 1e7 or abs(value) < 1e-3):
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:,.4g}"


def percent(value: float) -> str:
    return f"{100 * value:.4g}%"


def points_of_percent(value: float) -> str:
    return f"{100 * value:+.3g}".replace("-", MINUS) if abs(value) > 1e-9 else "0"


def vertical(ax: Axes, written: Callable[[float], str], low: float | None = None, high: float | None = None) -> None:
    """Labels and limits of the vertical axis; a limit that is None is left to the data."""
    bottom, top = ax.get_ylim()
    bottom, top = bottom if low is None else low, top if high is None else high
    ax.set_ylim(bottom, top if top > bottom else bottom + 1)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))


def share_axis(ax: Axes, lines: Sequence[Line], levels: Sequence[float] = ()) -> None:
    """Percent, from a round number below all lines, or from 0 where one comes near, to 100 % where one does."""
    values = np.concatenate([[*line.y, *line.low, *line.high, *line.raw] for line in lines] + [[*levels]])
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
    margin = max(0.06 * (high - low), 0.005)
    top = 1.0 + margin if high > 0.94 else high + margin
    # A few percent at least: noise is not to look like change.
    vertical(ax, percent, 0.0 if low < 0.15 else min(low - margin, top - 0.05), max(top, 0.05))


def powers_axis(ax: Axes, values: Sequence[float]) -> None:
    """Logarithmic, with a tick at each value, or at every other or third where there are many."""
    ax.set_xscale("log", base=2)
    ticks = sorted(set(values))
    every = -(-len(ticks) // 8)
    ticks = ticks[:: every or 1]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter([compact(tick) for tick in ticks]))
    ax.xaxis.set_minor_locator(NullLocator())


def steps_axis(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: compact(step)))
