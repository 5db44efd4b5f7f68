r"""Spellings that mean the same brought to one: Unicode and plain-text mathematics become LaTeX.

References and responses alike pass through `rewrite` before anything else looks at them. It only exchanges signs; what
an answer is worth is for others to say. Each pattern reads each character a bounded number of times.
"""

import re

_DIGITS = "⁰¹²³⁴⁵⁶⁷⁸⁹", "₀₁₂₃₄₅₆₇₈₉"
_GREEK = {
    "\u03b1": "alpha",
    "β": "beta",
    "\u03b3": "gamma",
    "δ": "delta",
    "ε": "epsilon",
    "θ": "theta",
    "λ": "lambda",
    "μ": "mu",
}
_COMMANDS = {
    **_GREEK,
    **{"\u03c1": "rho", "\u03c3": "sigma", "τ": "tau", "φ": "phi", "ω": "omega", "Δ": "Delta", "Ω": "Omega", "π": "pi"},
    **{"\u00d7": "times", "÷": "div", "±": "pm", "∞": "infty", "≤": "le", "≥": "ge", "≠": "ne", "⩽": "le", "⩾": "ge"},
    **{"∅": "emptyset", "\u222a": "cup", "∩": "cap", "∈": "in", "·": "cdot", "⋅": "cdot", "\u2219": "cdot"},
}
_SETS = {"\u211d": "R", "\u2124": "Z", "\u211a": "Q", "\u2115": "N", "\u2102": "C"}
_SIGNS = {
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full width
    **dict.fromkeys((*range(0x2010, 0x2016), 0x2212, 0xFE63), "-"),
    **dict.fromkeys(map(ord, "\u00a0\u2002\u2003\u2007\u2009\u200a\u202f\u3000"), " "),
    **{ord(sign): f"\\{name} " for sign, name in _COMMANDS.items()},
    **{ord(sign): f"\\mathbb{{{name}}}" for sign, name in _SETS.items()},
    **{ord("°"): "^\\circ ", ord("º"): "^\\circ ", 0x2044: "/"},
}
_VULGAR = {
    **{"½": "12", "⅓": "13", "⅔": "23", "¼": "14", "¾": "34", "⅕": "15", "⅖": "25", "⅗": "35", "⅘": "45"},
    **{"⅙": "16", "⅚": "56", "⅛": "18", "⅜": "38", "⅝": "58", "⅞": "78"},
}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_END = r"(?![A-Za-z])"
_DEGREES = r"\^\s?(?:\\circ(?![A-Za-z])|\{\s?\\circ\s?\})"
_SUPERSCRIPT = re.compile(f"([⁺⁻]?)([{_DIGITS[0]}]+)")
_SUBSCRIPT = re.compile(f"[{_DIGITS[1]}]+")
# In this order, each on the whole text.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"√\s*({_NUMBER}|[A-Za-z])", r"\\sqrt{\1}"),
        (rf"(?<![A-Za-z\\])sqrt\s*\(\s*({_NUMBER}|[A-Za-z])\s*\)", r"\\sqrt{\1}"),
        (r"√\s*\(\s*([^()]{1,100})\)", r"\\sqrt{\1}"),
        (r"(?<![A-Za-z\\])sqrt\s*\(\s*([^()]{1,100})\)", r"\\sqrt{\1}"),
        (rf"\\(?:leq|leqslant|le){_END}|(?<!<)<=(?![=>])", r"\\le "),
        (rf"\\(?:geq|geqslant|ge){_END}|(?<![<>=])>=(?!=)", r"\\ge "),
        (rf"\\lt{_END}", "<"),
        (rf"\\gt{_END}", ">"),
        (rf"\\(?:varnothing|O){_END}", r"\\emptyset "),
        (rf"\^?\{{?\\degree{_END}\s?\}}?", r"^\\circ "),
        (rf"\\(?:tiny|small|normalsize|large|Large|LARGE|huge|Huge|displaystyle|textstyle|bf|rm){_END}\s?", ""),
        (r"\\(?:mathrm|text|operatorname)\s?\{(e|i)\}(?=.)", r"\1"),
        (r"(?<=.)\\(?:mathrm|text|operatorname)\s?\{(e|i)\}", r"\1"),
        (rf"\\[dtc]frac{_END}", r"\\frac"),
        (r"\\frac\s?([0-9])\s?([0-9])(?![0-9])", r"\\frac{\1}{\2}"),
        (r"\\(?:boxed|fbox)\s?(?=\{)", ""),  # of a box within the box
        (r"(?<=[^\s])~", " "),
        (r"(?<!\*)\*\*(?=[\w({\\-])(?<=[\w)}]\*\*)", "^"),
        (r"(?<=[\w)}])\s?\*\s?(?=[\w({\\])", r"\\cdot "),
        (r"(?<![A-Za-z\\{])pi(?![A-Za-z])", r"\\pi "),
        (rf"\\(sin|cos|tan|cot|sec|csc)\s?({_NUMBER})\s?{_DEGREES}", r"\\\1(\\frac{\2\\pi}{180})"),
        (rf"\\(sin|cos|tan|cot|sec|csc)\s?(?:\(|\{{)\s?({_NUMBER})\s?{_DEGREES}\s?(?:\)|\}})",
         r"\\\1(\\frac{\2\\pi}{180})"),
        (r"^([$\s]*[+-]?[0-9]{1,3}(?:,[0-9]{3})+)\s+([A-Za-z]{4,20}(?:\s[A-Za-z]{1,20}){0,3})\.?$", r"\1\\text{ \2}"),
        (rf"(?<![\w.\\}}])({_NUMBER})\s?(?:\\times|\\cdot)\s?10\s?\^\s?(?:\{{\s?([+-]?[0-9]{{1,3}})\s?\}}|([0-9])(?![0-9]))",
         r"\1\\times 10^{\2\3}"),
        (rf"(?<![\w.\\}}])({_NUMBER})[eE]\+?(-?[0-9]{{1,3}})(?![\w.^])", r"\1\\times 10^{\2}"),
    )
)  # fmt: skip
# 0.1\overline{6}
_REPEATING = re.compile(
    r"(?<![0-9.,])([0-9]{0,6})\.([0-9]{0,6})\\(?:overline|bar)\s?(?:\{\s?([0-9]{1,6})\s?\}|([0-9]))(?![0-9])"
)
_MIXED = re.compile(r"([+-]?[0-9]+)\s+([0-9]+)/([0-9]+)")
_WRAPPED = re.compile(
    r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|boldsymbol|mbox)\s?\{\s*([+-]?[0-9][0-9.,/]*)\s*\}"
)


def rewrite(answer: str) -> str:
    r"""An answer in LaTeX of few spellings: `x²` as `x^{2}`, `√2/2` as `\sqrt{2}/2`, `6e5` as `6\times 10^{5}`.

    What it does not know stays as it is; a text that holds nothing to exchange is returned unchanged.
    """
    text = answer
    if not text.isascii():
        text = text.translate(_SIGNS)
        text = _SUPERSCRIPT.sub(lambda m: f"^{{{'-' if m[1] == '⁻' else ''}{_plain(m[2], _DIGITS[0])}}}", text)
        text = _SUBSCRIPT.sub(lambda m: f"_{{{_plain(m[0], _DIGITS[1])}}}", text)
        for sign, ratio in _VULGAR.items():
            text = text.replace(sign, f"\\frac{{{ratio[0]}}}{{{ratio[1]}}}")
    text = _without_emphasis(text.strip())
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _REPEATING.sub(_fraction, text).strip()
    if match := _MIXED.fullmatch(text.strip("$ ").removesuffix(".")):
        return f"{match[1]}\\frac{{{match[2]}}}{{{match[3]}}}"
    if match := _WRAPPED.fullmatch(text):
        return match[1]
    return text


def _fraction(match: re.Match[str]) -> str:
    """A decimal that repeats itself, exactly."""
    whole, fixed, repeated = match[1], match[2], match[3] or match[4]
    nines = (10 ** len(repeated) - 1) * 10 ** len(fixed)
    over = int(f"{whole}{fixed}{repeated}") - int(f"{whole}{fixed}" or 0)
    return f"\\frac{{{over}}}{{{nines}}}"


def _plain(digits: str, alphabet: str) -> str:
    return "".join(str(alphabet.index(digit)) for digit in digits)


def _without_emphasis(text: str) -> str:
    r"""Without the stars of Markdown around the whole, and without a space that LaTeX leaves at the end."""
    if len(text) > 4 and text.startswith("**") and text.endswith("**"):
        text = text[2:-2].strip()
    return text[:-1] if text.endswith("\\") and not text.endswith("\\\\") else text
