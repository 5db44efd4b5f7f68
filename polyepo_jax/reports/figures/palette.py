"""Colours of figures and page, on white and on dark, and how each method's lines are drawn."""

import dataclasses
from collections.abc import Sequence

from polyepo_jax.reports.differences import Method

# Role -> (on white, on dark). Figures are drawn with the first; on the page each is a variable of its role's name.
INK, MUTED, GRID, AXIS, PAPER = "#1b1f24", "#59636e", "#e3e6ea", "#b6bcc4", "#ffffff"
_ROLES = {
    "ink": (INK, "#e8eaed"),
    "muted": (MUTED, "#9aa4af"),
    "grid": (GRID, "#2b3138"),
    "axis": (AXIS, "#4a525b"),
    "paper": (PAPER, "#14171a"),
}
# Okabe and Ito's palette (safe for colour-blind readers), without the hues too light for text on white.
_KNOWN = {"warm_start": "#6b6b6b", "grpo": "#d55e00", "grpo_div": "#008060", "poly_epo": "#0072b2"}
_SPARE = ("#aa3377", "#8a6d00", "#332288", "#2a9db5", "#882255", "#44691f")
_ON_DARK = {
    **{"#6b6b6b": "#a9afb6", "#d55e00": "#ff9552", "#008060": "#3cc9a0", "#0072b2": "#5cb3f2"},
    **{"#aa3377": "#ee88bb", "#8a6d00": "#d6b740", "#332288": "#a99df2", "#2a9db5": "#5fcde4"},
    **{"#882255": "#dd86b0", "#44691f": "#9dca68"},
}
# Parts of a whole, in one hue from dark to light: their order and the numbers in them tell them apart too.
PARTS = ("#1f3a52", "#3f6d94", "#7ba3c4", "#a9c4da", "#d5e1eb")
_PARTS_ON_DARK = ("#d5e1eb", "#a9c4da", "#7ba3c4", "#4d7ea8", "#2f4f6b")
MARKERS = "osD^vPX"
SOLID, DASHED = "-", (0, (4, 2))


@dataclasses.dataclass(frozen=True)
class Style:
    """How a method is drawn. untrained: not by reinforcement, dashed."""

    color: str
    marker: str
    untrained: bool

    @property
    def linestyle(self):
        return DASHED if self.untrained else SOLID


def variables() -> dict[str, tuple[str, str]]:
    """The page's variables: name -> (on white, on dark)."""
    series = {f"series-{color[1:]}": (color, _ON_DARK[color]) for color in (*_KNOWN.values(), *_SPARE)}
    parts = {f"part-{i}": pair for i, pair in enumerate(zip(PARTS, _PARTS_ON_DARK, strict=True))}
    return _ROLES | series | parts


def variable_of(color: str) -> str:
    """The page's variable for a colour that figures are drawn with."""
    return next(name for name, (on_white, _) in variables().items() if on_white == color)


def styles_of(methods: Sequence[Method]) -> dict[str, Style]:
    """Style by label: a colour and a marker for each method, the colour of a known one always the same."""
    spare = [*_SPARE, *_KNOWN.values()]
    styles: dict[str, Style] = {}
    for i, method in enumerate(methods):
        taken = [style.color for style in styles.values()]
        color = _KNOWN.get(method.kind, "")
        if not color or color in taken:
            color = next((c for c in spare if c not in taken), spare[i % len(spare)])
        styles[method.label] = Style(color, MARKERS[i % len(MARKERS)], method.kind == "warm_start")
    return styles
