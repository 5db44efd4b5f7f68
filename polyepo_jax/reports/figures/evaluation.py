"""Figures of one benchmark: curves over k, s and tokens, paired differences, and correctness against variety."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from polyepo_jax.reports.comparisons import Estimate, estimates_of, paired_differences, same_num_samples
from polyepo_jax.reports.differences import Method
from polyepo_jax.reports.estimates import curve
from polyepo_jax.reports.figures import canvas, palette
from polyepo_jax.reports.figures.canvas import Picture
from polyepo_jax.reports.figures.lines import (
    Line,
    compact,
    draw_lines,
    label_ends,
    percent,
    points_of_percent,
    powers_axis,
    share_axis,
    vertical,
)

Styles = Mapping[str, palette.Style]
_FRONTIER = "Correctness against variety"


@dataclasses.dataclass(frozen=True)
class _Curve:
    """How a curve of eval.json is shown. share: in percent; else a count."""

    name: str
    title: str
    subtitle: str
    xlabel: str
    caption: str
    share: bool


_PASS = _Curve(
    *("pass_at_k", "pass@k", "chance that any of k samples is correct", "k samples"),
    "pass@k = 1 - binom(m - c, k) / binom(m, k), with c of m samples correct: exact over all draws of k, averaged over "
    "problems.",
    share=True,
)
_OTHERS = (
    _Curve(
        *("hidden_at_k", "Hidden requirement at k", "chance that any of k samples also meets it", "k samples"),
        "The chance that k samples hold a correct one that meets a requirement unknown in training: what variety is "
        "worth when the goal turns out to be narrower.",
        share=True,
    ),
    _Curve(
        *("majority_at_k", "majority@k", "chance that the most frequent answer is correct", "k samples"),
        "The most frequent cluster among k of the samples is right; ties are shared, degenerate samples never win but "
        "count among the k.",
        share=True,
    ),
    _Curve(
        *("vote_share_at_k", "Vote share at k", "share of the samples in their largest cluster", "k samples"),
        "The size of the largest cluster among k samples, divided by k: 100 % when all samples agree.",
        share=True,
    ),
    _Curve(
        *("rarefied_correct", "Distinct correct answers, rarefied", "different ones among s correct samples"),
        "s correct samples",
        "E[different clusters among s correct samples] = Σ 1 - binom(c - m, s) / binom(c, s), over clusters of m "
        "among c correct samples, over problems with at least s. It compares variety at equally many correct samples. "
        "Hollow: most problems have fewer.",
        share=False,
    ),
    _Curve(
        *("branching", "Branching B(t)", "different beginnings of t tokens among the samples", "t tokens"),
        "How many different prefixes of t tokens a problem's samples have: where it rises, they part.",
        share=False,
    ),
)


def file_suffix(names: Sequence[str], name: str) -> str:
    """Tells the files of one benchmark from another's; the first one's have none."""
    if name == names[0]:
        return ""
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:40]
    slugs = [re.sub(r"[^a-z0-9]+", "_", other.lower()).strip("_")[:40] for other in names[1:]]
    return f"_{slug}" if slug and slugs.count(slug) == 1 else f"_benchmark{names.index(name) + 1}"


def how_to_read(methods: Sequence[Method], name: str) -> str:
    """What bands, dashes and hollow markers of a benchmark's figures are."""
    found = {method.label: method.evaluated(name) for method in methods if method.evaluated(name)}
    bands, notes = [], []
    if any(len(runs) == 1 and runs[0].benchmarks[name].intervals for runs in found.values()):
        bands.append("95 % interval, bootstrap over problems")
    if several := ", ".join(f"{label} n = {len(runs)}" for label, runs in found.items() if len(runs) > 1):
        bands.append(f"range over seeds ({several}), around their mean")
    notes.append(f"Band: {'; or '.join(bands)}." if bands else "No intervals: see what is missing.")
    ks = [k for runs in found.values() for run in runs for k in curve(run.benchmarks[name].values, "pass_at_k")]
    if ks and max(ks) > min(_above(methods, name).values()):
        notes.append("Hollow: k beyond half the samples, where estimates vary much from evaluation to evaluation.")
    return " ".join(notes)


def lines_of(points_by_label: Mapping[str, Mapping[int, Estimate]], up_to: Mapping[str, int]) -> list[Line]:
    """Lines through estimates by k; hollow beyond `up_to` of the label, if it has any."""
    lines = []
    for label, points in points_by_label.items():
        ks = np.array([*points], float)
        values, low, high = (
            np.array([getattr(point, field) for point in points.values()], float) for field in ("value", "low", "high")
        )
        lines.append(Line(label, ks, values, low, high, ks > up_to.get(label, np.inf), np.array([])))
    return lines


def _above(methods: Sequence[Method], name: str) -> dict[str, int]:
    return {
        method.label: min(run.benchmarks[name].high_variance_above for run in method.evaluated(name))
        for method in methods
        if method.evaluated(name)
    }


def _of_most_problems(methods: Sequence[Method], name: str) -> dict[str, int]:
    """Up to which s at least half of the problems have s correct samples, where the runs say."""
    found = {}
    for method in methods:
        benchmarks = [run.benchmarks[name] for run in method.evaluated(name)]
        if all(benchmark.rarefied_problems for benchmark in benchmarks):
            most = [[s for s, n in b.rarefied_problems.items() if 2 * n >= b.num_prompts] for b in benchmarks]
            found[method.label] = min(max(of, default=0) for of in most)
    return found


def _lines(shown: _Curve, methods: Sequence[Method], name: str) -> list[Line]:
    points = {method.label: curve(estimates_of(method, name), shown.name) for method in methods}
    points = {label: by_k for label, by_k in points.items() if by_k}
    if all(max(by_k) < 2 for by_k in points.values()):
        return []
    up_to = _above(methods, name) if shown.name.endswith("_at_k") else {}
    return lines_of(points, _of_most_problems(methods, name) if shown.name == "rarefied_correct" else up_to)


def _draw_curve(figure: Figure, shown: _Curve, lines: Sequence[Line], styles: Styles) -> None:
    ax = canvas.add_panel(figure, shown.title, shown.subtitle, shown.xlabel, [line.label for line in lines])
    ends = draw_lines(ax, lines, styles)
    powers_axis(ax, [k for line in lines for k in line.x])
    if shown.share:
        share_axis(ax, lines)
    else:
        vertical(ax, compact, low=0)
    label_ends(ax, ends, styles)


def draw_pass_at_k(figure: Figure, methods: Sequence[Method], name: str, styles: Styles) -> bool:
    """Into the figure's first column; returns whether there was anything to draw."""
    lines = _lines(_PASS, [method for method in methods if method.evaluated(name)], name)
    if lines:
        _draw_curve(figure, _PASS, lines, styles)
    return bool(lines)


def _curve_picture(shown: _Curve, methods: Sequence[Method], name: str, styles: Styles, suffix: str) -> Picture | None:
    lines = _lines(shown, methods, name)
    if not lines:
        return None
    figure = canvas.new_figure(len(lines))
    _draw_curve(figure, shown, lines, styles)
    return Picture(f"{shown.name}{suffix}", shown.title, shown.caption, figure)


def _difference_picture(methods: Sequence[Method], name: str, styles: Styles, suffix: str) -> Picture | None:
    """pass@k of all methods but the first less the first's, on the same problems."""
    base, *others = methods
    found = {method.label: paired_differences(method, base, name) for method in others}
    points = {label: curve(of.estimates, "pass_at_k") for label, of in found.items() if of is not None}
    points = {label: by_k for label, by_k in points.items() if by_k}
    if not points:
        return None
    above = _above(methods, name)
    lines = lines_of(points, {label: min(above[label], above[base.label]) for label in points})
    title, figure = "pass@k, difference", canvas.new_figure(len(points) + 1)
    subtitle = f"percentage points above {canvas.short(base.label)}"
    ax = canvas.add_panel(figure, title, subtitle, "k samples", [*points, base.label])
    ax.axhline(0, color=styles[base.label].color, linestyle=styles[base.label].linestyle, linewidth=1.2)
    ends = draw_lines(ax, lines, styles) | {base.label: 0.0}
    powers_axis(ax, [k for by_k in points.values() for k in by_k])
    vertical(ax, points_of_percent)
    label_ends(ax, ends, styles)
    counts = sorted({of.num_problems for of in found.values() if of is not None})
    problems = " or ".join(f"{count:,}" for count in counts)
    caption = (
        f"pass@k less that of {base.label} on the same {problems} problems, paired. Band: 95 % interval, bootstrap "
        "over problems; where it is off the line at 0, the difference is more than the choice of problems."
    )
    if any(len(method.evaluated(name)) > 1 for method in methods):
        caption += " Several seeds are averaged on each problem first."
    return Picture(f"pass_at_k_difference{suffix}", title, caption, figure)


def draw_frontier(figure: Figure, methods: Sequence[Method], name: str, styles: Styles, column: int = 0) -> bool:
    """pass@1 against distinct correct answers, a point for each method; returns whether they compare."""
    present = [method for method in methods if method.evaluated(name)]
    found = {method.label: estimates_of(method, name) for method in present}
    points = {
        label: (of["pass_at_k/1"], of["distinct_correct"])
        for label, of in found.items()
        if "pass_at_k/1" in of and "distinct_correct" in of
    }
    if not points or not same_num_samples(present, name):
        return False
    samples = present[0].evaluated(name)[0].benchmarks[name].num_samples
    subtitle, crowded = f"distinct correct answers among {samples} samples", _crowded([*points.values()])
    ax = canvas.add_panel(figure, _FRONTIER, subtitle, "pass@1", [*points] if crowded else (), column)
    for label, (x, y) in points.items():
        # Bars of no length where the interval is undefined.
        xerr, yerr = (np.fmax([[e.value - e.low], [e.high - e.value]], 0.0) for e in (x, y))
        color, marker = styles[label].color, styles[label].marker
        ax.errorbar(x.value, y.value, yerr, xerr, color=color, marker=marker, markersize=6, elinewidth=1.4, ls="")
    left, right = ax.get_xlim()
    margin = max(0.12 * (right - left), 0.01)
    ax.set_xlim(left - margin, right + (margin if crowded else 2 * margin))
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value) if value <= 1 + 1e-9 else ""))
    vertical(ax, compact, 0, 1.15 * ax.get_ylim()[1])
    if crowded:
        label_ends(ax, {label: y.value for label, (_, y) in points.items()}, styles)
    else:
        _label_points(ax, points, styles)
    return True


def _crowded(points: Sequence[tuple[Estimate, Estimate]]) -> bool:
    """Whether names beside the points might overlap; they then stand at the panel's side, at the points' heights."""
    places = np.array([[x.value, y.value] for x, y in points])
    places /= np.maximum([np.ptp(places[:, 0]), places[:, 1].max()], 1e-9)
    apart = np.abs(places[:, None] - places[None])
    near = (apart[..., 0] < 0.4) & (apart[..., 1] < 0.12)
    return bool(np.any(near & ~np.eye(len(places), dtype=bool)))


def _label_points(ax: Axes, points: Mapping[str, tuple[Estimate, Estimate]], styles: Styles) -> None:
    for label, (x, y) in points.items():
        side = 1 if x.value < np.mean(ax.get_xlim()) else -1
        ax.annotate(
            canvas.short(label),
            (x.value, y.value),
            (side * 7, 7),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            fontsize=9,
            fontweight="bold",
            color=styles[label].color,
            parse_math=False,
        )


def _frontier_picture(methods: Sequence[Method], name: str, styles: Styles, suffix: str) -> Picture | None:
    figure = canvas.new_figure(len(methods))
    if not draw_frontier(figure, methods, name, styles):
        return None
    caption = (
        "Up is more variety, right is more often correct. Distinct correct answers: clusters among a problem's correct "
        "samples, degenerate ones left out, averaged over problems. Bars: as the bands."
    )
    return Picture(f"frontier{suffix}", _FRONTIER, caption, figure)


def benchmark_pictures(methods: Sequence[Method], names: Sequence[str], name: str, styles: Styles) -> list[Picture]:
    """All figures of a benchmark that the methods' files allow, by the methods that were evaluated on it."""
    present, suffix = [method for method in methods if method.evaluated(name)], file_suffix(names, name)
    others = [shown for shown in _OTHERS if shown.name != "branching" or same_num_samples(present, name)]
    pictures = [
        _curve_picture(_PASS, present, name, styles, suffix),
        _difference_picture(present, name, styles, suffix),
        _frontier_picture(present, name, styles, suffix),
        *(_curve_picture(shown, present, name, styles, suffix) for shown in others),
    ]
    return [picture for picture in pictures if picture is not None]
