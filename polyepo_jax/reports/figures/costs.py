"""Where the time of a step went."""

from collections.abc import Mapping, Sequence

import numpy as np

from polyepo_jax.reports.differences import Method
from polyepo_jax.reports.figures import canvas, palette
from polyepo_jax.reports.figures.canvas import Picture
from polyepo_jax.reports.figures.lines import compact

# In the order in which they follow each other. time/rollout_wait_s is a part of the rollout.
_PARTS = {
    "time/rollout_s": "rollout",
    "time/grade_s": "grading",
    "time/advantage_s": "advantages",
    "time/update_s": "update",
}
_OTHER = "other"


def step_times(method: Method) -> dict[str, float]:
    """Mean seconds of a step by part, over all steps and seeds but the first step, which compiles.

    "other" is what the parts leave of time/step_s. {} where no step time was logged.
    """
    totals: dict[str, list[float]] = {name: [] for name in ("time/step_s", *_PARTS)}
    for run in method.runs:
        for name, values in totals.items():
            steps, seconds = run.series(name)
            later = seconds[steps > run.steps[0]] if len(steps) > 1 else seconds
            values += later[np.isfinite(later)].tolist()
    means = {name: float(np.mean(values)) for name, values in totals.items() if values}
    step = means.pop("time/step_s", None)
    if step is None:
        return {}
    parts = {_PARTS[name]: seconds for name, seconds in means.items()}
    rest = step - sum(parts.values())
    return parts | ({_OTHER: rest} if rest > 0.005 * step else {})


def _draw_bars(ax, times: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> None:
    for row, parts in enumerate(times.values()):
        left = 0.0
        for name in names:
            seconds = parts.get(name, 0.0)
            i = names.index(name)
            ax.barh(
                row, seconds, left=left, color=palette.PARTS[i], height=0.56, edgecolor=palette.PAPER, linewidth=0.8
            )
            left += seconds
        ax.text(left, row, f" {compact(left)} s", va="center", fontsize=8.5, color=palette.INK)


def _draw_key(ax, names: Sequence[str]) -> None:
    """Squares and words in the order of the parts, above the bars."""
    width, height = ax.figure.get_size_inches()
    x = 0.03
    for name in names:
        color = palette.PARTS[names.index(name)]
        ax.figure.text(x / width, 1 - 0.62 / height, "■", fontsize=9, color=color)
        ax.figure.text((x + 0.13) / width, 1 - 0.62 / height, name, fontsize=8.5, color=palette.INK)
        x += 0.22 + canvas.text_width(name, 8.5)


def time_picture(methods: Sequence[Method], suffix: str = "") -> Picture | None:
    """Stacked bars of the mean step of each method, its parts in the order of time; None where none was logged."""
    times = {method.label: step_times(method) for method in methods}
    times = {label: parts for label, parts in times.items() if parts}
    if not times:
        return None
    names = [name for name in (*_PARTS.values(), _OTHER) if any(name in parts for parts in times.values())]
    left = 0.12 + max(canvas.text_width(canvas.short(label), 8.5) for label in times)
    title, figure = "Where a step's time goes", canvas.new_figure(2 * len(times))
    ax = canvas.add_panel(figure, title, "seconds a step, mean", "", ["10.25 s"], left=left)
    _draw_bars(ax, times, names)
    _draw_key(ax, names)
    ax.set_yticks(range(len(times)), [canvas.short(label) for label in times], parse_math=False, color=palette.INK)
    ax.set_ylim(max(len(times), 4) - 0.5, -0.95)
    ax.grid(False)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    caption = (
        "Mean over all steps but the first, which compiles; parts in the order in which they follow each other, as in "
        "the key. Grading: what remained of it once the last generation had ended. Saving and evaluating are left out."
    )
    return Picture(f"step_time{suffix}", title, caption, figure)
