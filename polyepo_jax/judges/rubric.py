"""What a judge that is a language model is asked, and what it may answer.

Responses are hostile text: a policy that learns to please the judge may write delimiters, replies and instructions.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyepo_jax.errors import GradeFailure
from polyepo_jax.judges import json_in_text
from polyepo_jax.judges.rules import number_by_key
from polyepo_jax.types import DEGENERATE

# Kinds of GradeFailure that `parse_reply` and `Rubric.render` raise.
REPLY_FAILURES = ("not_json", "duplicate_keys", "wrong_keys", "bad_id", "thought_only")
RENDER_FAILURES = ("no_room",)

_SHIPPED = Path(__file__).parent / "rubrics" / "strategy.txt"
_PLACEHOLDERS = ("problem", "responses", "num_responses", "degenerate_id")
_PLACEHOLDER = re.compile("<<([^<>\n]*)>>")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TOKEN_LENGTH = 16
_MIN_LIMIT = 200  # characters of a response; with fewer there is nothing to judge by
_THOUGHT_TAG = re.compile("<(/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_ENDING = re.compile(r"[\s`]*")
_DIGITS = re.compile("0|[1-9][0-9]{0,8}")


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A prompt for the judge.

    Attributes:
      text: can be encoded as UTF-8, whatever the responses hold.
      num_shortened: how many of the responses are not there as a whole.
    """

    text: str
    num_shortened: int


@dataclasses.dataclass(frozen=True)
class Rubric:
    """By what a judge clusters.

    Attributes:
      path: a UTF-8 text with <<problem>>, <<responses>>, <<num_responses>> and <<degenerate_id>>, the first two once;
        None for the one that is shipped, on strategies in mathematics. Read once in a process.
      degenerate_id: what the judge gives responses in which no strategy is discernible; above their number.
      max_characters: of the whole prompt, so that it fits the judge's context with its reply. Mathematics has two to
        four characters a token.
    """

    path: str | None = None
    degenerate_id: int = 100
    max_characters: int = 60_000

    def __post_init__(self):
        if self.degenerate_id < 2 or self.max_characters < 1:
            raise ValueError(
                "degenerate_id must be at least 2 and max_characters at least 1, "
                f"got {self.degenerate_id} and {self.max_characters}"
            )

    @property
    def template(self) -> str:
        """The rubric with its placeholders.

        Raises:
          ValueError: the file is not as described.
        """
        return _read(str(_SHIPPED) if self.path is None else os.path.abspath(self.path))

    def check(self, num_responses: int) -> None:
        """Raises ValueError unless the template is as described and so many responses can be told from degenerate."""
        if self.template and num_responses >= self.degenerate_id:
            raise ValueError(
                f"rubric.degenerate_id = {self.degenerate_id} must be above the number of responses, {num_responses}: "
                "raise it"
            )

    def render(self, problem: str, responses: Sequence[str], order: Sequence[int]) -> Rendered:
        """The prompt; its k-th response is `responses[order[k]]`.

        Where the prompt would exceed `max_characters`, the longest responses are shortened in their middle, to equal
        lengths. Half characters (lone surrogates), which UTF-8 cannot hold, become U+FFFD; nothing else is changed.

        Raises:
          GradeFailure: of kind `no_room`, if what is left of a response would be too short to judge.
        """
        if sorted(order) != list(range(len(responses))) or len(responses) >= self.degenerate_id:
            raise ValueError(
                f"expected a permutation of fewer than degenerate_id = {self.degenerate_id} responses, got {order} for "
                f"{len(responses)}: raise rubric.degenerate_id where there are that many"
            )
        problem, *texts = (_SURROGATE.sub("\ufffd", text) for text in (problem, *(responses[i] for i in order)))
        token = _absent_token([problem, *texts])
        lengths = [len(text) for text in texts]
        room = self.max_characters - len(self._fill(problem, [""] * len(texts), token))
        limits = fair_limits(lengths, max(room, 0))
        if room < 0 or any(limit < min(length, _MIN_LIMIT) for limit, length in zip(limits, lengths, strict=True)):
            raise GradeFailure(
                "no_room",
                f"the rubric and a problem of {len(problem)} characters leave {max(room, 0)} of {self.max_characters} "
                f"characters for {len(texts)} responses: raise rubric.max_characters, and the judge's context with it",
            )
        shown = [shorten(text, limit) for text, limit in zip(texts, limits, strict=True)]
        num_shortened = sum(limit < length for limit, length in zip(limits, lengths, strict=True))
        return Rendered(self._fill(problem, shown, token), num_shortened)

    def _fill(self, problem: str, texts: Sequence[str], token: str) -> str:
        def tagged(name: str, text: str) -> str:
            return f"<{name}-{token}>\n{text}\n</{name}-{token}>"

        values = {
            "problem": tagged("problem", problem),
            "responses": "\n\n".join(tagged(f"response-{number}", text) for number, text in enumerate(texts, 1)),
            "num_responses": str(len(texts)),
            "degenerate_id": str(self.degenerate_id),
        }
        return _PLACEHOLDER.sub(lambda match: values[match[1]], self.template)


@functools.lru_cache(maxsize=16)
def _read(path: str) -> str:
    try:
        template = Path(path).read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected a rubric in UTF-8") from error
    found = _PLACEHOLDER.findall(template)
    for name in found:
        if name not in _PLACEHOLDERS:
            raise ValueError(
                f"{path}: unknown placeholder <<{name}>>; those of a rubric are "
                f"{', '.join(f'<<{name}>>' for name in _PLACEHOLDERS)}"
            )
    for name in _PLACEHOLDERS:
        if name not in found:
            raise ValueError(f"{path}: no placeholder <<{name}>>; put it where that belongs")
    for name in ("problem", "responses"):
        if found.count(name) > 1:
            raise ValueError(f"{path}: placeholder <<{name}>> {found.count(name)} times; leave one")
    return template


def _absent_token(texts: Sequence[str]) -> str:
    """Hexadecimal digits that none of the texts contains, always the same for the same texts."""
    content = json.dumps(texts)
    tokens = (hashlib.sha256(f"{n}{content}".encode()).hexdigest()[:_TOKEN_LENGTH] for n in itertools.count())
    return next(token for token in tokens if not any(token in text for text in texts))


def fair_limits(lengths: Sequence[int], room: int) -> list[int]:
    """How long each text may be for all to fit: short ones whole, the others equal shares of what these leave."""
    limits = [0] * len(lengths)
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    for num_left, i in zip(range(len(lengths), 0, -1), by_length, strict=True):
        limits[i] = min(lengths[i], room // num_left)
        room -= limits[i]
    return limits


def shorten(text: str, limit: int) -> str:
    """A text of at most `limit` characters (no fewer than a mark needs) with its head and its tail."""
    if len(text) <= limit:
        return text
    num_kept = limit - len(_mark(len(text)))
    tail = num_kept // 2
    return text[: num_kept - tail] + _mark(len(text) - num_kept) + text[len(text) - tail :]


def _mark(num_left_out: int) -> str:
    return f"\n[... {num_left_out} characters left out ...]\n"


def shuffled(seed: int, problem: str, responses: Sequence[str]) -> tuple[int, ...]:
    """A random permutation of the responses, the same whenever the same is asked: position tells a judge nothing."""
    content = hashlib.sha256(json.dumps([seed, problem, list(responses)]).encode()).hexdigest()
    ranks = [hashlib.sha256(f"{content}{i}".encode()).digest() for i in range(len(responses))]
    return tuple(sorted(range(len(responses)), key=ranks.__getitem__))


def in_original_order(ids: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Ids of the responses as they were before `order`, numbered from 0 as they appear; DEGENERATE stays."""
    keys: list[int | None] = [None] * len(order)
    for id_, i in zip(ids, order, strict=True):
        keys[i] = None if id_ == DEGENERATE else id_
    return tuple(number_by_key(keys))


def parse_reply(text: str, num_responses: int, degenerate_id: int) -> tuple[int, ...]:
    """Ids of the responses in the order in which they were shown, DEGENERATE for `degenerate_id`.

    A reply is a JSON object of the keys "1" to "N", each once and each an integer id or an object that holds one as
    `cluster_id`; an id goes from 0 to N or is `degenerate_id`, and may be written as a text. The object may be the
    value of the only key of another. In its place there may be an array of the N ids on a line of its own, or after a
    colon: in mid-sentence [1, 2] speaks of responses.

    A model may think before it answers, and say more than it was asked: of what comes after its thought, the last
    complete object counts that is a reply, else the last such array if there is no object at all. In a thought that
    was never closed only what ends the text can be an answer.

    Raises:
      GradeFailure: there is no reply, or the text ends within JSON; its kind is one of REPLY_FAILURES.
    """
    answer, in_thought = _after_thought(text)
    found = json_in_text.find(answer)
    objects = [span for span in found.spans if answer[span[0]] == "{"]
    candidates = objects or _standing_alone(answer, found.spans)
    failure = GradeFailure("not_json", f"no JSON object but {answer[:80]!r:.80}")
    if found.unfinished is not None:  # it may be what was to replace those before it
        failure = GradeFailure("not_json", f"the reply ends within JSON: {answer[found.unfinished :][:80]!r:.80}")
        candidates = []
    if in_thought:
        failure = GradeFailure("thought_only", f"the reply ends within a thought: {answer[-80:]!r:.80}")
        candidates = [span for span in candidates if _ENDING.fullmatch(answer, span[1])]
    for number, (start, end) in enumerate(reversed(candidates)):
        try:
            return _ids(_decode(answer[start:end]), num_responses, degenerate_id)
        except GradeFailure as error:
            failure = error if number == 0 and not in_thought else failure
    raise failure


def is_unclosed_thought(text: str) -> bool:
    """Whether a reply ends within a thought that it opened."""
    return _after_thought(text)[1]


def _after_thought(text: str) -> tuple[str, bool]:
    """What follows the last thought, and whether a further one is opened there; tags within JSON are none."""
    tags = list(_THOUGHT_TAG.finditer(text))
    if not tags:
        return text, False
    spans = json_in_text.find(text).spans
    starts = [start for start, _ in spans]

    def in_json(place: int) -> bool:
        before = bisect.bisect_right(starts, place)
        return before > 0 and place < spans[before - 1][1]

    tags = [tag for tag in tags if not in_json(tag.start())]
    end = max((tag.end() for tag in tags if tag[1]), default=0)
    return text[end:], any(tag.start() >= end for tag in tags)


def _standing_alone(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those with nothing else on their line, but for what ends in a colon before them, and code fences."""
    alone = []
    places = [(0, 0), *spans, (len(text), len(text))]
    for (_, last_end), (start, end), (next_start, _) in zip(places, places[1:], places[2:], strict=False):
        before, after = text[last_end:start].rstrip(" \t*`"), text[end:next_start].lstrip(" \t\r*`.")
        begins = before.endswith(("\n", ":")) or (not before and last_end == 0)
        if begins and (after.startswith("\n") or (not after and next_start == len(text))):
            alone.append((start, end))
    return alone


def _decode(text: str) -> Any:
    try:
        return json_in_text.decode(text, _distinct)
    except (ValueError, RecursionError) as error:
        raise GradeFailure("not_json", f"no JSON object but {text[:80]!r:.80} ({error})") from error


def _ids(reply: Any, num_responses: int, degenerate_id: int) -> tuple[int, ...]:
    if isinstance(reply, list):
        if len(reply) != num_responses:
            raise GradeFailure("wrong_keys", f"expected {num_responses} ids, got {len(reply)}")
        reply = {str(number): id_ for number, id_ in enumerate(reply, 1)}
    expected = [str(number) for number in range(1, num_responses + 1)]
    if len(reply) == 1:
        [(key, value)] = reply.items()
        reply = value if isinstance(value, dict) and not key.strip().isdecimal() else reply
    if reply.keys() != set(expected):
        raise GradeFailure("wrong_keys", f"expected the keys 1 to {num_responses}, got {', '.join(reply)!r:.80}")
    return tuple(_cluster_id(key, reply[key], num_responses, degenerate_id) for key in expected)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise GradeFailure("duplicate_keys", f"a key twice among {', '.join(key for key, _ in pairs)!r:.80}")
    return members


def _cluster_id(key: str, value: Any, num_responses: int, degenerate_id: int) -> int:
    cluster_id = value.get("cluster_id") if isinstance(value, dict) else value
    if isinstance(cluster_id, str) and _DIGITS.fullmatch(cluster_id):
        cluster_id = int(cluster_id)
    if type(cluster_id) is not int or not (0 <= cluster_id <= num_responses or cluster_id == degenerate_id):
        raise GradeFailure(
            "bad_id",
            f"expected for response {key} an integer cluster_id from 0 to {num_responses} or {degenerate_id}, "
            f"got {value!r:.80}",
        )
    return DEGENERATE if cluster_id == degenerate_id else cluster_id


def reply_schema(num_responses: int, degenerate_id: int) -> dict[str, Any]:
    """JSON schema of a reply, for servers and samplers that can be held to one."""
    verdict = {
        "type": "object",
        "properties": {
            "chain_of_thought": {"type": "string"},
            "cluster_id": {"type": "integer", "enum": [*range(1, num_responses + 1), degenerate_id]},
        },
        "required": ["chain_of_thought", "cluster_id"],
        "additionalProperties": False,
    }
    keys = [str(number) for number in range(1, num_responses + 1)]
    return {
        "type": "object",
        "properties": dict.fromkeys(keys, verdict),
        "required": keys,
        "additionalProperties": False,
    }
