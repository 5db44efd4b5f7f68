"""How the rewards of a step's groups are spread: quantiles over the steps, a figure for each method."""

from collections.abc import Mapping, Sequence

import numpy as np

from polyepo_jax.reports.differences import Method
from polyepo_jax.reports.figures import canvas, palette
from polyepo_jax.reports.figures.canvas import Picture
from polyepo_jax.reports.figures.curves import averaging_note, line_of
from polyepo_jax.reports.figures.lines import Line, compact, label_ends, steps_axis, vertical

_MOST_METHODS = 6
_MOST_POINTS = 300  # of each line
_MEDIAN = "median"
# Metric's last part -> how it is written beside its line; from the lowest, for so names of equal ends are ordered.
_QUANTILES = {"min": "min", "q25": "25 %", "median": _MEDIAN, "q75": "75 %", "max": "max"}
# Lower and upper end of each band, and how strong it is.
_BANDS = (("min", "max", 0.12), ("25 %", "75 %", 0.22))


def group_pictures(methods: Sequence[Method], styles: Mapping[str, palette.Style], suffix: str) -> list[Picture]:
    """Of the first few methods that logged the quantiles of their groups' mean rewards."""
    found = [(method, _lines(method)) for method in methods]
    found = [(method, lines) for method, lines in found if _MEDIAN in lines]
    more = f" The first {_MOST_METHODS} methods have such a figure." if len(found) > _MOST_METHODS else ""
    return [
        _picture(method, lines, styles[method.label], f"rewards_groups_{i}{suffix}", more)
        for i, (method, lines) in enumerate(found[:_MOST_METHODS], start=1)
    ]


def _lines(method: Method) -> dict[str, Line]:
    """Those quantiles that there are, by their words."""
    found = {words: line_of(method, f"rewards/group_{name}", _MOST_POINTS) for name, words in _QUANTILES.items()}
    return {words: pair[0] for words, pair in found.items() if pair is not None}


def _picture(method: Method, lines: Mapping[str, Line], style: palette.Style, name: str, more: str) -> Picture:
    title, figure = "Reward of groups", canvas.new_figure(len(lines))
    ax = canvas.add_panel(figure, title, f"quantiles of groups' means, {canvas.short(method.label)}", "step", [*lines])
    for low, high, alpha in _BANDS:
        if low in lines and high in lines and np.array_equal(lines[low].x, lines[high].x):
            ends = lines[low].y, lines[high].y
            ax.fill_between(lines[low].x, *ends, color=style.color, alpha=alpha, linewidth=0)
    for words, line in lines.items():
        median = words == _MEDIAN
        ax.plot(line.x, line.y, color=style.color, linestyle=style.linestyle, linewidth=1.6 if median else 0.6)
    steps_axis(ax)
    vertical(ax, compact)
    ends_by_words = {words: float(line.y[np.isfinite(line.y)][-1]) for words, line in lines.items()}
    label_ends(ax, ends_by_words, dict.fromkeys(lines, style))
    caption = (
        f"{method.label}: the median of the groups' mean rewards in a step, the middle half of the groups (dark) and "
        "all of them (light). A group is the generations of one prompt."
    )
    pair = line_of(method, "rewards/group_median", _MOST_POINTS)
    return Picture(name, title, caption + more + (averaging_note([pair[1]]) if pair else ""), figure)
