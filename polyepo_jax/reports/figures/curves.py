"""Metrics over the steps as lines: thinned, smoothed, and joined over seeds."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from polyepo_jax.reports.differences import Method
from polyepo_jax.reports.figures.lines import Line

_SMOOTHED_FROM = 40  # points


@dataclasses.dataclass(frozen=True)
class Averaging:
    """Of a line: points each of this many steps' mean, and over how many points the moving average is."""

    per_point: int
    window: int


def thin(steps: np.ndarray, values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, int]:
    """At most `most` points, each the mean of as many successive ones; NaN where none of them is defined.

    Returns:
      Mean steps, mean values, and how many points became one.
    """
    per_point = -(-len(steps) // most)
    if per_point <= 1:
        return steps.astype(float), values, 1
    cuts = np.arange(0, len(steps), per_point)
    defined = np.isfinite(values)
    counts = np.add.reduceat(defined.astype(float), cuts)
    with np.errstate(invalid="ignore"):
        means = np.add.reduceat(np.where(defined, values, 0.0), cuts) / np.where(counts > 0, counts, np.nan)
    lengths = np.diff([*cuts, len(steps)])
    return np.add.reduceat(steps.astype(float), cuts) / lengths, means, per_point


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving average of the defined values; undefined where the value itself is."""
    defined = np.isfinite(values)
    kernel = np.ones(window)
    sums = np.convolve(np.where(defined, values, 0.0), kernel, mode="same")
    weights = np.convolve(defined.astype(float), kernel, mode="same")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(defined, sums / weights, np.nan)


def _series(method: Method, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps that all runs with that metric logged, and values [runs, steps]."""
    found = [(steps, values) for steps, values in (run.series(name) for run in method.runs) if steps.size]
    if not found:
        return np.array([], int), np.zeros((0, 0))
    steps = found[0][0]
    for other, _ in found[1:]:
        steps = np.intersect1d(steps, other)
    return steps, np.stack([values[np.isin(at, steps)] for at, values in found])


def line_of(method: Method, name: str, most: int, unit: float = 1.0) -> tuple[Line, Averaging] | None:
    """A method's metric over the steps that all its seeds logged: mean and range, a gap where one is undefined.

    Args:
      most: points of the line. Long ones are smoothed, too.
      unit: what the values are divided by.

    Returns:
      None where at no step all seeds have it.
    """
    steps, values_RS = _series(method, name)
    values_RS = values_RS / unit
    if not np.any(np.all(np.isfinite(values_RS), axis=0)):
        return None
    thinned = [thin(steps, values, most) for values in values_RS]
    x, _, per_point = thinned[0]
    raw_RX = np.stack([values for _, values, _ in thinned])
    window = 2 * (len(x) // 40) + 1 if len(x) > _SMOOTHED_FROM else 1
    smooth_RX = np.stack([smooth(values, window) for values in raw_RX]) if window > 1 else raw_RX
    alone, nothing = len(values_RS) == 1, np.full(len(x), np.nan)
    line = Line(
        method.label,
        x,
        smooth_RX.mean(0),
        nothing if alone else smooth_RX.min(0),
        nothing if alone else smooth_RX.max(0),
        np.zeros(len(x), bool),
        raw_RX[0] if alone and window > 1 else np.array([]),
        marked=len(x) <= _SMOOTHED_FROM,
    )
    return line, Averaging(per_point, window)


def averaging_note(averagings: Sequence[Averaging]) -> str:
    """How the points of a figure's lines were made, a sentence for its caption; "" where they are as logged."""
    per_point, window = max(a.per_point for a in averagings), max(a.window for a in averagings)
    notes = []
    if per_point > 1:
        notes.append(f"each point is the mean of up to {per_point} steps, to keep the file small")
    if window > 1:
        notes.append(f"moving average over {window} points")
    text = "; ".join(notes)
    return f" {text[:1].upper()}{text[1:]}." if text else ""
