"""Compares runs: `python -m polyepo_jax.report RUN_DIR ... --out DIR`.

Reads the files of evaluated run directories, prints a table, and writes report.html and PNG plots to DIR.
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
from polyepo_jax.errors import InputError, run_command
from polyepo_jax.pods import object_storage

_CAPTIONS = {
    "comparison.png": "Left: the chance that any of k samples is correct. Right: how many different correct answers "
    "the samples of one prompt hold, over training.",
    "pass_at_k.png": "The chance that any of k samples is correct, on each benchmark.",
    "distinct_correct.png": "Different correct answers among the samples of a prompt, and the mean reward, over "
    "training. Faint: each step; strong: a moving average.",
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compares evaluated runs in a table, a page and plots, from the files in their directories."""

    run_dirs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR ...", help_behavior_hint="")
    ]
    """Run directories with an eval.json, in the order in which to show them; the first is the one to compare with."""
    out: Path
    """Folder for report.html, comparison.png, pass_at_k.png and distinct_correct.png; made when missing."""


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
        raise InputError(f"--out {directory}: cannot be written ({error.strerror}); name another folder") from None


def _print_table(console: rich.console.Console, table: reports.Table) -> None:
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
        heading = rich.text.Text("\n".join(column.split()))
        view.add_column(heading, justify="right" if i else "left", no_wrap=i > 0, overflow="fold", vertical="bottom")
    for row in table.rows:
        view.add_row(*map(rich.text.Text, row))
    console.print(view)
    if table.note:
        console.print(rich.text.Text(table.note))


def main(arguments: Sequence[str]) -> None:
    """Raises InputError for run directories that cannot be reported on, or an --out that cannot be written."""
    options = parse_command_line(Arguments, arguments, "python -m polyepo_jax.report")
    runs = reports.load_runs([object_storage.working_copy(path) for path in options.run_dirs])
    tables = reports.comparison_tables(runs)
    pictures = {
        "comparison.png": reports.png_bytes(reports.comparison_figure(runs)),
        "pass_at_k.png": reports.png_bytes(reports.pass_at_k_figure(runs)),
        "distinct_correct.png": reports.png_bytes(reports.training_figure(runs)),
    }
    page = reports.report_html(
        title=reports.report_title(runs),
        lead=f"Comparison of {', '.join(run.label for run in runs)}",
        tables=tables,
        # The comparison shows the first benchmark's pass@k already.
        figures=[
            (_CAPTIONS[name], png) for name, png in pictures.items() if len(tables) > 1 or name != "pass_at_k.png"
        ],
    )
    _write_files(options.out, pictures | {"report.html": page.encode()})
    console = rich.console.Console(highlight=False, soft_wrap=False)
    for table in tables:
        _print_table(console, table)
    console.print(rich.text.Text(f"wrote {options.out / 'report.html'} and {len(pictures)} plots beside it"))


if __name__ == "__main__":
    run_command(main)
