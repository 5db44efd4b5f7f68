r"""The answer in the last \boxed{} of a response, as text and as the number it may be.

Nothing here is mathematics: `x+1` and `1+x` are different answers, as are `\sqrt{8}` and `2\sqrt{2}`. Every pattern
reads each character a bounded number of times, however hostile the text.
"""

import re
from fractions import Fraction

from polyepo_jax.rewards.notation import rewrite

_BOX_START = re.compile(r"\\(?:boxed|fbox)")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s?")
# As TeX reads it, what follows without braces is one sign; a number is meant as a whole, but no part of more than one.
_UNBRACED = re.compile(r"(?>[+-]?[0-9]+(?:\.[0-9]+)?|[A-Za-z])(?![A-Za-z0-9]|,[0-9]|\s?[/^_!*+=-]|\s?\\[A-Za-z])")
# White space that does mean something: 1 1/2 is not 11/2, and neither are 1 2 and 12 the same.
_BETWEEN_DIGITS = re.compile(r"(?<=[0-9])\s+(?=[0-9])")
_MAX_NESTED = 3
_MAX_DIGITS = 50  # of a number that is parsed: what is longer is compared as text
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_NO_MEANING = re.compile(
    r"\\(?:left|right)(?![A-Za-z])|(?<!\\)\\[!,;: ]|\\?[$%]|\^(?:\\circ(?![A-Za-z])|\{\\circ\})|\s+"
)
_FRACTION_NAMES = re.compile(r"\\[dt]frac(?![A-Za-z])")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_SCIENTIFIC = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?)\\times10\^\{([+-]?[0-9]{1,3})\}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
# Words in a command for text, a word that no product of variables would be, and the letter of a choice.
_WORDS = r"[^\W\d_]+(?:[ ,.'\u2019-]+[^\W\d_]+)*"
_TEXT = re.compile(rf"\\(?:text(?:bf|it|rm|normal)?|mathrm|mathbf|mbox)\s*\{{\s*(\(?{_WORDS}\)?)\.?\s*\}}\.?")
_PLAIN_WORDS = re.compile(rf"(?=.*[^\W\d_]{{4}}){_WORDS}\.?")
_LETTER = re.compile(r"\(?[A-Za-z]\)?")
_RATIO = re.compile(r"([+-]?)(?:\\frac\{([+-]?[0-9]+)\}\{([+-]?[0-9]+)\}|([0-9]+)/([0-9]+))")


def _close(text: str, start: int) -> int:
    """Where the brace opened before `start` closes, -1 if nowhere; escaped braces are characters."""
    depth = 1
    for match in _BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return -1


def _closes(text: str) -> dict[int, int]:
    """Where each brace that closes at all does so; escaped braces are characters."""
    opened: list[int] = []
    found = {}
    for match in _BRACES.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            found[opened.pop()] = match.start()
    return found


def boxed(response: str) -> str | None:
    r"""What the last \boxed{} or \fbox{} of a response holds, stripped; None if there is none, or nothing in it.

    One within another is a part of that.

    There is none in a response that ends within its thought, `<think>` without `</think>`: nothing in it is final.
    """
    if response.rfind("<think>") > response.rfind("</think>"):
        return None
    closes = _closes(response)
    last, end = None, -1
    for start in _BOX_START.finditer(response):
        if start.start() >= end:  # else it is within another
            last = _BOX.match(response, start.start())
            end = closes.get(last.end(), -1) if last else -1
    if last is None:
        return None
    if response[last.end() : last.end() + 1] != "{":
        sign = _UNBRACED.match(response, last.end())
        return sign[0] if sign else None
    content = response[last.end() + 1 : end].strip() if end >= 0 else ""
    for _ in range(_MAX_NESTED):  # a box and nothing else is the same as what it holds
        inner = _BOX.match(content)
        if inner is None or content[inner.end() : inner.end() + 1] != "{":
            break
        if _close(content, inner.end() + 1) != len(content) - 1:
            break
        content = content[inner.end() + 1 : -1].strip()
    return content or None


def final_answer(response: str) -> Fraction | str | None:
    r"""What the last \boxed{} of a response holds, as `normalise` has it; None if there is none, or nothing in it."""
    answer = normalise(boxed(response) or "")
    return None if answer == "" else answer


def normalise(answer: str) -> Fraction | str:
    r"""An answer as it is compared: a number where it is a plain one, else text without what does not change it.

    Left out are white space and thin spaces, `\left` and `\right`, the signs of dollar, percent and degree, a `\text{}`
    around the whole, a final period and the commas between thousands of a plain number; `\dfrac` and `\tfrac` become
    `\frac`, and the rest is as `polyepo_jax.rewards.notation` has it. Numbers are decimals, `1.5e-7`, `a/b` and
    `\frac{a}{b}` of up to 50 characters.
    """
    answer = _BETWEEN_DIGITS.sub("_", rewrite(answer))
    text = _FRACTION_NAMES.sub(r"\\frac", _NO_MEANING.sub("", answer)).replace("{,}", ",").removesuffix(".")
    if text.startswith("\\text{") and _close(text, len("\\text{")) == len(text) - 1:
        text = text[len("\\text{") : -1].removesuffix(".")
    if len(text) > _MAX_DIGITS:
        return text
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if match := _SCIENTIFIC.fullmatch(text):
        return Fraction(f"{match[1]}e{match[2]}")
    if _DECIMAL.fullmatch(text):
        return Fraction(text.removesuffix("."))
    if match := _RATIO.fullmatch(text):
        over, under = int(match[2] or match[4]), int(match[3] or match[5])
        if under:
            return Fraction(-over if match[1] == "-" else over, under)
    return text


def words(answer: str) -> str | None:
    r"""The words that an answer is, in lower case without brackets around them; None if it may be mathematics."""
    answer = answer.strip()
    if match := _TEXT.fullmatch(answer):
        answer = match[1]
    elif not _PLAIN_WORDS.fullmatch(answer) and not _LETTER.fullmatch(answer):
        return None
    return " ".join(answer.strip("().").casefold().split())
