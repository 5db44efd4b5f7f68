"""A judge's server for tests: real HTTP on localhost, answers computed from the request, faults on demand."""

import collections
import contextlib
import hashlib
import http.server
import json
import random
import re
import socket
import struct
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

# What the server does wrong -> the kind under which the client counts it.
FAULTS = {
    "reset": "connect",
    "hang": "timeout",
    "drip": "timeout",
    "html": "bad_body",
    "invalid_utf8": "bad_body",
    "error_body": "error_body",
    "no_content": "error_body",
    "thought": "thought_only",
    "too_large": "too_large",
    "rate_limit": "rate_limit",
    "server_error": "server_error",
    "cut_off": "cut_off",
    "prose": "not_json",
    "missing_key": "wrong_keys",
    "duplicate_keys": "duplicate_keys",
    "id_as_fraction": "bad_id",
    "id_out_of_range": "bad_id",
}
# Those that a client must not try again.
REFUSALS = {400: "client_error", 401: "client_error", 403: "client_error", 404: "client_error", 302: "client_error"}

_RESPONSE = re.compile(r"<response-(\d+)-([0-9a-f]+)>\n(.*?)\n</response-\1-\2>", re.DOTALL)

# A key of FAULTS, an HTTP status, a status with the JSON of its body, the completion's only choice, or none.
Fault = str | int | tuple[int, Any] | dict[str, Any] | None
Plan = Callable[[int, dict[str, Any]], Fault]  # by the number of a request from 0, and its content


def shown_responses(request: dict[str, Any]) -> list[str]:
    """The responses in the order in which a request shows them."""
    return [match[3] for match in _RESPONSE.finditer(request["messages"][0]["content"])]


def first(*faults: Fault) -> Plan:
    """A plan: these faults for the first requests, then none."""
    return lambda number, _: faults[number] if number < len(faults) else None


def always(fault: Fault) -> Plan:
    return lambda number, request: fault


class Share:
    """A plan: a share of the requests gets one of the faults.

    Which depends on the request and on how often it came, not on when: the same run meets the same faults.
    """

    def __init__(self, share: float, faults: Sequence[Fault] = tuple(FAULTS), seed: int = 0):
        self._share, self._faults, self._seed = share, faults, seed
        self._times: collections.Counter[str] = collections.Counter()

    def __call__(self, number: int, request: dict[str, Any]) -> Fault:
        content = json.dumps(request)
        self._times[content] += 1
        digest = hashlib.sha256(f"{self._seed} {self._times[content]} {content}".encode()).digest()
        chance = random.Random(digest)
        return chance.choice(self._faults) if chance.random() < self._share else None


_NO_FAULTS = first()


class JudgeServer:
    """Clusters by a rule; a context manager that can be stopped and started again on its port.

    Attributes, to be read when the server is idle or stopped:
      requests: every request, parsed, in the order of arrival.
      keys: their Authorization headers.
      injected: how often each fault was committed.
      max_at_once: the largest number of requests that were being answered at one time.
      arrived: an event that is set whenever a request comes.
      connections_lost: an event that is set once `stop` has cut all connections.
    """

    def __init__(
        self,
        rule: Callable[[str], Hashable | None],
        plan: Plan = _NO_FAULTS,
        degenerate_id: int = 100,
        drip_interval_s: float = 0.05,
        retry_after: str = "0",
        style: Callable[[str], str] = lambda reply: reply,
    ):
        """Args:
        rule: the strategy of a response as it is shown, None where it is degenerate; from several threads.
        plan: the fault for a request, by its number from 0 and its content; called under a lock.
        degenerate_id: of the rubric.
        drip_interval_s: between two bytes of the fault `drip`.
        retry_after: the header of the faults `rate_limit` and `server_error`.
        style: what the model says for a right reply, given as the JSON that the rubric asks for.
        """
        self._rule, self._plan, self._degenerate_id = rule, plan, degenerate_id
        self.drip_interval_s, self.retry_after, self._style = drip_interval_s, retry_after, style
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.injected: collections.Counter[Fault] = collections.Counter()
        self.max_at_once = 0
        self.stopping, self.arrived, self.connections_lost = (threading.Event() for _ in range(3))
        self._at_once = 0
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._port = 0
        self._server: http.server.ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"judge": self})
        self.stopping.clear()
        self.connections_lost.clear()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._server.daemon_threads = False  # so that `server_close` waits for them
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        """Ends at once: requests that are being answered lose their connection."""
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.connections_lost.set()
        self._server.server_close()

    def __enter__(self) -> "JudgeServer":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @contextlib.contextmanager
    def connected(self, connection: socket.socket):
        with self._lock:
            self._connections.add(connection)
            if self.stopping.is_set():  # `stop` may have been through already
                connection.shutdown(socket.SHUT_RDWR)
        try:
            yield
        finally:
            with self._lock:
                self._connections.remove(connection)

    @contextlib.contextmanager
    def answering(self, request: dict[str, Any], key: str | None):
        """Takes a request down, and yields the fault that it gets."""
        with self._lock:
            fault = self._plan(len(self.requests), request)
            self.requests.append(request)
            self.keys.append(key)
            self.injected.update([fault] if isinstance(fault, (str, int)) else [])
            self.arrived.set()
            self._at_once += 1
            self.max_at_once = max(self.max_at_once, self._at_once)
        try:
            yield fault
        finally:
            with self._lock:
                self._at_once -= 1

    def reply(self, request: dict[str, Any], fault: Fault) -> str:
        """What the model says: a right answer, or one with a fault."""
        ids: dict[Hashable, int] = {}
        verdicts = []
        for response in shown_responses(request):
            strategy = self._rule(response)
            cluster_id = self._degenerate_id if strategy is None else ids.setdefault(strategy, len(ids) + 1)
            verdicts.append({"chain_of_thought": "by the rule", "cluster_id": cluster_id})
        if fault == "prose":
            return "All responses look alike to me."
        if fault == "id_as_fraction":
            verdicts[-1]["cluster_id"] = float(verdicts[-1]["cluster_id"])
        if fault == "id_out_of_range":
            verdicts[-1]["cluster_id"] = len(verdicts) + 1
        members = [f'"{number}": {json.dumps(verdict)}' for number, verdict in enumerate(verdicts, 1)]
        if fault == "missing_key":
            members.pop()
        if fault == "duplicate_keys":
            members.append(members[0])
        reply = "{" + ", ".join(members) + "}"
        return self._style(reply) if fault is None else reply


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection, in a thread of its own."""

    protocol_version = "HTTP/1.1"
    judge: JudgeServer

    def handle(self) -> None:
        with self.judge.connected(self.connection), contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self._send(404, b"no such path")
        with self.judge.answering(request, self.headers["Authorization"]) as fault:
            self._answer(request, fault)

    def _answer(self, request: dict[str, Any], fault: Fault) -> None:
        message = {"role": "assistant", "content": self.judge.reply(request, fault)}
        choice = {"index": 0, "message": message, "finish_reason": "length" if fault == "cut_off" else "stop"}
        body = json.dumps({"object": "chat.completion", "choices": [choice]}).encode()
        match fault:
            case int():
                key = self.headers["Authorization"] or ""
                self._send(fault, f"refused {key.removeprefix('Bearer ')}".encode(), Location="/v2")
            case (status, content):
                self._send(status, json.dumps(content).encode())
            case dict():
                self._send(200, json.dumps({"choices": [fault]}).encode())
            case "reset":  # a connection that is closed without lingering is reset
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
            case "hang":
                self.connection.recv(1)  # returns when the client gives up, or the server stops
                self.close_connection = True
            case "drip":
                self._drip(body)
            case "html":
                self._send(200, b"<html><body>Please log in</body></html>")
            case "invalid_utf8":
                self._send(200, body.replace(b"assistant", b"\xff\xfe"))
            case "error_body":
                self._send(200, json.dumps({"error": {"message": "worker died"}, "choices": [choice]}).encode())
            case "no_content":
                self._send(200, json.dumps({"choices": [{"message": {"content": None}}]}).encode())
            case "thought":
                thought = {"message": {"content": None, "reasoning_content": message["content"]}}
                self._send(200, json.dumps({"choices": [thought]}).encode())
            case "too_large":
                self._send(200, body + b" " * 10_000_000)
            case "rate_limit":
                self._send(429, b"slow down", **{"Retry-After": self.judge.retry_after})
            case "server_error":
                self._send(500, b"out of memory", **{"Retry-After": self.judge.retry_after})
            case _:
                self._send(200, body)

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _drip(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.close_connection = True
        for byte in body:
            if self.judge.stopping.wait(self.judge.drip_interval_s):
                return
            self.wfile.write(bytes([byte]))
