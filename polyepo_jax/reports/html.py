"""The report as one page that needs nothing else: tables, and plots embedded as data."""

import base64
import html
from collections.abc import Sequence

from polyepo_jax.reports.tables import Table

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 3rem 1.5rem 4rem; max-width: 60rem; color: #1b1f24; background: #fff;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.75rem; line-height: 1.2; letter-spacing: -.01em; }
h2 { margin: 2.75rem 0 .75rem; font-size: 1.15rem; }
.lead { margin: 0; color: #59636e; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .75rem; text-align: right; white-space: nowrap; }
th { border-bottom: 1.5px solid #1b1f24; font-size: .8125rem; font-weight: 600; vertical-align: bottom;
     white-space: normal; }
td { border-bottom: 1px solid #e3e6ea; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
th:last-child, td:last-child { padding-right: 0; }
td:first-child { font-weight: 600; }
.note { margin: .75rem 0 0; color: #3d444d; }
figure { margin: 2.75rem 0 0; }
img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: .5rem; color: #59636e; font-size: .875rem; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid #e3e6ea; color: #59636e; font-size: .8125rem; }
"""

_DEFINITIONS = (
    "pass@k: the chance that any of k samples is correct. majority@k: the chance that the most frequent answer among "
    "k samples is correct, ties shared equally. Both are exact means over all ways to draw k of the samples without "
    "replacement; beyond half the samples they vary much from evaluation to evaluation. Distinct answers: clusters "
    "of different answers or strategies among a prompt's samples, degenerate ones left out."
)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in table.columns)
    rows = "\n".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f"<h2>{html.escape(table.title)}</h2>\n"
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>\n{note}"
    )


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    text = html.escape(caption)
    width = int.from_bytes(png[16:20], "big") // 2  # of the PNG header; the plots have two pixels for each of the page
    image = f'<img src="data:image/png;base64,{data}" width="{width}" alt="{text}">'
    return f"<figure>{image}\n<figcaption>{text}</figcaption></figure>"


def report_html(title: str, lead: str, tables: Sequence[Table], figures: Sequence[tuple[str, bytes]]) -> str:
    """A self-contained page.

    Args:
      title, lead: heading and the line under it. All text is escaped here.
      tables: in order.
      figures: captions and PNG files, in order; the first stands above the tables.
    """
    pictures = [_figure(png, caption) for caption, png in figures]
    body = "\n".join([*pictures[:1], *map(_table, tables), *pictures[1:]])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n{body}\n'
        f"<footer>{html.escape(_DEFINITIONS)}</footer>\n</body>\n</html>\n"
    )
