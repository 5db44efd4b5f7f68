"""Text of models, files and directories, made fit to be shown."""

import dataclasses
import unicodedata

# In fonts everywhere, unlike the pictures of control characters.
_OPEN, _CLOSE = "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}", "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
# Controls, format and private characters, halves of pairs, unassigned ones: unseen, or they turn text around.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_JOINERS = {"\u200c", "\u200d"}  # which scripts and emoji need


def visible(text: str, newlines: bool = False) -> str:
    """Control characters and others that are unseen by their number, U+001B in angles; the rest as it is.

    Args:
      newlines: keep line ends; otherwise they are numbers too.
    """
    return text if text.isascii() and text.isprintable() else "".join(_shown(c, newlines) for c in text)


def _shown(character: str, newlines: bool) -> str:
    if unicodedata.category(character) not in _UNSEEN or character in _JOINERS or (newlines and character == "\n"):
        return character
    return f"{_OPEN}U+{ord(character):04X}{_CLOSE}"


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """A text whose middle may be left out: what stands before, how many characters are missing, what stands after."""

    head: str
    left_out: int
    tail: str


def excerpt(text: str, most: int) -> Excerpt:
    """At most `most` characters of a text, two thirds of them from its start, with all of them visible.

    Characters are counted as they came, before those that are unseen are spelled out.
    """
    if len(text) <= most:
        return Excerpt(visible(text, newlines=True), 0, "")
    head, tail = text[: 2 * most // 3], text[len(text) - (most - 2 * most // 3) :]
    return Excerpt(visible(head, newlines=True), len(text) - most, visible(tail, newlines=True))


def one_line(text: str, most: int) -> str:
    """A text on one line, its middle as `…` where it is longer than `most`."""
    return visible(text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - most // 2 - 1) :]}")
