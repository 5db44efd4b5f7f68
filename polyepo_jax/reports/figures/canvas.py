"""Single panels of one size, made without pyplot so that no global state is touched, and their files."""

import dataclasses
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Bbox

from polyepo_jax.reports.figures import palette

WIDTH, HEIGHT = 3.75, 2.6  # inches; the page shows an inch as about 96 pixels, also on a phone
_DPI = 240
_TITLE, _TEXT, _LABEL = 10.5, 8.5, 9.0  # points
_LEFT, _BOTTOM, _TOP = 0.47, 0.4, 0.58  # inches around the axes; the right side depends on the labels
_LONGEST_LABEL = 16  # characters
LABEL_POINTS = 11.5  # distance between the names of lines
_MARGIN = 0.1  # inches around a figure in a file of its own
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of a report.

    name: of its files, without the ending. title: a few words. caption: how to read it, and what it estimates.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def short(text: str) -> str:
    """A name as figures show it."""
    text = text.replace("base (warm start)", "base")
    return text if len(text) <= _LONGEST_LABEL else f"{text[:7]}…{text[-8:]}"


def text_width(text: str, points: float, weight: str = "normal") -> float:
    """Inches."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font lacks
        width, _, _ = text_to_path.get_text_width_height_descent(
            text, FontProperties(size=points, weight=weight), False
        )
    return width / 72


def new_figure(num_labels: int, width: float = WIDTH, num_rows: int = 1) -> Figure:
    """Of so many inches and rows of panels; higher where there are too many lines to name them in the usual height."""
    height = num_rows * max(HEIGHT, _BOTTOM + _TOP + num_labels * LABEL_POINTS / 72)
    return Figure(figsize=(width, height), dpi=_DPI, facecolor=palette.PAPER)


def add_panel(
    figure: Figure,
    title: str,
    subtitle: str,
    xlabel: str,
    labels: Sequence[str] = (),
    column: int = 0,
    left: float = _LEFT,
    row: int = 0,
    num_rows: int = 1,
) -> Axes:
    """Axes in the figure's column and row of these numbers, with room at their right for the labels of lines.

    Args:
      title, subtitle: what is shown, and its unit.
      left: inches for the labels of the vertical axis.
    """
    width, height = figure.get_size_inches()
    start, bottom = column * WIDTH, _BOTTOM if xlabel else 0.28
    floor, ceiling = height * (1 - (row + 1) / num_rows), height * (1 - row / num_rows)
    right = 0.17 + max((text_width(short(label), _LABEL, "bold") for label in labels), default=0.0)
    ax = figure.add_axes(
        (
            (start + left) / width,
            (floor + bottom) / height,
            (WIDTH - left - right) / width,
            (ceiling - floor - bottom - _TOP) / height,
        )
    )
    x = start / width
    for text, inches, size, color, weight in (
        (title, 0.19, _TITLE, palette.INK, "bold"),
        (subtitle, 0.385, _TEXT, palette.MUTED, "normal"),
    ):
        y = (ceiling - inches) / height
        figure.text(x, y, text, fontsize=size, color=color, fontweight=weight, va="baseline", parse_math=False)
    x, y = (start + left) / width, (floor + 0.06) / height
    figure.text(x, y, xlabel, fontsize=_TEXT, color=palette.MUTED, parse_math=False)
    ax.tick_params(colors=palette.MUTED, labelsize=_TEXT, length=0, pad=4)
    ax.grid(axis="y", color=palette.GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_facecolor("none")
    for side, spine in ax.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(palette.AXIS)
    return ax


def svg_bytes(picture: Picture) -> bytes:
    """The figure as an SVG file, its text as text, the same bytes for the same figure."""
    return _saved(picture.figure, "svg", _NO_METADATA)


def png_bytes(picture: Picture) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    return _saved(picture.figure, "png", {"Software": None})


def _saved(figure: Figure, kind: str, metadata: Mapping[str, None], margin: float = _MARGIN) -> bytes:
    """The file, with so many inches around the figure."""
    buffer = io.BytesIO()
    width, height = figure.get_size_inches()
    box = Bbox(((-margin, -margin), (width + margin, height + margin))) if margin else None
    options: Any = {"svg.fonttype": "none", "svg.hashsalt": "polyepo_jax", "font.family": "sans-serif"}
    with matplotlib.rc_context(options), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of characters that the font lacks
        figure.savefig(buffer, format=kind, metadata=dict(metadata), bbox_inches=box)
    return buffer.getvalue()


def inline_svg(picture: Picture) -> str:
    """The figure for the page: with the page's font and colours, ids of its own, and a description."""
    text = _saved(picture.figure, "svg", _NO_METADATA, margin=0).decode("utf-8")
    text = text[text.index("<svg") :]
    # The page has its own style; this one would hold for all of the page.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: _inline_tag(tag[0], picture.name), text)
    description = f'role="img" aria-label="{_attribute(f"{picture.title}. {picture.caption}")}"'
    return re.sub(r'<svg (?:[^>]*?)(viewBox="[^"]+")[^>]*>', rf"<svg \1 {description}>", text, count=1)


def _attribute(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("\\", "&#92;")):
        text = text.replace(character, entity)
    return text


def _inline_tag(tag: str, name: str) -> str:
    """One tag with short numbers, ids that no other figure has, and colours as variables."""
    if tag.startswith("<!--"):
        return ""
    tag = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), tag)
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    for variable, (on_white, _) in palette.variables().items():
        tag = tag.replace(on_white, f"var(--{variable})")
    return tag
