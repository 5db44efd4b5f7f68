r"""The final answer of a reference, which may be a worked solution.

An answer that stands by itself is left as it is. Of a longer text the answer is its last line after `####`, else what
its last \boxed{} holds, else what follows the last "answer is". From prose without any of these no answer is taken: a
part that happens to parse would be compared with, and every right response would be wrong.
"""

import re
from typing import NamedTuple

from polyepo_jax.errors import GradeFailure
from polyepo_jax.rewards.answers import boxed, words
from polyepo_jax.rewards.math import MathVerifier
from polyepo_jax.types import Problem

_BOX = re.compile(r"\\f?boxed(?![A-Za-z])")
_ANSWER_IS = re.compile(r"\banswers?\s*(?:is|are|:|=)\s*:?\s*|答案\s*[是为:\uff1a]\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)|\n")
# Around an answer, and no part of it: the signs of mathematics.
_WRAPPED = re.compile(r"\$\$(.*)\$\$|\$([^$]*)\$|\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)
_AND = re.compile(r"\s*\}\$?\s*(?:,|;|,?\s*and|,?\s*or)\s*\$?")  # between one box and the next
_SUM = re.compile(r"[^A-Za-z=]+(?:=[^A-Za-z=]+)+")  # 3 + 4 = 7

_TEXT_COMMAND = re.compile(r"\\[A-Za-z]+\s*\{[^{}]*\}|\\[A-Za-z]+|\$[^$]*\$")
_WORD = re.compile(r"[^\W\d_]{2,}|\b[aI]\b")
# Words of sentences: an answer with one of them beside mathematics tells how it was found.
_TELLING = {
    *("we", "is", "are", "be", "was", "has", "have", "had", "so", "thus", "hence", "therefore", "because", "since"),
    *("then", "that", "which", "this", "these", "let", "get", "gets", "give", "gives", "must", "can", "will", "there"),
    *("obtain", "find", "add", "adding", "yields", "makes", "solution"),
}
_MAX_WORDS = 8  # of an answer in words
_MAX_WORDS_BESIDE = 5  # of one with mathematics in it: `12 square meters per second`


class Reference(NamedTuple):
    """What a reference was read as. answer: the final answer. why: there is none, or none that can be graded."""

    answer: str
    why: str = ""


def read(reference: str) -> Reference:
    """The final answer of a reference, or why there is no single one."""
    last = reference.rpartition("####")[2].strip() if "####" in reference else None
    if last is not None and "\n" not in last:
        return _plain(last, "after the last ####")
    if _BOX.search(reference):
        return _in_box(reference)
    if found := list(_ANSWER_IS.finditer(reference)):
        rest = reference[found[-1].end() :]
        return _plain(_SENTENCE_END.split(rest.strip(), maxsplit=1)[0], 'after "answer is"')
    if last is None:
        return Reference(reference, _prose(reference))
    line = last.partition("\n")[0]
    return Reference("", "its last #### begins a heading") if words(line) is not None else _plain(line, "")


def _in_box(reference: str) -> Reference:
    """A reference that has a box: it is left whole, as verifiers read the box themselves."""
    inner = boxed(reference)
    if inner is None:
        return Reference("", "its last \\boxed{} is empty or does not end")
    starts = [match.start() for match in _BOX.finditer(reference)]
    before = reference[starts[-2] : starts[-1]] if len(starts) > 1 else ""
    content = boxed(before)
    if content is not None and _AND.fullmatch(before[before.rfind(content) + len(content) :]):
        return Reference("", "there are several boxes, expected one")
    return Reference(reference, _prose(inner))


def check(answer: str, verifier: MathVerifier) -> str | None:
    r"""Why a final answer cannot be a reference: a response with it in \boxed{} would not be graded 1. None if it can.

    Raises:
      GradeFailure: the verifier could not say.
    """
    if why := verifier.check_reference(answer):
        return why
    inner = (boxed(answer) or answer).strip()
    final = inner.rpartition("=")[2].strip() if _SUM.fullmatch(inner) else inner
    try:
        reward = verifier(Problem(0, "", answer), f"\\boxed{{{final}}}").reward
    except GradeFailure as failure:
        if failure.kind == "reference":
            return str(failure)
        raise
    return None if reward == 1 else f"to the reference {inner!r:.80}, \\boxed{{{final}}} would not be graded 1"


def _plain(answer: str, where: str) -> Reference:
    answer = answer.strip()
    if _BOX.search(answer):
        return _in_box(answer)
    answer = _unwrapped(answer)
    return Reference(answer, _prose(answer)) if answer else Reference("", f"there is no answer {where}")


def _unwrapped(answer: str) -> str:
    """An answer without the signs around it: of bold, of mathematics, and the period of a sentence before these."""
    before = ""
    while answer != before:
        before = answer
        answer = answer.removesuffix(".").strip().removeprefix("**").removesuffix("**").strip()
        if match := _WRAPPED.fullmatch(answer.removesuffix(".")):
            answer = next(group for group in match.groups() if group is not None).strip()
    return answer


def _prose(answer: str) -> str:
    """Why an answer is rather a text that tells of one; empty if it is not."""
    if words(answer) is not None:
        few = len(answer.split()) <= _MAX_WORDS
    else:
        beside = [word.casefold() for word in _WORD.findall(_TEXT_COMMAND.sub(" ", answer))]
        few = len(beside) <= _MAX_WORDS_BESIDE and not _TELLING & set(beside)
    return "" if few else f"no single answer can be taken from {answer!r:.80}"
