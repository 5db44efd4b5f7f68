"""Which parameters of a request a server refuses, read from its error: by name, as servers word it."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

_MAX_LENGTH = 4_000  # characters of a message that are read
# What a message must say of a name that stands in it without being declared as the culprit.
_REFUSED = re.compile(
    r"support|permit|allow|unrecogni[sz]ed|unknown|unexpected|extra|invalid|deprecated|must|should|only", re.IGNORECASE
)
# Another number would be taken: such a limit is the user's to change.
_SIZE = re.compile(
    r"context|too (?:large|long|many|high|big|small|low)|at (?:most|least)|exceed|(?:less|greater|more|higher) than"
    r"|maximum|minimum|between",
    re.IGNORECASE,
)
_LOCATION = re.compile(r"""['"]loc['"]: *[\[(]([^\])]*)[\])]""")
_INPUT = re.compile(r"""['"]input['"]: *""")  # a copy of what was sent, with every name there is
_LIMITS = ("max_tokens", "max_completion_tokens")


def refused_parameters(body: str, names: Sequence[str]) -> frozenset[str]:
    """Those of `names` that the body of an error with status 400 or 422 refuses; none where it only wants a limit
    lower, or is about something else."""
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        error = body
    found: set[str] = set()
    for culprit, message in _statements(error):
        message = message[:_MAX_LENGTH]
        if copied := _INPUT.search(message):
            message = message[: copied.start()]
        located = _LOCATION.findall(message)
        culprits = [culprit] if culprit else located
        if not culprits and not _REFUSED.search(message):
            continue
        where = " ".join(culprits) if culprits else message
        named = {name for name in names if re.search(rf"(?<![\w-]){name}(?![\w-])", where)}
        found |= {name for name in named if name not in _LIMITS or not _SIZE.search(message)}
    return frozenset(found)


def _statements(error: Any) -> Iterator[tuple[str, str]]:
    """What is declared as the culprit, empty where nothing is, and the message; of each error in an error."""
    match error:
        case str():
            yield "", error
        case list():
            for item in error:
                yield from _statements(item)
        case {"error": (dict() | list() | str()) as inner} if inner:
            yield from _statements(inner)
        case {"detail": (dict() | list() | str()) as inner} if inner:
            yield from _statements(inner)
        case dict():
            place = error.get("param") or error.get("loc") or ""
            message = error.get("message") or error.get("msg") or ""
            yield " ".join(map(str, place)) if isinstance(place, list) else str(place), str(message)
