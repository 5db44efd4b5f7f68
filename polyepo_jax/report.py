"""Compares runs: `python -m polyepo_jax.report RUN_DIR ... --out DIR`.

Reads the files of run directories, prints a table, and writes report.html to DIR, with its figures as PNG and SVG files
beside it. What is missing or damaged is said on the page and on stderr, and the rest is shown.
"""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import rich.box
import rich.console
import rich.table
import rich.text
import tyro

from polyepo_jax import reports
from polyepo_jax.command_line import parse_command_line
from polyepo_jax.errors import InputError, run_command, warn_on_stderr
from polyepo_jax.pods import object_storage
from polyepo_jax.reports.visible import visible

_UNBOUNDED = 10_000  # characters


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compares runs in a table, a page and figures, from the files in their directories."""

    run_dirs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR ...", help_behavior_hint="")
    ]
    """Run directories, in the order in which to show them; the first is the one to compare with. Runs whose
    configurations differ in their seed only, and that were evaluated alike, are shown as one method."""
    out: Path
    """Folder for report.html, comparison.png, pass_at_k.png and the other figures; made when missing."""


def _write_file(path: Path, content: bytes) -> None:
    """Writes all of the file or nothing: a reader never sees half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _write_file(directory / name, content)
    except OSError as error:
        where = visible(str(directory))
        raise InputError(f"--out {where}: cannot be written ({error.strerror}); name another folder") from None


def _view(table: reports.Table, intervals: bool) -> rich.table.Table:
    # Names come from the file system: as Text they are shown as they are, not read as markup.
    view = rich.table.Table(
        title=rich.text.Text(table.title),
        title_justify="left",
        title_style="bold",
        box=rich.box.SIMPLE_HEAD,
        padding=0,
    )
    for i, column in enumerate(table.columns):
        # Only the runs' names give way in a narrow terminal: a number cut short would be another number.
        heading = rich.text.Text("\n".join(column.split()) if i else column)
        view.add_column(heading, justify="right" if i else "left", no_wrap=i > 0, overflow="fold", vertical="bottom")
    for row in table.rows:
        cells = [rich.text.Text(cell.text) for cell in row]
        if intervals:
            cells = [text.append(f"\n{cell.interval}", "dim") for text, cell in zip(cells, row, strict=True)]
        view.add_row(*cells)
    return view


def _print_table(console: rich.console.Console, table: reports.Table) -> None:
    """With intervals beneath the numbers, where the terminal is wide enough."""
    has_intervals = any(cell.interval for row in table.rows for cell in row)
    view = _view(table, has_intervals)
    wanted = console.measure(view, options=console.options.update(max_width=_UNBOUNDED)).maximum
    if has_intervals and wanted > console.width:
        has_intervals, view = False, _view(table, False)
    console.print(view)
    if has_intervals:
        console.print(rich.text.Text("beneath: 95 % intervals, of several seeds their range", "dim"))
    if table.note:
        console.print(rich.text.Text(table.note))


def main(arguments: Sequence[str]) -> None:
    """Raises InputError if no run has anything to show, or for an --out that cannot be written."""
    options = parse_command_line(Arguments, arguments, "python -m polyepo_jax.report")
    runs = reports.load_runs([object_storage.working_copy(path) for path in options.run_dirs])
    methods = reports.methods_of(runs)
    report = reports.make_report(runs, methods)
    pictures = [*([report.overview] if report.overview else []), *report.pictures]
    files = {f"{picture.name}.png": reports.png_bytes(picture) for picture in pictures}
    files |= {f"{picture.name}.svg": reports.svg_bytes(picture) for picture in pictures}
    _write_files(options.out, files | {"report.html": reports.report_html(report).encode()})
    for whose, note in report.notes:
        warn_on_stderr(f"{whose}: {note}")
    console = rich.console.Console(highlight=False, soft_wrap=False)
    for name in reports.benchmark_names(methods):
        _print_table(console, reports.summary_table(methods, name))
    page = visible(str(options.out / "report.html"))
    console.print(rich.text.Text(f"wrote {page} and {len(pictures)} figures beside it"))


if __name__ == "__main__":
    run_command(main)
