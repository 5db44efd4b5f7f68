"""A judge that is a language model behind an OpenAI-compatible server, e.g. vLLM or SGLang beside the training run."""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import math
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import tenacity

from polyepo_jax.errors import GradeFailure, warn_on_stderr
from polyepo_jax.judges import completions
from polyepo_jax.judges.cache import ReplyCache, cache_key, of_process, siblings
from polyepo_jax.judges.completions import Completions, Transport
from polyepo_jax.judges.judge import Clusters, Surroundings
from polyepo_jax.judges.rubric import (
    RENDER_FAILURES,
    REPLY_FAILURES,
    Rubric,
    in_original_order,
    parse_reply,
    reply_schema,
    shuffled,
)
from polyepo_jax.judges.template_kwargs import TemplateKwargs, check_template_kwargs, or_no_thought
from polyepo_jax.types import Problem

# Kinds of attempts that failed, with what there is to do about them.
_ADVICE = {
    **completions.ADVICE,
    "schema_refused": "set structured_output to 'off'",
    **dict.fromkeys(REPLY_FAILURES, "the model strays from the rubric: ask another"),
    "thought_only": completions.ADVICE["thought_only"],
}
# What a request goes on without once the server has refused it by name -> the name under which the value is sent then.
_REPLACEABLE = {"max_tokens": "max_completion_tokens", "temperature": None, "seed": None}
_OPTIONAL = {*_REPLACEABLE, "max_completion_tokens", "chat_template_kwargs"}
# The model has answered, and would answer the same question in the same way.
_REFUSED_REPLIES = ("cut_off", *REPLY_FAILURES)


class _ParameterRefused(GradeFailure):
    """A request was refused for parameters that it can do without; never the end of a call."""

    def __init__(self, names: frozenset[str], message: str):
        super().__init__("parameter_refused", message)
        self.names = names


@dataclasses.dataclass(frozen=True)
class HTTPJudge:
    """One request clusters all responses to a problem by a rubric.

    The responses are shown in a random order that depends on them and on `shuffle_seed` only. When the model's reply is
    of no use it is asked again with both seeds one higher: another order is another question, at temperature 0 too.

    Attributes:
      model: its name on the server.
      rubric: by what it clusters.
      transport: how it is reached.
      temperature, max_tokens: of the reply, which has some 100 tokens a response.
      sampling_seed: given to the server.
      shuffle_seed: of the order of the responses.
      max_asks: how often the model may reply to one call, before that has failed.
      structured_output: the server holds the reply to a JSON schema. "auto": unless it refuses to.
      cache: a file of the answers, which are not asked for twice. None for judge_cache.sqlite in the run directory, or
        memory where there is none.
      chat_template_kwargs: for the server to tell the model's chat template, e.g. {"enable_thinking": False}; not sent
        where empty.
    """

    model: str
    rubric: Rubric = Rubric()
    transport: Transport = Transport()
    temperature: float = 0.0
    max_tokens: int = 4096
    sampling_seed: int = 0
    shuffle_seed: int = 0
    max_asks: int = 8
    structured_output: Literal["auto", "on", "off"] = "auto"
    cache: str | None = None
    chat_template_kwargs: TemplateKwargs = dataclasses.field(default_factory=dict, hash=False)

    failures: ClassVar[tuple[str, ...]] = (*_ADVICE, *RENDER_FAILURES, "closed")
    counted: ClassVar[tuple[str, ...]] = (
        "calls",
        "cached",
        "cache_failed",
        "attempts",
        "shortened",
        *(f"transport/{kind}" for kind in (*_ADVICE, "parameter_refused")),
    )

    def __post_init__(self):
        if not self.model:
            raise ValueError("model must be the judge's name on its server")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        for name, minimum in (("max_tokens", 1), ("max_asks", 1), ("sampling_seed", 0), ("shuffle_seed", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")
        check_template_kwargs(self.chat_template_kwargs)

    def identity(self) -> dict[str, Any]:
        """All that an answer depends on, besides the problem and the responses."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("rubric", "transport", "max_asks", "cache"):
            del settings[name]
        if not self.chat_template_kwargs:  # as before there were any: what was answered then still counts
            del settings["chat_template_kwargs"]
        return settings | {"rubric": (self.rubric.template, self.rubric.degenerate_id, self.rubric.max_characters)}

    def check(self, num_responses: int) -> None:
        """Raises ValueError for a rubric or key that cannot be used. The server is not asked: it may start later."""
        self.rubric.check(num_responses)
        self.transport.url()
        self.transport.key()

    @contextlib.contextmanager
    def open(self, where: Surroundings) -> Iterator["LiveHTTPJudge"]:
        """The judge at work. The server is not asked anything yet: it may start later.

        Raises:
          ValueError: a rubric, address, key or cache that cannot be used.
        """
        default = None if where.directory is None else where.directory / "judge_cache.sqlite"
        with contextlib.closing(LiveHTTPJudge(self, default if self.cache is None else Path(self.cache))) as live:
            yield live


@dataclasses.dataclass
class _Call:
    """One call on its way: what is asked, and what has happened until now.

    left_out: parameters that the server refused before.
    num_refused: replies of the model that were of no use.
    retry_after_s: what the server asked for last.
    deadline: by `time.monotonic()`; no attempt starts after it.
    """

    problem: str
    responses: Sequence[str]
    left_out: frozenset[str]
    with_schema: bool
    deadline: float
    counts: collections.Counter[str]
    num_refused: int = 0
    retry_after_s: float = 0.0


class LiveHTTPJudge:
    """Sends requests from an event loop in a thread of its own; the threads that call it wait."""

    def __init__(self, judge: HTTPJudge, path: Path | None, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep):
        """See `HTTPJudge.open`; `path` of the cache, and `sleep` between attempts."""
        self._judge = judge
        self._identity = judge.identity()
        self._sleep = sleep
        self._with_schema = judge.structured_output != "off"
        self._left_out: frozenset[str] = frozenset()  # what the server refused
        self._server = Completions(judge.transport)
        # Each of several processes has its own, and knows what was in all of them when it started.
        if path is not None:
            others = [other for other in siblings(path) if other != of_process(path, jax.process_index())]
            self._cache = ReplyCache(of_process(path, jax.process_index()), others, jax.process_count() == 1)
        else:
            self._cache = ReplyCache(None)
        # Nothing is handed to the loop once it has been told to stop; what the server refused is learnt once.
        self._lock = threading.Lock()
        self._closed = False
        self._stop = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="http judge", daemon=True)
        self._thread.start()

    @property
    def concurrency(self) -> int:
        return self._judge.transport.max_concurrency

    def cluster(self, problem: Problem, responses: Sequence[str]) -> Clusters:
        """Ids of all responses to one problem, from the cache where it has them.

        Raises:
          GradeFailure: no attempt was of use, or none could be made; `HTTPJudge.failures` has the kinds.
        """
        counts = collections.Counter[str](calls=1)
        while True:
            left_out = self._left_out
            key = self._key(left_out, problem, responses)
            try:
                ids = self._cache.get(key)
                if ids is not None:
                    return Clusters(ids, {**counts, "cached": 1})
            except sqlite3.Error:  # a disk that is full or gone: what the judge says is good without it
                counts["cache_failed"] += 1
            try:
                clusters = self._ask(problem, responses, left_out, counts)
                break
            except _ParameterRefused as refused:  # a parameter of the request: it goes on without, so this ends
                self._leave_out(refused)
        try:
            self._cache.put(key, clusters.ids)
        except sqlite3.Error:
            counts["cache_failed"] += 1
        return dataclasses.replace(clusters, counts=dict(counts))

    def _key(self, left_out: frozenset[str], problem: Problem, responses: Sequence[str]) -> str:
        """Of what an answer depends on as it is asked for, not only as it is configured.

        A server that refuses a temperature answers with its own; with another server, or another version, the same
        judge may be asked as configured, and must not be given that answer. So what is left out is in the key, and a
        call that learns that something has to be is looked up again. A limit under its other name is the same limit.
        """
        without = sorted(name for name in left_out if _REPLACEABLE[name] is None)
        return cache_key(self._identity | ({"left_out": without} if without else {}), problem.prompt, list(responses))

    def _leave_out(self, refused: _ParameterRefused) -> None:
        """Takes parameters out of all further requests, and says so once."""
        with self._lock:
            new = refused.names - self._left_out
            self._left_out |= new
        if new and jax.process_index() == 0:
            instead = [
                f"{name} is left out, and the server's own applies" if other is None else f"{name} goes as {other}"
                for name, other in _REPLACEABLE.items()
                if name in new
            ]
            warn_on_stderr(f"judge {self._judge.model}: {'; '.join(instead)} ({refused})")

    def close(self) -> None:
        """Ends what is in flight: who waits for it gets a GradeFailure of kind `closed`."""
        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(self._stop.set)
            self._closed = True
        self._thread.join()
        self._cache.close()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        await self._stop.wait()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.close()

    def _ask(
        self, problem: Problem, responses: Sequence[str], left_out: frozenset[str], counts: collections.Counter[str]
    ) -> Clusters:
        deadline = time.monotonic() + self._judge.transport.retry_for_s
        call = _Call(problem.prompt, responses, left_out, self._with_schema, deadline, counts)
        with self._lock:
            if self._closed:
                raise GradeFailure("closed", "the judge was closed before it was asked", call.counts)
            future = asyncio.run_coroutine_threadsafe(self._attempt_until_done(call), self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise GradeFailure("closed", "the judge was closed during the call", call.counts) from None

    async def _attempt_until_done(self, call: _Call) -> Clusters:
        transport = self._judge.transport
        backoff = tenacity.wait_random_exponential(transport.first_backoff_s, transport.max_backoff_s)
        retrying = tenacity.AsyncRetrying(
            # A wait that would end after the deadline ends at it, for one last attempt.
            wait=lambda state: max(0.0, min(backoff(state) + call.retry_after_s, call.deadline - time.monotonic())),
            stop=lambda _: call.num_refused >= self._judge.max_asks or time.monotonic() >= call.deadline,
            retry=tenacity.retry_if_exception(_may_pass),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            ids: tuple[int, ...] = await retrying(self._attempt, call)
        except _ParameterRefused:
            raise
        except GradeFailure as failure:
            advice = self._advice(failure, call)
            message = f"{self._server.url}: {failure} (attempt {call.counts['attempts']}): {advice}"
            raise GradeFailure(failure.kind, message, call.counts) from failure
        return Clusters(ids, dict(call.counts))

    async def _attempt(self, call: _Call) -> tuple[int, ...]:
        rubric, num_responses = self._judge.rubric, len(call.responses)
        order = shuffled(self._judge.shuffle_seed + call.num_refused, call.problem, call.responses)
        rendered = rubric.render(call.problem, call.responses, order)
        call.counts["shortened"] = rendered.num_shortened
        call.counts["attempts"] += 1
        request = self._request(rendered.text, call)
        try:
            reply = await self._server.ask(request)
            ids = parse_reply(reply, num_responses, rubric.degenerate_id)
        except GradeFailure as failure:
            failure = self._of_refusal(failure, call)
            call.counts[f"transport/{failure.kind}"] += 1
            call.num_refused += failure.kind in _REFUSED_REPLIES
            call.retry_after_s = getattr(failure, "retry_after_s", 0.0)
            raise failure from None
        self._with_schema = self._with_schema and call.with_schema
        return in_original_order(ids, order)

    def _request(self, text: str, call: _Call) -> dict[str, Any]:
        request = {
            "model": self._judge.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": self._judge.temperature,
            "max_tokens": self._judge.max_tokens,
            "seed": self._judge.sampling_seed + call.num_refused,
        }
        if self._judge.chat_template_kwargs:
            request["chat_template_kwargs"] = self._judge.chat_template_kwargs
        for name in call.left_out:
            value, other = request.pop(name), _REPLACEABLE[name]
            if other is not None:
                request[other] = value
        if call.with_schema:
            schema = reply_schema(len(call.responses), self._judge.rubric.degenerate_id)
            json_schema = {"name": "clusters", "strict": True, "schema": schema}
            request["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        return request

    def _of_refusal(self, failure: GradeFailure, call: _Call) -> GradeFailure:
        """What is left out next: parameters that the server names, else the schema, for it may have been that one."""
        named = {*getattr(failure, "parameters", ())} & _OPTIONAL
        replaceable = named & (_REPLACEABLE.keys() - call.left_out)
        if replaceable:
            return _ParameterRefused(frozenset(replaceable), str(failure))
        return failure if named else self._without_schema(failure, call)

    def _without_schema(self, failure: GradeFailure, call: _Call) -> GradeFailure:
        """Where it may have been the schema that was refused, the call goes on without; else the same failure."""
        if not (call.with_schema and self._judge.structured_output == "auto"):
            return failure
        if getattr(failure, "status", 0) not in (400, 422):
            return failure
        call.with_schema = False  # for other calls only once a request has passed without
        return GradeFailure("schema_refused", str(failure))

    def _advice(self, failure: GradeFailure, call: _Call) -> str:
        """What there is to do, of what has not been done."""
        transport = self._judge.transport
        if getattr(failure, "status", 0) in (401, 403):
            if transport.api_key_env is None:
                return "set transport.api_key_env to the name of the environment variable that holds the key"
            return f"is the key in the environment variable {transport.api_key_env} right?"
        if "chat_template_kwargs" in getattr(failure, "parameters", ()):
            return "the server does not take chat_template_kwargs: leave them out"
        if failure.kind in ("cut_off", "thought_only"):
            advice = _ADVICE[failure.kind] if getattr(failure, "at_limit", False) else "ask another model"
            return advice + or_no_thought(self._judge.chat_template_kwargs)
        if failure.kind in REPLY_FAILURES and not call.with_schema:
            return f"{_ADVICE[failure.kind]}, or set structured_output to 'on'"
        return _ADVICE.get(failure.kind, "nothing was asked")


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, GradeFailure) and error.kind not in ("client_error", "parameter_refused", *RENDER_FAILURES)
