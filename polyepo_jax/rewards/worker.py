r"""The process behind `WorkerPool`: compares answers with math-verify, one request at a time.

`python -m polyepo_jax.rewards.worker SOCKET DEADLINE_S MEMORY_MB`, the first being the number of an inherited socket.
A line of JSON comes in for each request and one goes out for each reply. Answers are hostile text that sympy works
on, so the process limits its own memory from the start, and once all is imported it can neither write files, start
processes, open sockets nor compile Python of an answer's making. It ends with its parent, for then the socket closes.
"""

import json
import logging
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from polyepo_jax.rewards.answer_parts import agree, between, contradict, pairs
from polyepo_jax.rewards.notation import rewrite

# Answers that between them make math-verify and sympy import all that ordinary ones need.
_WARM_UP = (
    ("\\frac{1}{2}", "0.5"),
    ("x^2+2x+1", "(x+1)^2"),
    ("\\{1, 2\\}", "2, 1"),
    ("(0, 1]", "0 < x \\le 1"),
    ("y = 2x", "2y = 4x"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 2 \\\\ 1 \\end{pmatrix}"),
    ("\\int_0^1 x dx", "1/2"),
    ("\\sin x + \\sqrt{8}", "2\\sqrt{2} + \\cos x"),
)
_REFUSED = ("os", "subprocess", "socket", "ctypes", "shutil", "pty", "fcntl", "mmap", "urllib", "webbrowser", "pickle")
_READS = ("os.listdir", "os.scandir")  # an import looks through folders
_STATUS = "/proc/self/statm"
# What is compiled while answers are compared: numbers, which sympy reads by evaluating this, and what these modules
# write themselves, in which there is nothing of an answer's text.
_NUMBER = re.compile(rb"from sympy import \*|Integer \([0-9]+ \)|Float \('[0-9.]+' \)")
_GENERATORS = ("collections", "dataclasses", "typing", "sympy.polys.monomials")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_DIGITS = 40  # in which numbers agree that are equal and not rational
_CONTAINED = re.compile(r"\s*[A-Za-z]\s*\\in(?![A-Za-z])")
# With a square bracket or an infinite end it is no point of the plane.
_INTERVAL = re.compile(r"(?=.*(?:[\[\]]|\\infty))\s*(?:\\left)?[(\[].*[)\]]\s*", re.DOTALL)


def _refuse(event: str, arguments: tuple) -> None:
    """An audit hook: what no comparison of answers needs raises PermissionError."""
    refused = event.partition(".")[0] in _REFUSED and event not in _READS
    if event == "open":
        refused = bool(arguments[2] & _WRITING) or not _is_ours(arguments[0])
    elif event == "compile" and not os.path.isabs(str(arguments[1])):  # of text, not of a module's file
        by_module = sys._getframe(1).f_globals.get("__name__") in _GENERATORS
        refused = not by_module and not (isinstance(arguments[0], bytes) and _NUMBER.fullmatch(arguments[0]))
    if refused:
        raise PermissionError(f"{event} in a worker")


def _is_ours(path: Any) -> bool:
    """Whether what is read is part of Python or a package: an import. /proc has the environment of others."""
    if isinstance(path, int) or path == _STATUS:
        return True
    folders = (os.path.join(os.path.abspath(folder), "") for folder in (*sys.path, sys.prefix, sys.base_prefix))
    return os.path.abspath(os.fsdecode(path)).startswith(tuple(folders))


def confine() -> None:
    """Gives up, for good, what a comparison does not need. All that will be imported better is by now."""
    sys.dont_write_bytecode = True
    for limit, value in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 32), (resource.RLIMIT_NPROC, 0)):
        resource.setrlimit(limit, (value, value))
    sys.addaudithook(_refuse)


def _parse(text: str) -> list[Any]:
    r"""Expressions and normalised text that math-verify makes of what a \boxed{} holds.

    Only its LaTeX parser is used: that for plain expressions passes text to `eval`.
    """
    from math_verify import LatexExtractionConfig, parse

    text = text.strip().removesuffix(".")
    return parse(f"\\boxed{{{text}}}", [LatexExtractionConfig(boxed_match_priority=0)], parsing_timeout=None)


def _is_parsed(parsed: Sequence[Any]) -> bool:
    return any(not isinstance(expression, str) for expression in parsed)


def _value(number: Any) -> Any:
    """A number as an exact one, where it is rational: a decimal stands for the fraction that it spells."""
    from sympy import Float, Rational

    return number.xreplace({part: Rational(str(part)) for part in number.atoms(Float)}).doit()


def _numbers_equal(one: Any, other: Any, *precision: int) -> bool:
    """Takes the place of math-verify's comparison of numbers, which chops them and rounds them to six decimals.

    Rational numbers are equal where they are the same, others where they agree to `_DIGITS` significant digits. What
    has variables in it is for simplification to compare.
    """
    from math_verify.grader import get_pct_val
    from sympy import MatrixBase

    if isinstance(one, MatrixBase) and isinstance(other, MatrixBase):
        return one.shape == other.shape and all(map(_numbers_equal, one.doit().flat(), other.doit().flat()))
    if any(get_pct_val(number) is not None for number in (one, other)):
        if _numbers_equal(*(get_pct_val(number, number) for number in (one, other))):
            return True
        one, other = one.doit(), other.doit()
    if one.free_symbols or other.free_symbols:
        return False
    one, other = _value(one), _value(other)
    if one == other or (one.is_Rational and other.is_Rational):
        return bool(one == other)
    digits = [number.evalf(_DIGITS + 10) for number in (one, other)]
    if not all(number.is_number and number.is_finite for number in digits):
        return False
    size = max(abs(number) for number in digits)
    return bool(abs(digits[0] - digits[1]) <= size * 10**-_DIGITS)


def _same(gold: list[Any], answer: list[Any], as_sets: bool) -> bool:
    """Whether math-verify finds them the same, `x < 3` and an interval too where these are to be taken `as_sets`."""
    from math_verify import grader

    grader.sympy_numeric_eq = _numbers_equal
    return grader.verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=as_sets)


def compare(gold: str, answer: str, either_way: bool) -> str:
    """`same`, `different`, or `unparsable` where only the second is no mathematics.

    Text that is no mathematics on either side is compared as text. math-verify's comparison is not symmetric; two of
    which neither is the reference are the same if they are `either_way`.
    """
    gold, answer = rewrite(gold), rewrite(answer)
    if (agreed := agree(gold, answer)) is not None:
        return "same" if agreed else "different"
    if contradict(gold, answer):
        return "different"
    if either_way and gold.count("=") > answer.count("="):  # the one of more parts is the one to be taken apart
        gold, answer = answer, gold
    outcomes = [_compare(*pair, either_way) for pair in pairs(gold, answer)]
    return next((outcome for outcome in outcomes if outcome != "same"), "same")


def _compare(gold: str, answer: str, either_way: bool) -> str:
    if contradict(gold, answer):
        return "different"
    if _CONTAINED.match(answer) and not _CONTAINED.match(gold):
        answer = _CONTAINED.sub("", answer)
    as_sets = bool(_INTERVAL.fullmatch(gold))
    one, other = _parse(gold), _parse(between(answer) if as_sets else answer)
    if _same(one, other, as_sets) or (either_way and _same(other, one, as_sets)):
        return "same"
    return "unparsable" if _is_parsed(one) and not _is_parsed(other) else "different"


def answer_request(request: dict[str, Any]) -> str:
    """The outcome of `{"verify": [gold, answer]}`, `{"equal": [one, other]}` or `{"parse": reference}`."""
    try:
        if "parse" in request:
            parsed = _parse(request["parse"])
            _same(parsed, _parse("1"), as_sets=False)  # parsing is lazy: what takes for ever does so when compared
            return "parsed" if _is_parsed(parsed) else "unparsable"
        either_way = "equal" in request
        gold, answer = request["equal" if either_way else "verify"]
        return compare(gold, answer, either_way)
    except MemoryError:
        return "memory"
    except Exception:  # of which there is no end in a parser given hostile text; RecursionError, mostly
        return "unparsable"


def _address_space_mb() -> float:
    try:
        with open(_STATUS) as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:  # no Linux
        return 0


def main(arguments: Sequence[str]) -> None:
    handle, deadline_s, memory_mb = int(arguments[0]), float(arguments[1]), int(arguments[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)  # a message would hold an expression, and printing one may take for ever
    with socket.socket(fileno=handle) as channel, channel.makefile("rb") as requests:
        for one, other in _WARM_UP:
            compare(one, other, either_way=True)
        confine()
        channel.sendall(b'{"outcome": "ready", "spent": false}\n')
        os.dup2(0, 2)  # nobody reads errors from here on
        for line in requests:
            # The parent ends a worker that is late. Should it be gone by then, the alarm does.
            signal.setitimer(signal.ITIMER_REAL, 2 * deadline_s + 1)
            reply = {"outcome": answer_request(json.loads(line))}
            signal.setitimer(signal.ITIMER_REAL, 0)
            # What caches hold is missing to the next answer: a worker so full is to be replaced.
            reply_line = json.dumps({**reply, "spent": _address_space_mb() > memory_mb / 2})
            channel.sendall(reply_line.encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
