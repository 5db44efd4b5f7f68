"""The report as one page that needs nothing else, and the figures that are on it."""

import collections
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import markupsafe

from polyepo_jax.pods import object_storage
from polyepo_jax.reports import figures
from polyepo_jax.reports.comparisons import estimates_of, same_num_samples
from polyepo_jax.reports.differences import Method, without_seed
from polyepo_jax.reports.estimates import curve
from polyepo_jax.reports.runs import Run
from polyepo_jax.reports.side_by_side import MOST_COLUMNS, Row, side_by_side
from polyepo_jax.reports.tables import (
    Table,
    benchmark_names,
    benchmark_title,
    differences_table,
    estimates_table,
    failures_table,
    sampled,
    settings_table,
)
from polyepo_jax.reports.visible import one_line, visible

Styles = Mapping[str, figures.Style]

# Shapes of the lines' markers, in a square from -5 to 5.
_MARKER_PATHS = {
    "o": "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "s": "M-3.6,-3.6h7.2v7.2h-7.2z",
    "D": "M0,-4.8L4.8,0L0,4.8L-4.8,0z",
    "^": "M0,-4.6L4.4,3.6H-4.4z",
    "v": "M0,4.6L4.4,-3.6H-4.4z",
    "P": "M-1.6,-4.4h3.2v2.8h2.8v3.2h-2.8v2.8h-3.2v-2.8h-2.8v-3.2h2.8z",
    "X": "M-4.4,-2.2L-2.2,-4.4L0,-2.2L2.2,-4.4L4.4,-2.2L2.2,0L4.4,2.2L2.2,4.4L0,2.2L-2.2,4.4L-4.4,2.2L-2.2,0z",
}
_CLUSTER_COLORS = ("#0072b2", "#d55e00", "#008060", "#aa3377", "#8a6d00", "#332288", "#2a9db5", "#44691f")


@dataclasses.dataclass(frozen=True)
class Section:
    """Part of the page. anchor: its id. remarks: what to bear in mind, a sentence each."""

    anchor: str
    title: str
    lead: str
    remarks: tuple[str, ...] = ()
    pictures: tuple[figures.Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    rows: tuple[Row, ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report shows.

    overview: a figure that is a file only, None if it cannot be drawn. notes: who, and what is missing or damaged.
    """

    title: str
    runs: tuple[Run, ...]
    methods: tuple[Method, ...]
    styles: Mapping[str, figures.Style]
    sections: tuple[Section, ...]
    notes: tuple[tuple[str, str], ...]
    overview: figures.Picture | None

    @property
    def pictures(self) -> list[figures.Picture]:
        """Of the page, in order."""
        return [picture for section in self.sections for picture in section.pictures]


def _task(run: Run) -> str:
    """The class of the task that a run was trained on, "" where its configuration does not say."""
    task = run.config.get("task")
    name = task.get("class") if isinstance(task, dict) else None
    return visible(re.split(r"[.:]", name)[-1]) if isinstance(name, str) else ""


def _title(methods: Sequence[Method]) -> str:
    """What the runs were trained for: the first benchmark, which is the training task's held-out split."""
    names, tasks = benchmark_names(methods), [_task(run) for method in methods for run in method.runs]
    return benchmark_title(names[0]) if names else next(filter(None, tasks), "Runs")


def _benchmark_section(methods: Sequence[Method], names: Sequence[str], name: str, styles: Styles) -> Section:
    present = [method for method in methods if method.evaluated(name)]
    remarks = []
    absent = [method for method in methods if method not in present]
    ungraded = [method for method in absent if any(name in run.ungraded for run in method.runs)]
    for words, those in (
        ("Not evaluated on it", [method for method in absent if method not in ungraded]),
        ("Evaluated on it, but none of the problems could be graded", ungraded),
    ):
        if those:
            remarks.append(f"{words}: {', '.join(method.label for method in those)}.")
    if not same_num_samples(present, name):
        counts = [f"{m.label} {m.evaluated(name)[0].benchmarks[name].num_samples:,}" for m in present]
        remarks.append(
            f"Evaluated with different numbers of samples ({', '.join(counts)}): counts of different answers, coverage "
            "and branching grow with them and are not compared; pass@k at equal k and rarefied counts are."
        )
    samplings = {
        tuple(sorted((k, one_line(str(v), 40)) for k, v in without_seed(run.sampling).items()))
        for method in present
        for run in method.evaluated(name)
    }
    if len(samplings - {()}) > 1:
        written = [", ".join(f"{k} {v}" for k, v in sampling) for sampling in sorted(samplings - {()})]
        remarks.append(f"Sampled differently ({visible('; '.join(written))}), which changes all of it.")
    if max((k for m in present for k in curve(estimates_of(m, name), "pass_at_k")), default=0) == 1:
        remarks.append("No curves over k: one sample of each problem gives pass@1 alone.")
    differences = differences_table(present, name)
    if differences is None and len(present) > 1:
        remarks.append("No paired differences: no eval_problems.jsonl with the same problems.")
    return Section(
        anchor=f"benchmark-{names.index(name) + 1}",
        title=benchmark_title(name),
        lead=f"{sampled(present, name)}. {figures.how_to_read(present, name)}",
        remarks=tuple(remarks),
        pictures=tuple(figures.benchmark_pictures(methods, names, name, styles)),
        tables=(estimates_table(present, name), *([differences] if differences else [])),
    )


def _training_sections(methods: Sequence[Method], styles: Styles) -> list[Section]:
    """Of each task that runs were trained on, what there is over its steps; runs without a config go with the first."""
    groups: dict[str, list[Method]] = collections.defaultdict(list)
    tasks = [_task(method.runs[0]) for method in methods]
    first = next(filter(None, tasks), "")
    for method, task in zip(methods, tasks, strict=True):
        groups[task or first].append(method)
    return [
        section
        for i, (task, group) in enumerate(groups.items())
        for section in _task_sections(i, task if len(groups) > 1 else "", group, styles)
    ]


def _task_sections(i: int, task: str, methods: Sequence[Method], styles: Styles) -> list[Section]:
    """Of the task of that number; its name where there are others, else ""."""
    suffix = f"_{re.sub(r'[^a-z0-9]+', '_', task.lower())[:40]}_{i + 1}" if i else ""
    remarks = ["Runs of other tasks have sections of their own: their curves do not compare."] if task else []
    firsts = {next(iter(run.benchmarks), "") for method in methods for run in method.runs} - {""}
    if len(firsts) > 1:
        names = ", ".join(sorted(map(benchmark_title, firsts)))
        remarks.append(
            f"The runs seem to be trained on different problems, for they are evaluated on others ({names})."
        )
    pictures, failures = figures.training_pictures(methods, styles, suffix), failures_table(methods)
    if failures:
        pictures.setdefault(figures.GRADING, [])
    return [
        Section(
            anchor=f"{re.sub('[^a-z]+', '-', heading.lower())}-{i + 1}",
            title=f"{heading}: {task}" if task else heading,
            lead=figures.how_to_read_steps(methods) if of else "",
            remarks=tuple(remarks),
            pictures=tuple(of),
            tables=(failures,) if failures and heading == figures.GRADING else (),
        )
        for heading, of in pictures.items()
    ]


def _notes(runs: Sequence[Run], of_samples: Sequence[str]) -> list[tuple[str, str]]:
    """Whose, and what: equal notes of several runs are one."""
    whose: dict[str, list[str]] = collections.defaultdict(list)
    for run in runs:
        for note in (*run.damaged, *run.missing):
            whose[note].append(run.label)
    return [
        *(
            (", ".join(labels) if len(labels) < len(runs) or len(runs) == 1 else "all runs", note)
            for note, labels in whose.items()
        ),
        *(("generations", visible(note)) for note in of_samples),
    ]


def make_report(runs: Sequence[Run], methods: Sequence[Method]) -> Report:
    """Reads the generations, and computes and draws all the rest.

    Args:
      runs: in order. methods: the same runs, by method; the first is the one to compare with.
    """
    styles, names = figures.styles_of(methods), benchmark_names(methods)
    sections = [_benchmark_section(methods, names, name, styles) for name in names]
    sections += _training_sections(methods, styles)
    damaged: list[str] = []
    rows = side_by_side(methods, damaged)
    if rows:
        which = f"each of the first {MOST_COLUMNS} methods" if len(methods) > MOST_COLUMNS else "each method"
        lead = f"The same problems from one run of {which}, with its first few samples."
        sections.append(Section("generations", "Generations side by side", lead, rows=tuple(rows)))
    settings = settings_table(runs)
    if settings:
        lead = (
            "Settings that are not the same in all runs, by their dotted names; - where a run has none. What only one "
            "kind of run has is left out where these agree."
        )
        sections.append(Section("settings", "Configurations", lead, tables=(settings,)))
    return Report(
        title=_title(methods),
        runs=tuple(runs),
        methods=tuple(methods),
        styles=styles,
        sections=tuple(sections),
        notes=tuple(_notes(runs, damaged)),
        overview=figures.comparison_picture(methods, names[0], styles) if names else None,
    )


def _key(report: Report) -> list[dict[str, Any]]:
    """How each method is drawn, and which runs it is."""
    key = []
    for method in report.methods:
        style = report.styles[method.label]
        details = []
        for run in method.runs:
            step = [] if run.checkpoint_step is None else [f"evaluated at step {run.checkpoint_step:,}"]
            last = [f"{run.steps[-1]:,} steps logged"] if run.steps.size else []
            seed = [f"seed {run.config['seed']}"] if method.num_seeds > 1 else []
            details.append((visible(object_storage.name_of(run.directory)), ", ".join([*seed, *step, *last])))
        key.append(
            {
                "label": method.label,
                "num_seeds": method.num_seeds,
                "variable": figures.variable_of(style.color),
                "marker": _MARKER_PATHS[style.marker],
                "dashed": style.untrained,
                "details": details,
            }
        )
    return key


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("polyepo_jax.reports", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def report_html(report: Report) -> str:
    """The page. All text is escaped; figures are drawn into it."""
    colors = figures.variables()
    clusters = [figures.variable_of(color) for color in _CLUSTER_COLORS]
    return _template().render(
        report=report,
        key=_key(report),
        svg=lambda picture: markupsafe.Markup(figures.inline_svg(picture)),
        on_white={name: pair[0] for name, pair in colors.items()},
        on_dark={name: pair[1] for name, pair in colors.items()},
        clusters=clusters,
    )
