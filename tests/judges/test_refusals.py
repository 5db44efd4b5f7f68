"""Servers that refuse a parameter by name, and models that think without answering."""

import concurrent.futures
import dataclasses
import json

import pytest

from polyepo_jax.judges import HTTPJudge, Surroundings
from polyepo_jax.judges.refusals import refused_parameters
from tests.judges.server import JudgeServer, always, first
from tests.judges.test_http import CLUSTERS, NOWHERE, PROBLEM, RESPONSES, failure_of, judge_of, rule

NAMES = ("temperature", "max_tokens", "seed", "response_format")
OPENAI_LIMIT = {
    "error": {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
        "instead.",
        "type": "invalid_request_error",
        "param": "max_tokens",
        "code": "unsupported_parameter",
    }
}
OPENAI_TEMPERATURE = {
    "error": {
        "message": "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is "
        "supported.",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "unsupported_value",
    }
}


def without_param(body):
    return {"error": body["error"] | {"param": None}}


def fastapi(*names):
    return {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted",
                        "input": {"temperature": 0.0, "max_tokens": 4096}} for name in names]}  # fmt: skip


def vllm(name):
    said = [{"type": "extra_forbidden", "loc": ("body", name), "msg": "Extra inputs are not permitted", "input": 4096}]
    return {"object": "error", "message": str(said), "type": "BadRequestError", "param": None, "code": 400}


LIMIT_TOO_LARGE = (
    "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context length is 8192 tokens "
    "and your request has 5000 input tokens (4096 > 8192 - 5000)."
)
SCHEMA_REFUSED = [{"type": "value_error", "loc": ("body", "response_format"), "msg": "not supported",
                   "input": {"temperature": 0, "max_tokens": 4096}}]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (OPENAI_LIMIT, {"max_tokens"}),
        (OPENAI_TEMPERATURE, {"temperature"}),
        (without_param(OPENAI_LIMIT), {"max_tokens"}),
        (without_param(OPENAI_TEMPERATURE), {"temperature"}),
        (fastapi("max_tokens"), {"max_tokens"}),
        (fastapi("temperature", "seed"), {"temperature", "seed"}),
        ({"detail": {"error": fastapi("seed")}}, {"seed"}),
        (vllm("max_tokens"), {"max_tokens"}),
        ({"error": vllm("temperature")}, {"temperature"}),
        ({"error": "Input validation error: `temperature` must be strictly positive"}, {"temperature"}),
        ("Unrecognized request argument supplied: max_tokens", {"max_tokens"}),
        ({"message": "temperature: Only 1 is allowed"}, {"temperature"}),
        ({"error": {"message": LIMIT_TOO_LARGE, "param": "max_tokens", "code": 400}}, set()),
        ({"message": LIMIT_TOO_LARGE, "param": None}, set()),
        ({"message": str(SCHEMA_REFUSED), "param": None}, {"response_format"}),
        ({"detail": SCHEMA_REFUSED}, {"response_format"}),
        ({"error": {"message": "'response_format' is not supported at any temperature", "param": "response_format"}},
         {"response_format"}),
        ({"error": {"message": "The temperature of the machine is 90 degrees."}}, set()),
        ({"error": {"message": "'top_temperature' is not supported, nor is max_tokens_per_day"}}, set()),
        ({"error": None, "detail": ""}, set()),
        ([], set()),
        (None, set()),
    ],
)  # fmt: skip
def test_a_refusal_is_read_as_servers_word_it(body, expected):
    text = body if isinstance(body, str) else json.dumps(body)
    assert refused_parameters(text, NAMES) == set(expected)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "<html>no temperature here</html>", "\x00", '{"error": 1}'])
def test_what_says_nothing_names_nothing(text):
    assert refused_parameters(text, NAMES) == set()


def refuses(status, bodies):
    """A plan: a server that takes no request with any of these parameters; it names one at a time."""
    return lambda number, request: next(((status, body) for name, body in bodies.items() if name in request), None)


ALL = {
    "max_tokens": OPENAI_LIMIT,
    "temperature": OPENAI_TEMPERATURE,
    "seed": fastapi("seed"),
}


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("structured_output", ["auto", "on", "off"])
def test_a_server_that_refuses_parameters_is_asked_without_them_from_then_on(status, structured_output, capfd):
    with (
        JudgeServer(rule, refuses(status, ALL)) as server,
        judge_of(server, structured_output=structured_output, max_tokens=77).open(NOWHERE) as live,
    ):
        clusters = live.cluster(PROBLEM, RESPONSES)
        assert clusters.ids == CLUSTERS
        assert clusters.counts == {"calls": 1, "attempts": 4, "shortened": 0, "transport/parameter_refused": 3}
        assert set(clusters.counts) <= set(HTTPJudge.counted)
        assert live.cluster(PROBLEM, RESPONSES[1:]).counts["attempts"] == 1
    first_request, *_, last = server.requests
    assert first_request["max_tokens"] == last["max_completion_tokens"] == 77
    for request in server.requests[-2:]:
        assert not {"max_tokens", "temperature", "seed"} & request.keys()
    assert ("response_format" in last) == (structured_output != "off"), "the schema was not what was refused"
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 3
    assert "judge judge: max_tokens goes as max_completion_tokens (HTTP" in said[0]
    assert "judge judge: temperature is left out, and the server's own applies (HTTP" in said[1]


def test_many_calls_at_once_learn_it_once(capfd):
    problems = [dataclasses.replace(PROBLEM, prompt=f"{i} + 1") for i in range(24)]
    with (
        JudgeServer(rule, refuses(400, ALL)) as server,
        judge_of(server).open(NOWHERE) as live,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        clusters = list(pool.map(lambda problem: live.cluster(problem, RESPONSES), problems))
    assert [result.ids for result in clusters] == [CLUSTERS] * 24
    refused = sum(result.counts.get("transport/parameter_refused", 0) for result in clusters)
    assert 3 <= refused == len(server.requests) - 24 <= 3 * 8
    assert len(capfd.readouterr().err.splitlines()) == 3


def test_no_time_for_attempts_is_no_reason_to_give_up():
    with (
        JudgeServer(rule, refuses(400, ALL)) as server,
        judge_of(server, transport={"retry_for_s": 0.0}).open(NOWHERE) as live,
    ):
        assert live.cluster(PROBLEM, RESPONSES).ids == CLUSTERS


def test_what_was_answered_at_the_servers_own_temperature_is_never_given_for_another(tmp_path):
    where = Surroundings(directory=tmp_path)
    refusing = {"temperature": OPENAI_TEMPERATURE}
    with JudgeServer(rule, refuses(400, refusing)) as server:
        for _ in range(
            2
        ):  # a run, and the same again: it learns that the temperature is refused, and asks nothing else
            with judge_of(server).open(where) as live:
                live.cluster(PROBLEM, RESPONSES)
                assert live.cluster(PROBLEM, RESPONSES).counts == {"calls": 1, "cached": 1}
    assert ["temperature" in request for request in server.requests] == [True, False, True]
    with JudgeServer(lambda response: 0) as other, judge_of(other).open(where) as live:
        assert live.cluster(PROBLEM, RESPONSES).ids == (0,) * 5  # not what the other server said
        assert live.cluster(PROBLEM, RESPONSES).counts["cached"] == 1


def test_a_limit_under_another_name_is_the_same_question(tmp_path):
    where = Surroundings(directory=tmp_path)
    with JudgeServer(rule, refuses(400, {"max_tokens": OPENAI_LIMIT})) as server, judge_of(server).open(where) as live:
        live.cluster(PROBLEM, RESPONSES)
    with JudgeServer(rule) as other, judge_of(other).open(where) as live:
        assert live.cluster(PROBLEM, RESPONSES).counts == {"calls": 1, "cached": 1}


@pytest.mark.parametrize("body", [OPENAI_TEMPERATURE, fastapi("max_tokens", "temperature", "max_completion_tokens")])
def test_a_server_that_is_never_content_is_a_failure_after_a_few_requests(body):
    with JudgeServer(rule, always((400, body))) as server, judge_of(server).open(NOWHERE) as live:
        assert failure_of(live).kind == "client_error"
    assert len(server.requests) <= 4


def test_template_arguments_that_are_refused_are_a_failure_that_says_so():
    body = {"error": {"message": "Unrecognized request argument supplied: chat_template_kwargs", "param": None}}
    with (
        JudgeServer(rule, always((400, body))) as server,
        judge_of(server, chat_template_kwargs={"enable_thinking": False}).open(NOWHERE) as live,
    ):
        failure = failure_of(live)
    assert failure.kind == "client_error"
    assert str(failure).endswith("the server does not take chat_template_kwargs: leave them out")
    assert len(server.requests) == 1


def choice(content, finish_reason="stop", **others):
    return {"message": {"role": "assistant", "content": content, **others}, "finish_reason": finish_reason}


THOUGHTS = [
    (choice(None, reasoning_content="Let me see."), False),
    (choice("", reasoning="Let me see."), False),
    (choice(None, "length", reasoning_content="Let me see."), True),
    (choice("", "length", reasoning="Let me see."), True),
    (choice('<think>Maybe {"1": 0}? Let me see', "length"), True),
    (choice("<think>a</think><thinking>Let me see", "length"), True),
    (choice('<think>Let me see: {"1": 0}, for', "stop"), False),
]


@pytest.mark.parametrize(("said", "at_limit"), THOUGHTS)
def test_a_thought_without_an_answer_is_a_failure_that_says_what_to_do(said, at_limit):
    kwargs = {"enable_thinking": True}
    with (
        JudgeServer(rule, always(said)) as server,
        judge_of(server, max_asks=3, chat_template_kwargs=kwargs).open(NOWHERE) as live,
    ):
        failure = failure_of(live)
    assert failure.kind == "thought_only"
    assert failure.counts == {"calls": 1, "attempts": 3, "shortened": 0, "transport/thought_only": 3}
    assert [request["seed"] for request in server.requests] == [0, 1, 2], "not the same question again"
    assert "Let me see" in str(failure)
    assert ("raise max_tokens" in str(failure)) == at_limit
    assert "chat_template_kwargs = {'enable_thinking': False}" in str(failure)


@pytest.mark.parametrize("quiet", [{"enable_thinking": False}, {"thinking": False}])
@pytest.mark.parametrize(("said", "at_limit"), [*THOUGHTS, (choice("Hm", "length"), True)])
def test_no_advice_names_what_was_sent(quiet, said, at_limit):
    with (
        JudgeServer(rule, always(said)) as server,
        judge_of(server, max_asks=1, chat_template_kwargs=quiet).open(NOWHERE) as live,
    ):
        failure = failure_of(live)
    assert "chat_template_kwargs" not in str(failure)
    assert str(failure).endswith("raise max_tokens" if at_limit else "ask another model")


def test_a_schema_that_was_sent_is_not_advised():
    for structured_output, advised in (("off", True), ("auto", False), ("on", False)):
        with (
            JudgeServer(rule, always("prose")) as server,
            judge_of(server, max_asks=1, structured_output=structured_output).open(NOWHERE) as live,
        ):
            assert ("structured_output" in str(failure_of(live))) == advised


def test_an_answer_beside_a_thought_counts():
    with JudgeServer(rule) as server:

        def plan(number, request):
            return choice(f"<think>b</think>{server.reply(request, None)}", reasoning_content="a")

        server._plan = plan
        with judge_of(server).open(NOWHERE) as live:
            assert live.cluster(PROBLEM, RESPONSES).ids == CLUSTERS


def test_a_thought_once_is_asked_again():
    with JudgeServer(rule, first(THOUGHTS[0][0])) as server, judge_of(server).open(NOWHERE) as live:
        clusters = live.cluster(PROBLEM, RESPONSES)
    assert clusters.ids == CLUSTERS
    assert clusters.counts["transport/thought_only"] == 1
