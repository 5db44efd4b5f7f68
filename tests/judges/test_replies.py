"""Replies of judges that think aloud: what is found in them is right, or it is a failure."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyepo_jax.errors import GradeFailure
from polyepo_jax.judges import json_in_text
from polyepo_jax.judges.judge import Surroundings
from polyepo_jax.judges.rubric import parse_reply
from polyepo_jax.types import DEGENERATE, Problem
from tests.judges.server import JudgeServer
from tests.judges.styles import STYLES
from tests.judges.test_http import CLUSTERS, PROBLEM, RESPONSES, judge_of, rule

IDS = (1, 0, 100, 3)
GOOD = json.dumps({str(k): {"chain_of_thought": "by the rule", "cluster_id": id_} for k, id_ in enumerate(IDS, 1)})


@pytest.mark.parametrize("style", STYLES)
def test_every_style_of_answering_says_the_same(style):
    assert parse_reply(STYLES[style](GOOD), 4, 100) == (1, 0, DEGENERATE, 3)


@pytest.mark.parametrize("style", STYLES)
def test_a_judge_that_thinks_aloud_clusters_all_that_it_clusters_when_it_does_not(style):
    problems = [Problem(i, f"{PROBLEM.prompt} ({i})", "") for i in range(3)]
    with JudgeServer(rule, style=STYLES[style]) as server, judge_of(server).open(Surroundings()) as live:
        for problem in problems:
            clusters = live.cluster(problem, RESPONSES)
            assert clusters.ids == CLUSTERS
            assert clusters.counts == {"calls": 1, "attempts": 1, "shortened": 0}


TWO = '{"1": 0, "2": 1}'
OTHER = '{"1": 1, "2": 1}'


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (f"{OTHER} or rather {TWO}", (0, 1)),
        (f"{TWO} {{}} {{note}}", (0, 1)),
        (f'{TWO} where {{"1": "factors", "2": "counts"}}', (0, 1)),  # the clusters' names
        (f"{TWO}\n[1, 1]", (0, 1)),  # an object is what was asked for
        (f"[1, 1]\n{TWO}", (0, 1)),
        ("[1, 1]\n[0, 1]", (0, 1)),
        ("By strategy [1, 1]:\n[0, 1]", (0, 1)),
        (f"{OTHER}</think>{TWO}", (0, 1)),
        (f"<think>{TWO}", (0, 1)),
        ('{"1": {"cluster_id": "0", "why": [0, 0]}, "2": 1}', (0, 1)),
        ('[{"cluster_id": 0}, {"cluster_id": 1}]', (0, 1)),
        ('{"2": 1, "1": -0}', (0, 1)),
        ("[0, 1", None),
        (f"<think>{TWO}</think>", None),
        (f"<think>{TWO} Or not?", "thought_only"),
        (f"<think>{OTHER} or {TWO[:-1]}", "thought_only"),
        ("<think>a</think><think>b", "thought_only"),
        (f"{TWO} or rather {OTHER[:-1]}", None),
        (f'{TWO} or rather {{"', None),
        (f'{TWO} or rather {{"1', None),
        (f'{TWO} or rather {{"1" ', None),
        (f'{TWO} or rather {{"1": ', None),
        (f'{TWO} or rather {{"1": tru', None),
        (f'{TWO} or rather {{"1": {{"chain_of_thought": "It says \\', None),
        (f"Result: [{TWO}", None),
        (f'{{"result": {TWO}', None),
        ("The responses [0, 1] are alike.", None),
        ("All of:\n[0, 1] and [1, 0] differ.", None),
        ("[0, 1] differ.", None),
        ("{'1': 0, '2': 1}", None),
        (f'{{"a": {{"b": {TWO}}}}}', "wrong_keys"),
        (f'{{"result": {TWO}, "note": 1}}', "wrong_keys"),
        ('{"result": [0, 1]}', "wrong_keys"),
        ("[0, 1, 1]", "wrong_keys"),
        ("[[0, 1]]", "wrong_keys"),
        ('{"1": 0}', "wrong_keys"),
        ('{"1": 0}\n[0, 1]', "wrong_keys"),
        ('{"1": 0, "2": 1, "3": 1}', "wrong_keys"),
        ('{"1": 0, "1": 0, "2": 1}', "duplicate_keys"),
        ('{"result": {"1": 0, "2": 1, "2": 1}}', "duplicate_keys"),
        (f'{{"result": {TWO}, "result": {TWO}}}', "duplicate_keys"),
        ('{"1": true, "2": 1}', "bad_id"),
        ('{"1": 0.0, "2": 1}', "bad_id"),
        ('{"1": "0.0", "2": 1}', "bad_id"),
        ('{"1": "", "2": 1}', "bad_id"),
        ('{"1": "01", "2": 1}', "bad_id"),
        ('{"1": "1\\n", "2": 1}', "bad_id"),
        ('{"1": "\u0661", "2": 1}', "bad_id"),  # a digit, yet not JSON's
        ('{"1": "-1", "2": 1}', "bad_id"),
        ('{"1": 3, "2": 1}', "bad_id"),
        ('{"1": [0], "2": 1}', "bad_id"),
        ("[0, true]", "bad_id"),
        ("[0, 1.0]", "bad_id"),
        ("[0, null]", "bad_id"),
        ("[0, [1]]", "bad_id"),
        ("[0, 3]", "bad_id"),
    ],
)
def test_what_is_ambiguous_is_a_failure_and_else_the_last_counts(text, ids):
    """ids: a kind of failure, None for `not_json`."""
    try:
        found = parse_reply(text, 2, 100)
    except GradeFailure as failure:
        found = failure.kind
    assert found == ("not_json" if ids is None else ids)


def test_a_lone_response_is_told_from_a_wrapping_key():
    assert parse_reply('{"1": {"cluster_id": 0}}', 1, 100) == (0,)
    assert parse_reply('{"result": {"1": 0}}', 1, 100) == (0,)
    for text, kind in (
        ('{"1": {"1": 0}}', "bad_id"),
        ('{"2": {"1": 0}}', "wrong_keys"),
        ('{"cluster_id": 0}', "wrong_keys"),
    ):
        with pytest.raises(GradeFailure) as caught:
            parse_reply(text, 1, 100)
        assert caught.value.kind == kind


HOSTILE = [
    "{",
    "[",
    '{"1":',
    "[1,",
    '["a\\" ',
    '"{',
    '{"',
    "[[1],",
    "<think>{",
    "[1]\n",
    '{"a":{"b":"\\"',
    "[ ",
    '["\\u00',
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_megabyte_of_openings_is_read_in_a_moment(unit):
    """What tried each opening from its own start would take hours, or more levels than Python has."""
    with pytest.raises(GradeFailure):
        parse_reply(unit * (1_000_000 // len(unit)), 2, 100)


@pytest.mark.parametrize("unit", HOSTILE)
def test_twice_the_text_is_twice_the_work(unit, monkeypatch):
    """Work: characters that a pattern has passed over, and times that one was tried."""
    passed = 0

    class Counting:
        def __init__(self, pattern):
            self._pattern = pattern

        def match(self, text, start):
            nonlocal passed
            match = self._pattern.match(text, start)
            # A pattern that fails has looked at no more than the string, number or white space it began with.
            tried = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*|[^"\[\]{},]*').match(text, start)
            passed += 1 + max(tried.end(), match.end() if match else 0) - start
            return match

    for name in ("_SPACE", "_KEY", "_SCALAR", "_BEGINNING"):
        monkeypatch.setattr(json_in_text, name, Counting(getattr(json_in_text, name)))
    work = []
    for length in (2_000, 4_000):
        passed = 0
        json_in_text.find(unit * (length // len(unit)))
        work.append(passed)
    assert work[0] > 0
    assert work[1] <= 2.05 * work[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
SOUP = st.text(st.sampled_from('{}[]",:\\ \n1e-.tanu'), max_size=25)


def found_from(text, start):
    """The plain way: what `json` reads from this bracket on, were other escapes replaced by one that it knows."""
    escaped = re.sub(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})|\\[^\x00-\x1f]', lambda m: m[0] if m[1] else r"\n", text[start:])
    try:
        return start + json.JSONDecoder().raw_decode(escaped)[1]
    except ValueError:
        return None


@given(text=SOUP | JSON.map(json.dumps) | st.tuples(SOUP, JSON.map(json.dumps), SOUP).map("".join))
def test_what_is_complete_is_what_python_reads(text):
    ends = json_in_text._ends(text)
    for opening in range(len(text)):
        if text[opening] in "[{":
            end = ends.get(opening)
            assert (end if end is not None and end <= len(text) else None) == found_from(text, opening)


@given(text=st.text(st.sampled_from('\\"u0nx{'), max_size=12))
def test_a_backslash_that_escapes_nothing_stands_for_itself(text):
    """Whatever is found can be decoded, and what JSON has escapes for is read by them."""
    [*spans] = json_in_text.find(f'["{text}"]').spans
    for start, end in spans:
        json_in_text.decode(f'["{text}"]'[start:end], dict)
    valid = json.dumps([text])
    assert json_in_text.decode(valid, dict) == [text]
    assert json_in_text.decode(r'["\sqrt{2} \(x\) \u1 \\x \n"]', dict) == ["\\sqrt{2} \\(x\\) \\u1 \\x \n"]


@given(value=JSON.filter(lambda value: isinstance(value, (dict, list)) and value), data=st.data())
def test_each_beginning_of_json_is_unfinished(value, data):
    text = json.dumps(value)
    cut = text[: data.draw(st.integers(2, len(text) - 1))]
    assert json_in_text.find(f"So: {cut}") == ([], 4)
