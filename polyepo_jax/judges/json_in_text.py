"""JSON within a text that was written by a model: objects and arrays among prose, drafts and what was cut off.

What is taken for JSON is what Python's `json` reads, and strings in which LaTeX was not escaped (`"\\sqrt{2}"` with one
backslash): where they end is as clear. The time is linear in the length of any text, however hostile.
"""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

_SPACE = re.compile(r"[ \t\n\r]*+")
_PLAIN = r'[^"\\\x00-\x1f]*+'
_STRING = rf'"{_PLAIN}(?:\\[^\x00-\x1f]{_PLAIN})*+"'
_BACKSLASH = re.compile(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})?')
_KEY = re.compile(rf"{_STRING}[ \t\n\r]*+:")
_NUMBER = r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?"
_SCALAR = re.compile(rf"{_STRING}|{_NUMBER}|true|false|null|NaN|-?Infinity")
_WORD = "[0-9.eE+-]*+|t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?|Na?|-?I[a-z]*+"
# The rest of a text that ends within a string, a number or a word of JSON.
_BEGINNING = re.compile(rf'(?:"{_PLAIN}(?:\\[^\x00-\x1f]{_PLAIN})*+\\?(?:"[ \t\n\r]*+)?|{_WORD})\Z')
_OPENING = re.compile(r"[\[{]")


class Found(NamedTuple):
    """The outermost objects and arrays of a text.

    Attributes:
      spans: start and end of each that is complete, in their order.
      unfinished: where one begins that goes on to the end of the text without being complete; None if none does. An
        opening bracket after which nothing comes is none.
    """

    spans: list[tuple[int, int]]
    unfinished: int | None


def find(text: str) -> Found:
    """The outermost objects and arrays; what is within one that is complete, or unfinished, is not looked at."""
    ends = _ends(text)
    spans: list[tuple[int, int]] = []
    at = 0
    for start in reversed(ends):
        if start < at:
            continue
        if ends[start] > len(text):
            if _SPACE.match(text, start + 1).end() < len(text):  # type: ignore[union-attr]
                return Found(spans, start)
            continue
        at = ends[start]
        spans.append((start, at))
    return Found(spans, None)


def decode(text: str, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any]) -> Any:
    """The value of what was found, as `json.loads` has it; a backslash that begins no escape stands for itself.

    Raises:
      ValueError, RecursionError: numbers of more digits, or more levels, than Python reads.
    """
    escaped = _BACKSLASH.sub(lambda match: match[0] if match[1] else r"\\", text)
    return json.loads(escaped, object_pairs_hook=object_pairs_hook)


def _ends(text: str) -> dict[int, int]:
    """Where what begins at a bracket ends, if it is JSON; beyond the text where the text ends first.

    From the last bracket to the first, so that what is nested is known already. That is what makes it linear: a place
    in the text is read for the innermost bracket only that it belongs to. (Of two brackets one may lie in what the
    other takes for a string. Then each is in a string wherever the other is not, and neither reads on in a string.)
    """
    ends: dict[int, int] = {}
    for opening in reversed([match.start() for match in _OPENING.finditer(text)]):
        end = _end(text, opening, ends)
        if end is not None:
            ends[opening] = end
    return ends


def _end(text: str, opening: int, ends: dict[int, int]) -> int | None:
    """As of `_ends` for one bracket; `ends` of those behind it. None where it is no JSON."""
    beyond = len(text) + 1
    is_object = text[opening] == "{"
    closing = "}" if is_object else "]"
    at = _space(text, opening + 1)
    if text.startswith(closing, at):
        return at + 1
    while True:
        if is_object:
            key = _KEY.match(text, at)
            if key is None:
                return beyond if at == len(text) or (text[at] == '"' and _BEGINNING.match(text, at)) else None
            at = _space(text, key.end())
        value = at
        if at in ends:
            at = ends[at]
        else:
            scalar = _SCALAR.match(text, at)
            if scalar is None:
                return beyond if _BEGINNING.match(text, at) else None
            at = scalar.end()
        if at > len(text):
            return beyond
        at = _space(text, at)
        if at == len(text):
            return beyond
        if text[at] == closing:
            return at + 1
        if text[at] != ",":
            return beyond if _BEGINNING.match(text, value) else None  # of a number
        at = _space(text, at + 1)


def _space(text: str, start: int) -> int:
    return _SPACE.match(text, start).end()  # type: ignore[union-attr]
