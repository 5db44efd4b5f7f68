"""One chat completion from an OpenAI-compatible server, or why there is none."""

import asyncio
import contextlib
import dataclasses
import email.utils
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

import httpx

from polyepo_jax.errors import GradeFailure
from polyepo_jax.judges.refusals import refused_parameters
from polyepo_jax.judges.rubric import is_unclosed_thought

# Kinds of attempts that failed, with what there is to do about them.
ADVICE = {
    "connect": "is the server running, and transport.base_url right?",
    "timeout": "raise transport.attempt_deadline_s, or lower transport.max_concurrency",
    "rate_limit": "lower transport.max_concurrency, or raise transport.retry_for_s",
    "server_error": "the server's log says why",
    "client_error": "the server does not take the request: are transport.base_url and model right?",
    "bad_body": "does transport.base_url lead to an OpenAI-compatible server?",
    "error_body": "the server's log says why",
    "too_large": "lower max_tokens, or raise transport.max_reply_bytes",
    "cut_off": "raise max_tokens",
    "thought_only": "raise max_tokens",
}
_EXCERPT = 200  # characters of what a server says that go into a message


@dataclasses.dataclass(frozen=True)
class Transport:
    """How a judge is reached; may change when a run is resumed, for none of it changes what is asked.

    Proxies and certificates are taken from the environment, as httpx has them (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE).
    Redirects are not followed.

    Attributes:
      base_url: what `/chat/completions` is added to.
      api_key_env: the name of the environment variable that holds the key; None where there is none.
      max_concurrency: requests at a time, of each process of a run.
      attempt_deadline_s: for one request and its whole reply, however slowly it drips.
      retry_for_s: attempts at one call start within this time; then it has failed.
      first_backoff_s, max_backoff_s: the wait before the second attempt is random up to the first, before each further
        one up to twice as much, but never above the second. It comes on top of what a server asks for by Retry-After.
      max_reply_bytes: the rest of a longer reply is not read, and the reply is refused.
    """

    base_url: str = "http://localhost:8000/v1"
    api_key_env: str | None = None
    max_concurrency: int = 32
    attempt_deadline_s: float = 120.0
    retry_for_s: float = 300.0
    first_backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    max_reply_bytes: int = 1_000_000

    def __post_init__(self):
        for name in ("max_concurrency", "max_reply_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("attempt_deadline_s", "retry_for_s", "first_backoff_s", "max_backoff_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number of seconds, got {getattr(self, name)}")
        if self.attempt_deadline_s == 0:
            raise ValueError("attempt_deadline_s must be above 0")

    def url(self) -> httpx.URL:
        """Where requests go.

        Raises:
          ValueError: base_url is no address of a server.
        """
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL as error:
            raise ValueError(f"transport.base_url: {error}; expected e.g. http://localhost:8000/v1") from error
        if url.userinfo:
            raise ValueError("transport.base_url holds a password; put the key in a variable that api_key_env names")
        if any(re.search("key|token|secret|sig", name, re.IGNORECASE) for name in url.params):
            raise ValueError("transport.base_url holds a key; put it in a variable that api_key_env names")
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"transport.base_url must begin with http://host or https://host, got {self.base_url!r}")
        return url.copy_with(path=f"{url.path.rstrip('/')}/chat/completions")

    def key(self) -> str:
        """The key, empty where there is none.

        Raises:
          ValueError: the variable does not hold a key.
        """
        if self.api_key_env is None:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ValueError(f"transport.api_key_env: {self.api_key_env} is not set in the environment; export it")
        if not re.fullmatch("[!-~]+", key):
            raise ValueError(f"transport.api_key_env: {self.api_key_env} holds characters that no key has; mend it")
        return key


class AttemptFailure(GradeFailure):
    """An attempt without a completion; its kind is in ADVICE.

    Attributes:
      status: of the HTTP response, 0 where that is not what failed.
      retry_after_s: seconds to wait, where the server says so.
      parameters: of the request, those that the server refuses by name.
      at_limit: whether the reply ended at the limit of its tokens.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        status: int = 0,
        retry_after_s: float = 0.0,
        parameters: frozenset[str] = frozenset(),
        at_limit: bool = False,
    ):
        super().__init__(kind, message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.parameters = parameters
        self.at_limit = at_limit


class Completions:
    """Asks one server. Belongs to one event loop."""

    def __init__(self, transport: Transport):
        """Does not contact the server.

        Raises:
          ValueError: an address, a key or a proxy that cannot be used.
        """
        self.url = transport.url()
        self._transport = transport
        self._key = transport.key()
        self._slots = asyncio.Semaphore(transport.max_concurrency)
        # A reply that httpx decompressed could be larger than any limit.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            # Time and connections are bounded here, for an attempt as a whole.
            self._client = httpx.AsyncClient(headers=headers, timeout=None, limits=httpx.Limits())
        except (ValueError, ImportError) as error:
            raise ValueError(f"a proxy that the environment names cannot be used: {error}") from error

    async def ask(self, request: Mapping[str, Any]) -> str:
        """What the model answers.

        Raises:
          AttemptFailure: it did not.
        """
        async with self._slots:
            optional = [name for name in request if name not in ("model", "messages")]
            return _content(await self._post(json.dumps(request).encode(), optional))

    async def close(self) -> None:
        await self._client.aclose()

    async def _post(self, request: bytes, names: Sequence[str]) -> bytes:
        transport = self._transport
        try:
            # The timeouts of httpx are between two bytes: a server that drips would never run into them.
            async with (
                asyncio.timeout(transport.attempt_deadline_s),
                self._client.stream("POST", self.url, content=request) as response,
            ):
                body = await _read(response, transport.max_reply_bytes)
        except TimeoutError as error:
            raise AttemptFailure("timeout", f"no whole reply in {transport.attempt_deadline_s} s") from error
        except httpx.TransportError as error:
            raise AttemptFailure("connect", f"no connection ({type(error).__name__}: {error})") from error
        if self._key:
            body = body.replace(self._key.encode(), b"***")  # some servers repeat a key, and messages repeat the body
        if not response.is_success:
            raise _refusal(response, body, names)
        if len(body) > transport.max_reply_bytes:
            raise AttemptFailure("too_large", f"a reply of more than {transport.max_reply_bytes} bytes")
        return body


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    """The body; of one with more than max_bytes the beginning, which has more than these too."""
    body = bytearray()
    async with contextlib.aclosing(response.aiter_raw()) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            body += chunk
            if len(body) > max_bytes:
                break
    return bytes(body)


def _refusal(response: httpx.Response, body: bytes, names: Sequence[str]) -> AttemptFailure:
    status = response.status_code
    # 408, 409 and 425: the server says itself that the same request may pass the next time.
    may_pass = status >= 500 or status in (408, 409, 425)
    kind = "rate_limit" if status == 429 else "server_error" if may_pass else "client_error"
    text = body.decode("utf-8", "replace")
    parameters = refused_parameters(text, names) if status in (400, 422) else frozenset()
    retry_after_s = _retry_after_s(response.headers.get("Retry-After", ""))
    return AttemptFailure(kind, f"HTTP {status} {text!r:.{_EXCERPT}}", status, retry_after_s, parameters)


def _content(body: bytes) -> str:
    try:
        completion = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise AttemptFailure("bad_body", f"no JSON but {body[:_EXCERPT]!r:.{_EXCERPT}}") from error
    match completion:
        case {"error": error} if error:
            pass
        case {"choices": [{"message": dict() as message, **choice}, *_]}:
            at_limit = choice.get("finish_reason") == "length"
            content, thought = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
            if (thought and not content) or (at_limit and isinstance(content, str) and is_unclosed_thought(content)):
                ending = "until it was cut off" if at_limit else "and ended there"
                excerpt = str(thought or content)[-_EXCERPT:]
                raise AttemptFailure("thought_only", f"the model thought {ending}: {excerpt!r}", at_limit=at_limit)
            if at_limit:
                raise AttemptFailure("cut_off", "the reply was cut off", at_limit=True)
            if isinstance(content, str):
                return content
    raise AttemptFailure("error_body", f"no completion but {completion!r:.{_EXCERPT}}")


def _retry_after_s(header: str) -> float:
    """Seconds to wait by a Retry-After header, which has seconds or a date; 0 if it has neither."""
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", header):
        return float(header)
    try:
        date = email.utils.parsedate_to_datetime(header)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
