"""Tables as cells of text, for the terminal and for the page alike."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from polyepo_jax.reports.comparisons import (
    Differences,
    Estimate,
    estimates_of,
    paired_differences,
    same_num_samples,
)
from polyepo_jax.reports.differences import Method, setting_differences
from polyepo_jax.reports.estimates import curve
from polyepo_jax.reports.runs import Run
from polyepo_jax.reports.visible import visible

_NONE = "-"
_TO, _MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
_INTERVALS = "Beneath a number: its 95 % interval, bootstrap over problems, unless that is the number itself"
_MARK = "* k beyond half the samples: varies much from evaluation to evaluation."
_SCALARS = {
    "coverage": "coverage",
    "distinct": "distinct answers",
    "distinct_correct": "distinct correct answers",
    "distinct_correct_if_solved": "distinct correct, of solved problems",
    "distinct_incorrect": "distinct incorrect answers",
    "identical_pairs_frac": "identical pairs of samples",
    "first_divergence": "samples part at token",
    "mean_length": "length, tokens",
    "degenerate_frac": "degenerate samples",
    "truncated_frac": "truncated samples",
}
_CURVES = {"pass_at_k": "pass", "hidden_at_k": "hidden", "majority_at_k": "majority", "vote_share_at_k": "vote share"}
_SHARES = {*_CURVES, "coverage", "identical_pairs_frac", "degenerate_frac", "truncated_frac"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number as text, its interval, and whether that lies "above" or "below" 0, "" for neither or unknown."""

    text: str
    interval: str = ""
    side: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """title: what it holds. columns, rows: the first column names the row. note: sentences under it, "" for none."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str


def benchmark_title(name: str) -> str:
    """A benchmark's name as people write it: "polynomials/held_out" becomes "Polynomials, held out"."""
    title = name.replace("/", ", ").replace("_", " ")
    return title[:1].upper() + title[1:]


def benchmark_names(methods: Sequence[Method]) -> list[str]:
    """All benchmarks, in the order of the first run and then of the others."""
    return list(dict.fromkeys(name for method in methods for run in method.runs for name in run.benchmarks))


def _words(values: Sequence[int]) -> str:
    return " or ".join(dict.fromkeys(f"{value:,}" for value in values))


def sampled(methods: Sequence[Method], name: str) -> str:
    """ "128 problems, 64 samples of each"."""
    found = [run.benchmarks[name] for method in methods for run in method.evaluated(name)]
    return (
        f"{_words([b.num_prompts for b in found])} problems, {_words([b.num_samples for b in found])} samples of each"
    )


def _is_share(name: str) -> bool:
    return name.partition("/")[0] in _SHARES


def _text(value: float, share: bool) -> str:
    return f"{value:.1%}" if share else f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def _cell(estimate: Estimate | None, share: bool) -> Cell:
    if estimate is None:
        return Cell(_NONE)
    if math.isnan(estimate.low):
        return Cell(_text(estimate.value, share))
    text, low, high = (_text(end, share).rstrip("%") for end in (estimate.value, estimate.low, estimate.high))
    return Cell(_text(estimate.value, share), f"{low}{_TO}{high}" if {low, high} != {text} else "")


def _difference_cell(estimate: Estimate | None, share: bool) -> Cell:
    """Shares in percentage points."""
    if estimate is None:
        return Cell(_NONE)

    def written(value: float) -> str:
        text = f"{100 * value:+.1f}" if share else f"{value:+.2f}"
        return ("0" + text[2:] if not text.strip("+-0.") else text).replace("-", _MINUS)

    if math.isnan(estimate.low):
        return Cell(written(estimate.value))
    side = "above" if estimate.low > 0 else "below" if estimate.high < 0 else ""
    text, low, high = written(estimate.value), written(estimate.low), written(estimate.high)
    return Cell(text, f"{low} to {high}" if {low, high} != {text} else "", side)


def _at_k(words: str, k: int, above: int) -> str:
    return f"{words}@{k}{' *' if k > above else ''}"


def _is_marked(names: Iterable[str]) -> bool:
    return any(name.endswith("*") for name in names)


def _measures(found: Sequence[Mapping[str, Estimate]], above: int) -> dict[str, str]:
    """Names of estimates that any method has, with what they are called; all k of pass@k, the others at a few."""
    measures: dict[str, str] = {}
    for name, words in _CURVES.items():
        ks = sorted({k for of in found for k in curve(of, name)})
        settled = [k for k in ks if k <= above]
        shown = (
            ks if name == "pass_at_k" else sorted({*settled[-1:], *ks[-1:], *(ks[:1] if name == "hidden_at_k" else ())})
        )
        measures |= {f"{name}/{k}": _at_k(words, k, above) for k in shown}
    return measures | {name: words for name, words in _SCALARS.items() if any(name in of for of in found)}


def _high_variance_above(methods: Sequence[Method], name: str) -> int:
    return min(run.benchmarks[name].high_variance_above for method in methods for run in method.evaluated(name))


def head(method: Method, name: str) -> str:
    """A method's label, with the number of seeds that were evaluated where it has several."""
    count = len(method.evaluated(name))
    return method.label if method.num_seeds == 1 else f"{method.label} ({count} seeds)"


def _interval_note(methods: Sequence[Method], name: str) -> str:
    several = any(len(method.evaluated(name)) > 1 for method in methods)
    return _INTERVALS + ("; of several seeds their mean, and their range." if several else ".")


def estimates_table(methods: Sequence[Method], name: str) -> Table:
    """All numbers of a benchmark, a column for each method that was evaluated on it."""
    present = [method for method in methods if method.evaluated(name)]
    found, above = [estimates_of(method, name) for method in present], _high_variance_above(present, name)
    measures = _measures(found, above)
    notes = [_interval_note(present, name)] if any(not math.isnan(e.low) for of in found for e in of.values()) else []
    notes += [_MARK] if _is_marked(measures.values()) else []
    return Table(
        title="Estimates",
        columns=("", *(head(method, name) for method in present)),
        rows=tuple(
            (Cell(words), *(_cell(of.get(measure), _is_share(measure)) for of in found))
            for measure, words in measures.items()
        ),
        note=" ".join([*notes, ratio_note(present, name)]).strip(),
    )


def differences_table(methods: Sequence[Method], name: str) -> Table | None:
    """Paired differences to the first method; None where no problems can be paired."""
    base, *others = [method for method in methods if method.evaluated(name)]
    pairs = [(method, paired_differences(method, base, name)) for method in others]
    found: list[tuple[Method, Differences]] = [(method, of) for method, of in pairs if of is not None]
    if not found:
        return None
    measures = _measures([of.estimates for _, of in found], _high_variance_above([base, *others], name))
    problems = _words([of.num_problems for _, of in found])
    several = any(len(method.evaluated(name)) > 1 for method in (base, *others))
    return Table(
        title=f"Differences to {base.label}",
        columns=("", *(head(method, name) for method, _ in found)),
        rows=tuple(
            (Cell(words), *(_difference_cell(of.estimates.get(measure), _is_share(measure)) for _, of in found))
            for measure, words in measures.items()
        ),
        note=f"On the same {problems} problems, paired; shares in percentage points. Beneath each: its 95 % interval, "
        "bootstrap over problems. ▲ ▼ the interval lies above or below 0."
        + (" Several seeds are averaged on each problem first." if several else "")
        + (f" {_MARK}" if _is_marked(measures.values()) else ""),
    )


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.1f}x" if value >= base else f"{value / base:.2f}x"


def ratio_note(methods: Sequence[Method], name: str) -> str:
    """How many times the distinct correct answers of the first method, and of the poorest, each method finds."""
    estimates = {method.label: estimates_of(method, name).get("distinct_correct") for method in methods}
    found = {label: estimate.value for label, estimate in estimates.items() if estimate is not None}
    if len(found) < 2:
        return ""
    if not same_num_samples(methods, name):
        return "The runs were evaluated with different numbers of samples: their distinct answers do not compare."
    parts = []
    for base in dict.fromkeys([next(iter(found)), min(found, key=lambda label: found[label])]):
        if found[base] > 0:
            ratios = ", ".join(
                f"{label} {_ratio(value, found[base])}" for label, value in found.items() if label != base
            )
            parts.append(f"relative to {base}: {ratios}")
    return f"Distinct correct answers a prompt, {'; '.join(parts)}." if parts else ""


def _steps(method: Method, name: str) -> str:
    steps = [run.checkpoint_step for run in method.evaluated(name)]
    return " or ".join(dict.fromkeys(_NONE if step is None else f"{step:,}" for step in steps))


def summary_table(methods: Sequence[Method], name: str) -> Table:
    """The numbers that say most, a row for each method that was evaluated on the benchmark: for the terminal."""
    present = [method for method in methods if method.evaluated(name)]
    found = [estimates_of(method, name) for method in present]
    common = set.intersection(*(set(curve(of, "pass_at_k")) for of in found))
    largest = max(common, default=1)
    ks = [*(k for k in (1, 8) if k in common and k < largest), largest]
    above = _high_variance_above(present, name)
    columns = {f"pass_at_k/{k}": _at_k(_CURVES["pass_at_k"], k, above) for k in ks}
    columns |= {f"majority_at_k/{largest}": _at_k(_CURVES["majority_at_k"], largest, above)}
    columns |= {"distinct": _SCALARS["distinct"], "distinct_correct": _SCALARS["distinct_correct"]}
    return Table(
        title=f"{benchmark_title(name)} ({sampled(present, name)})",
        columns=("run", "step", *columns.values()),
        rows=tuple(
            (
                *(Cell(head(method, name)), Cell(_steps(method, name))),
                *(_cell(of.get(measure), _is_share(measure)) for measure in columns),
            )
            for method, of in zip(present, found, strict=True)
        ),
        note="\n".join(filter(None, [_MARK if _is_marked(columns.values()) else "", ratio_note(present, name)])),
    )


def settings_table(runs: Sequence[Run]) -> Table | None:
    """What differs between the runs' configurations; None where nothing does."""
    found = setting_differences(runs)
    if not found:
        return None
    return Table(
        title="What differs between the configurations",
        columns=("setting", *(run.label for run in runs)),
        rows=tuple((Cell(visible(key)), *map(Cell, values)) for key, values in found[:_MOST_SETTINGS]),
        note=f"{len(found) - _MOST_SETTINGS:,} more settings differ; config.json has them."
        if len(found) > _MOST_SETTINGS
        else "",
    )


_MOST_SETTINGS = 150
_COUNTS = ("judge/failures/", "judge/transport/", "verifier/failures/", "verifier/faults/")
_CALLS = ("judge/calls", "judge/attempts", "judge/cached", "judge/cache_failed", "judge/shortened")


def failures_table(methods: Sequence[Method]) -> Table | None:
    """Calls and failures by kind, added up over steps and seeds; None where no such thing was counted."""
    names = dict.fromkeys(
        n for m in methods for run in m.runs for n in run.metrics if n.startswith(_COUNTS) or n in _CALLS
    )
    totals = {name: [_total(method, name) for method in methods] for name in names}
    never = [name for name, counts in totals.items() if not any(counts) and name.startswith(_COUNTS)]
    shown = {name: counts for name, counts in totals.items() if any(counts)}
    if not names:
        return None
    note = f"Never happened: {', '.join(visible(name) for name in never)}." if never else ""
    return Table(
        title="Calls and failures by kind",
        columns=("", *(method.label for method in methods)),
        rows=tuple(
            (Cell(visible(name)), *(Cell(_NONE if count is None else f"{count:,.0f}") for count in counts))
            for name, counts in shown.items()
        ),
        note=f"Added up over the steps, and over seeds where there are several. {note}".strip(),
    )


def _total(method: Method, name: str) -> float | None:
    """None where no run of the method counted it."""
    logged = [run.series(name)[1] for run in method.runs if name in run.metrics]
    return float(sum(values[~_nan(values)].sum() for values in logged)) if logged else None


def _nan(values):
    return values != values
