"""References of many kinds, each with answers that are near it and wrong."""

import random
from collections.abc import Callable, Iterator

_UNITS = ("cm", "m", "km", "hours", "minutes", "kg", "g")
_INTERVALS = ("[]", "[)", "(]")


def _integer(draw: random.Random) -> list[str]:
    n = draw.randint(2, 10**6)
    other = str(n)[:-1] + str((int(str(n)[-1]) + draw.randint(1, 9)) % 10)
    return [str(n), str(n + 1), str(-n), other, f"{n}!", f"{n + 1}={n}", f"{n}.0000001", f"{n}0", f"\\ge {n}", f"{n}e1"]


def _fraction(draw: random.Random) -> list[str]:
    over, under = draw.randint(1, 99), draw.choice((101, 103, 107, 997))
    wrong = [
        f"\\frac{{{over + 1}}}{{{under}}}",
        f"{over}/{under + 1}",
        f"\\frac{{{under}}}{{{over}}}",
        f"-{over}/{under}",
    ]
    return [f"\\frac{{{over}}}{{{under}}}", *wrong, f"{over / under:.9f}"]


def _mixed(draw: random.Random) -> list[str]:
    whole, over, under = draw.randint(2, 20), draw.randint(1, 6), draw.choice((7, 11, 13))
    wrong = [f"{over}/{under}", f"{whole + 1} {over}/{under}", f"{whole}{over}/{under}", str(whole)]
    return [f"{whole}\\frac{{{over}}}{{{under}}}", *wrong]


def _decimal(draw: random.Random) -> list[str]:
    digits, places = draw.randint(10**8, 10**9 - 2), draw.randint(9, 20)
    text, near = (f"0.{n:0{places}d}" for n in (digits, digits + 1))
    return [text, near, f"-{text}", f"0.0{text[2:]}", text[:-1] + "55", "0"]


def _scientific(draw: random.Random) -> list[str]:
    mantissa, exponent = f"{draw.randint(1, 8)}.{draw.randint(1, 9)}", draw.randint(5, 40)
    wrong = [
        f"{mantissa}e{exponent + 1}",
        f"{mantissa}e-{exponent}",
        f"{mantissa}1e{exponent}",
        f"{mantissa}e+{exponent}0",
    ]
    return [f"{mantissa} \\times 10^{{{exponent}}}", *wrong, f"{mantissa}·10^{exponent - 1}"]


def _power(draw: random.Random) -> list[str]:
    base, exponent = draw.choice((3, 5, 7, 11)), draw.randint(20, 200)
    wrong = [f"\\frac{{1}}{{{base}^{{{exponent + 1}}}}}", f"\\frac{{2}}{{{base}^{{{exponent}}}}}", "0"]
    return [f"\\frac{{1}}{{{base}^{{{exponent}}}}}", *wrong, f"\\frac{{{base}^{{2}}}}{{{base}^{{{exponent}}}}}"]


def _factorial(draw: random.Random) -> list[str]:
    n = draw.randint(30, 1500)
    return [
        f"\\frac{{1}}{{{n}!}}",
        f"\\frac{{1}}{{{n + 1}!}}",
        f"\\frac{{1}}{{{n - 1}!}}",
        f"\\frac{{{n}}}{{{n}!}}",
        "0",
    ]


def _root(draw: random.Random) -> list[str]:
    a, b = draw.randint(2, 30), draw.choice((2, 3, 5, 7, 11))
    return [
        f"{a}\\sqrt{{{b}}}",
        f"{a + 1}√{b}",
        f"{a}√{b + 8}",
        f"\\sqrt{{{a * b}}}",
        f"-{a}√{b}",
        f"{a * b**0.5:.10f}",
    ]


def _constant(draw: random.Random) -> list[str]:
    a, sign = draw.randint(2, 50), draw.choice(("\\pi", "e"))
    return [f"{a}{sign}", f"{a + 1}{sign}", sign, f"{a}{'e' if sign == chr(92) + 'pi' else 'π'}", f"{a}", f"{a}+{sign}"]


def _interval(draw: random.Random) -> list[str]:
    start, end, kind = draw.randint(-20, 10), draw.randint(11, 30), draw.choice(_INTERVALS)
    wrong = [f"{other[0]}{start},{end}{other[1]}" for other in (*_INTERVALS, "()") if other != kind]
    wrong += [f"{kind[0]}{start},{end + 1}{kind[1]}", f"{kind[0]}{start};{end}{kind[1]}", f"{start} < x < {end}"]
    return [f"{kind[0]}{start},{end}{kind[1]}", *wrong, f"x > {start}"]


def _ray(draw: random.Random) -> list[str]:
    end = draw.randint(-30, 30)
    wrong = [f"x < {end}", f"x ≥ {end}", f"(-∞,{end})", f"[{end},∞)", f"x ≤ {end + 1}", f"{end}", f"(∞,{end}]"]
    return [f"(-\\infty,{end}]", *wrong]


def _unit(draw: random.Random) -> list[str]:
    n, unit = draw.randint(2, 500), draw.choice(_UNITS)
    wrong = [f"{n}\\text{{ {other}}}" for other in _UNITS if other != unit]
    return [f"{n}\\text{{ {unit}}}", *wrong, f"{n + 1}\\text{{ {unit}}}", f"{n} {unit}^2"]


def _base(draw: random.Random) -> list[str]:
    digits, base = f"{draw.randint(16, 10**6):b}", draw.randint(2, 8)
    return [f"{digits}_{base}", f"{digits}_{base + 1}", f"{digits}_{{{base + 10}}}", f"{digits}1_{base}"]


def _time(draw: random.Random) -> list[str]:
    hour, minute = draw.randint(1, 11), draw.randint(10, 58)
    wrong = [
        f"{hour}:{minute}\\text{{ a.m.}}",
        f"{hour}:{minute + 1}\\text{{ p.m.}}",
        f"{hour + 1}:{minute}\\text{{ pm}}",
    ]
    return [f"{hour}:{minute}\\text{{ p.m.}}", *wrong]


def _tuple(draw: random.Random) -> list[str]:
    a, b = draw.sample(range(-30, 30), 2)
    return [f"({a}, {b}, 50)", f"({b}, {a}, 50)", f"({a}, {b})", f"({a}, {b}, 51)", f"x={b}, y={a}, z=50", f"{a}"]


def _pair(draw: random.Random) -> list[str]:
    a, b = draw.sample(range(-30, 30), 2)
    return [f"{a},{b}", f"A={b}, B={a}", f"{a},{b + 100}", f"{a}", f"A={a}, B={b + 1}"]


def _polynomial(draw: random.Random) -> list[str]:
    a, b, c = draw.randint(2, 20), draw.randint(1, 20), draw.randint(1, 20)
    wrong = [f"{a}x²+{b}x+{c + 1}", f"{a}x²-{b}x+{c}", f"{a}x³+{b}x+{c}", f"f(x)={a + 1}x²+{b}x+{c}", f"{c}"]
    return [f"{a}x^2+{b}x+{c}", *wrong, f"{a}x²={a}x²+{b}x+{c}"]


_KINDS: tuple[Callable[[random.Random], list[str]], ...] = (
    *(_integer, _fraction, _mixed, _decimal, _scientific, _power, _factorial, _root, _constant),
    *(_interval, _ray, _unit, _base, _time, _tuple, _pair, _polynomial),
)


def references(number: int, seed: int = 0) -> Iterator[tuple[str, list[str]]]:
    """References and wrong answers to each."""
    draw = random.Random(seed)
    for i in range(number):
        reference, *wrong = _KINDS[i % len(_KINDS)](draw)
        yield reference, list(dict.fromkeys(wrong))
