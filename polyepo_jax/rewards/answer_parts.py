r"""What an answer is made of, by its text: the sides of a chain `a = b = c`, named values, a unit, a base, a date.

Two answers are the same where all the pairs that `pairs` makes of them are, and nothing beside the mathematics tells
them apart, see `contradict`. Both expect what `polyepo_jax.rewards.notation.rewrite` returns.
"""

import re
from collections.abc import Iterator

_ALIASES = {
    "m": "m meter meters metre metres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "mg": "mg milligram milligrams",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "ton": "ton tons tonne tonnes",
    "ml": "ml mL milliliter milliliters millilitre millilitres",
    "l": "l L liter liters litre litres",
    "gal": "gal gallon gallons",
    "degree": "degree degrees deg",
    "radian": "rad radian radians",
    "dollar": "dollar dollars USD",
    "cent": "cent cents",
    "euro": "euro euros EUR",
    "N": "N newton newtons",
    "J": "J joule joules",
    "kJ": "kJ kilojoule kilojoules",
    "W": "W watt watts",
    "kW": "kW kilowatt kilowatts",
    "V": "V volt volts",
    "Hz": "Hz hertz",
    "kHz": "kHz kilohertz",
    "am": "am AM",
    "pm": "pm PM",
    "mph": "mph",
    "kmh": "kmh kph",
}
_UNITS = {alias: unit for unit, aliases in _ALIASES.items() for alias in aliases.split()}
_MONTH = re.compile(
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    "|nov(?:ember)?|dec(?:ember)?"
)
_POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox|operatorname)\s?\{([^{}]*)\}")
_SPACES = re.compile(r"\\[,;:! ]|[~$]|\s+")
_CONSTANTS = re.compile(r"\\(?:frac|sqrt|pi|times|cdot|left|right|div|circ)(?![A-Za-z])")
_PIECE = re.compile(r"([A-Za-z]+)(?:\^?\{?([23])\}?)?")
_TAIL = re.compile(r"(?:(?<=[0-9)}\s])|^)(?:[A-Za-z][A-Za-z.]*(?:\^?\{?[23]\}?)?[ /]*)+$")
_TAIL_LENGTH = 60
_BASE = re.compile(r"\(?([0-9A-Za-z]+)\)?_(?:\{\s*([0-9]+)\s*\}|([0-9]+))")
_COMMAND = re.compile(r"\\?[A-Za-z]+")
_NOT_LETTERS = frozenset(
    (
        "\\frac",
        "\\sqrt",
        "\\times",
        "\\cdot",
        "\\left",
        "\\right",
        "\\div",
        "\\text",
        "\\circ",
        "\\infty",
        "\\le",
        "\\ge",
    )
)
_CONSTANT_LETTERS = frozenset(("e", "i", "\\pi"))
_EQUALS = re.compile(r"==|\\equiv(?![A-Za-z])")
_NO_CHAIN = re.compile(r"(?<![0-9)}])!=|[<>:]=")  # after a number it is that of a factorial
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|neq)(?![A-Za-z])")
_DENYING = frozenset(("not", "wrong", "incorrect", "false", "never", "cannot"))
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]+")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-5][0-9])(?:([ap])m)?")
_NAMED = re.compile(r"\s*([A-Za-z]\w*|\\[A-Za-z]+(?:_\w)?|\\text\s?\{[\w ]+\})\s*")


def agree(one: str, other: str) -> bool | None:
    """Whether two texts that are a time of day, or a date, are the same one; None where not both are."""
    time, other_time = _time(one), _time(other)
    if time and other_time and (time[1] or other_time[1]):
        return time[0] == other_time[0] and (not time[1] or not other_time[1] or time[1] == other_time[1])
    dates = _date(one), _date(other)
    if None not in dates and all(map(_is_nothing_but_a_date, (one, other))):
        return dates[0] == dates[1]
    return None


def contradict(one: str, other: str) -> bool:
    """Whether both name a unit, a base, half a day or a date, and not the same; or one alone denies what it says."""
    if _denials(one) != _denials(other):
        return True
    for read in (_unit, _base, _date):
        told = read(one), read(other)
        if None not in told and told[0] != told[1]:
            return True
    return False


def pairs(gold: str, answer: str) -> list[tuple[str, str]]:
    """What has to be the same, side by side, for `answer` to be `gold`; themselves where they have no parts."""
    golds, answers = split(gold, ","), split(answer, ",")
    if len(golds) == len(answers) == 1:
        bare = _without_brackets(gold)
        golds = split(bare, ",")
        if len(golds) == 1:
            return _chain(gold, answer)
    names, values = _named(answers)
    if not names:
        return [(gold, answer)]
    gold_names, gold_values = _named(golds)
    if gold_names and set(gold_names) == set(names):
        by_name = dict(zip(names, values, strict=True))
        return [(value, by_name[name]) for name, value in zip(gold_names, gold_values, strict=True)]
    golds = split(_without_brackets(gold), ",")
    if not gold_names and len(golds) == len(values) and not any("=" in part for part in golds):
        return list(zip(golds, values, strict=True))
    return [(gold, answer)]


def between(text: str) -> str:
    r"""The interval of `1 \le x < 3`, or of `3 > x \ge 1`, as `[1,3)`; any other text as it is."""
    for smaller, or_equal in (("<", "\\le "), (">", "\\ge ")):
        sides = split(text.replace(or_equal, f"{smaller}="), smaller)
        if len(sides) == 3 and re.fullmatch(r"=?\s*[A-Za-z]", sides[1]):
            ends = [side.removeprefix("=").strip() for side in (sides[0], sides[2])]
            opening, closing = ("[" if sides[1][0] == "=" else "("), ("]" if sides[2][0] == "=" else ")")
            if smaller == ">":
                ends, opening, closing = ends[::-1], {"]": "[", ")": "("}[closing], {"[": "]", "(": ")"}[opening]
            return f"{opening}{ends[0]},{ends[1]}{closing}" if "," not in "".join(ends) else text
    return text


def split(text: str, separator: str) -> list[str]:
    """The parts of a text between separators that no bracket encloses; the text itself where one is empty."""
    parts, depth, start = [], 0, 0
    for place, sign in enumerate(text):
        if sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        elif sign == separator and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    parts.append(text[start:].strip())
    return parts if all(parts) else [text]


def _chain(gold: str, answer: str) -> list[tuple[str, str]]:
    golds, answers = _sides(gold), _sides(answer)
    if len(answers) == 1:
        return [(gold, answer)]
    if len(golds) > 1:
        if len(answers) > 2 and "".join(answers[0].split()) == "".join(golds[0].split()):
            return [(golds[-1], side) for side in answers[1:]]
        return [(gold, answer)]
    known = _letters(gold) | _CONSTANT_LETTERS
    values = [side for side in answers if not _is_label(side, known, gold)]
    return [(gold, value) for value in values] or [(gold, answer)]


def _sides(text: str) -> list[str]:
    text = _EQUALS.sub("=", text)
    return [text] if _NO_CHAIN.search(text) else split(text, "=")


def _is_label(side: str, known: set[str], gold: str) -> bool:
    """Whether it names what the other sides are worth: it has a letter that the reference has not."""
    if _RELATION.search(side):
        return False
    letters = _letters(side)
    return bool(letters - known) or (side.strip() in _CONSTANT_LETTERS and side.strip() not in _letters(gold))


def _letters(text: str) -> set[str]:
    found: set[str] = set()
    for word in _COMMAND.findall(text):
        if word.startswith("\\"):
            found |= {word} - _NOT_LETTERS
        else:
            found |= set(word)
    return found


def _named(parts: list[str]) -> tuple[list[str], list[str]]:
    """The names and values of `a=1, b=2`, nothing unless each part is one and the names differ."""
    sides = [split(part, "=") for part in parts]
    if len(parts) < 2 or not all(len(side) == 2 and _NAMED.fullmatch(side[0]) for side in sides):
        return [], []
    names = ["".join(side[0].split()) for side in sides]
    return (names, [side[1] for side in sides]) if len(set(names)) == len(names) else ([], [])


def _without_brackets(text: str) -> str:
    inner = text.strip().removeprefix("\\left").removesuffix("\\right)")
    if text.strip().endswith("\\right)"):
        inner += ")"
    return inner[1:-1] if inner.startswith("(") and inner.endswith(")") and _encloses(inner) else text


def _encloses(text: str) -> bool:
    depth = 0
    for place, sign in enumerate(text):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if depth == 0:
            return place == len(text) - 1
    return False


def _unit(text: str) -> tuple[str, ...] | None:
    """The unit of a number, None where there is none or one that is not known."""
    plain = _SPACES.sub(" ", _TEXT.sub(r" \1 ", text)).strip().replace(" ^", "^")
    if text.strip("$ ").startswith("\\$"):
        return ("dollar",)
    plain = re.sub(r"\^\s?(?:\\circ|\{\s?\\circ\s?\})\s?$", " degrees", plain).replace("\\%", "")
    head, tail = plain[:-_TAIL_LENGTH], plain[-_TAIL_LENGTH:]
    match = _TAIL.search(tail)
    if not match or re.search(r"[A-Za-z]", _CONSTANTS.sub("", head + tail[: match.start()])):
        return None
    if not re.search("[0-9]", head + tail[: match.start()]):
        return None
    unit = tuple(_read_unit(match[0].replace(".", "")))
    return unit if unit and "?" not in unit else None


def _read_unit(text: str) -> Iterator[str]:
    power = ""
    pieces = [*re.finditer(r"/|" + _PIECE.pattern, text)]
    for piece in pieces:
        word = piece[1] or "/"
        if word in ("/", "per"):
            yield "/"
        elif word in _POWERS:
            power = _POWERS[word]
        elif unit := _UNITS.get(word) or (len(word) > 2 and _UNITS.get(word.lower())):
            yield unit + (piece[2] or power)
            power = ""
        else:
            yield "?"


def _base(text: str) -> tuple[str, str] | None:
    match = _BASE.fullmatch(text.strip("$ "))
    if not match or not re.search("[0-9]", match[1]):
        return None
    return match[1].upper(), match[2] or match[3]


def _denials(text: str) -> set[str]:
    """Words beside the mathematics by which an answer takes itself back."""
    return {word.lower() for word in _WORD.findall(_TEXT.sub(r" \1 ", text))} & _DENYING


def _time(text: str) -> tuple[tuple[int, int], str] | None:
    """Hour and minute, and `a` or `p` where it is said, of a text that is a time of day."""
    plain = "".join(_SPACES.sub(" ", _TEXT.sub(r" \1 ", text)).split()).lower().replace(".", "")
    match = _CLOCK.fullmatch(plain)
    return ((int(match[1]), int(match[2])), match[3] or "") if match else None


def _is_nothing_but_a_date(text: str) -> bool:
    words = re.findall("[a-z]+", _TEXT.sub(r" \1 ", text).lower())
    return all(word in ("st", "nd", "rd", "th", "of", "the") or _MONTH.fullmatch(word) for word in words)


def _date(text: str) -> tuple[str, ...] | None:
    """The words and numbers of a date, in no order."""
    words = re.findall(r"[A-Za-z]+|[0-9]+", _TEXT.sub(r" \1 ", text).lower())
    months = [word for word in words if _MONTH.fullmatch(word)]
    if len(months) != 1 or not any(word.isdigit() for word in words):
        return None
    numbers = sorted(str(int(word)) for word in words if word.isdigit() and len(word) < 5)
    return (months[0][:3], *numbers)
