"""A client that hides nothing: it keeps every request and every byte of the answer, for the checks and the report."""

from __future__ import annotations

import functools
import json
import shlex
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, cast
from urllib.parse import urlsplit

import httpx

from . import sse
from .requirement import Violation, not_offered

MASK = "$API_KEY"
SHOWN = 2000  # characters of a body in a report
SETTLING = 2  # timeouts to wait for a server that did not answer
OMIT: Any = object()  # as a field's value: leave the field out
Json = dict[str, Any]
E = TypeVar("E", bound="Exchange")


@dataclass
class Exchange:
    """One request and its answer, or the reason why there is none."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes = b""
    status: int = 0
    answer_headers: httpx.Headers = field(default_factory=httpx.Headers)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)  # seconds since the request, bytes
    error: str = ""
    seconds: float = 0.0

    @property
    def answer(self) -> bytes:
        """All bytes of the answer's body."""
        return b"".join(piece for _, piece in self.pieces)

    @property
    def text(self) -> str:
        """The answer, readable whatever its bytes."""
        return self.answer.decode("utf-8", "replace")

    @property
    def media_type(self) -> str:
        """The answer's content type without parameters."""
        return cast(str, self.answer_headers.get("content-type", "")).partition(";")[0].strip().lower()

    def json(self) -> Any:
        """The answer as JSON, which knows neither NaN nor infinities."""
        try:
            return json.loads(self.answer, parse_constant=_refuse_constant)
        except ValueError as error:
            raise Violation(f"expected an answer in JSON, got {self.text[:200]!r} ({error})") from error

    def ok(self) -> Json:
        """The object that a successful answer holds."""
        self.demand_answer()
        if self.status != 200:
            raise Violation(f"expected status 200, got {self.status}: {self.text[:300]}")
        if self.media_type != "application/json":
            raise Violation(f"expected content-type application/json, got {self.media_type!r}")
        body = self.json()
        if not isinstance(body, dict):
            raise Violation(f"expected a JSON object, got {type(body).__name__}")
        return body

    def offered(self, *params: str) -> Self:
        """Itself, unless the server says by name that it has no such parameter: then the check ends."""
        if self.status in (400, 404, 422, 501) and (named := self.error_param()) and named in params:
            not_offered(f"{named} is refused by name")
        return self

    def refused(self, *statuses: int) -> Json:
        """The error of a refusal with one of ``statuses`` (any 4xx if none is given); empty in another shape."""
        self.demand_answer()
        expected = " or ".join(map(str, statuses)) or "4xx"
        if not (self.status in statuses if statuses else 400 <= self.status < 500):
            raise Violation(f"expected status {expected}, got {self.status}: {self.text[:300]}")
        try:
            return self.error_object()
        except Violation:
            return {}

    def error_object(self) -> Json:
        """What an answer has under ``error``."""
        body = self.json()
        if not isinstance(body, dict) or not isinstance(body.get("error"), dict):
            raise Violation(f'expected {{"error": {{…}}}}, got {self.text[:300]}')
        return cast(Json, body["error"])

    def error_param(self) -> str:
        """The top-level field that an error blames, or an empty string."""
        try:
            body = json.loads(self.answer)
            param = body["error"]["param"]
        except (ValueError, KeyError, TypeError):
            return ""
        if not isinstance(param, str):
            return ""
        return param.removeprefix("body.").replace("[", ".").partition(".")[0]

    def demand_answer(self) -> None:
        """Raise if there is none."""
        if self.error:
            raise Violation(f"expected an answer, got none: {self.error}")

    def curl(self) -> str:
        """The request as a command for a shell, its key masked."""
        parts = ["curl", "-sS", "-i"] + (["-X", self.method] if self.method not in ("GET", "POST") else [])
        parts.append(shlex.quote(self.url))
        for name, value in self.headers.items():
            if name.lower() in ("authorization", "x-api-key"):
                shown = f"Bearer {MASK}" if value.startswith("Bearer ") else MASK
                parts.append(f'-H "{name}: {shown}"')
            else:
                parts.append("-H " + shlex.quote(f"{name}: {value}"))
        if self.body:
            parts.append("-d " + shlex.quote(clip(self.body.decode("utf-8", "replace"))))
        elif self.method == "POST":
            parts.append("-d ''")
        return " ".join(parts)

    def shown_answer(self) -> str:
        """Status line, content type and the beginning of the answer."""
        if self.error:
            return f"no answer: {self.error}"
        return f"HTTP {self.status} {self.answer_headers.get('content-type', '')}\n\n{clip(self.text)}"


class Stream(Exchange):
    """An answer in server-sent events."""

    def events(self) -> list[sse.Event]:
        """All events.

        Raises:
            Violation: the answer is none, or not a stream.
        """
        self.demand_answer()
        if self.status != 200:
            raise Violation(f"expected status 200, got {self.status}: {self.text[:300]}")
        if self.media_type != "text/event-stream":
            raise Violation(f"expected content-type text/event-stream, got {self.media_type!r}")
        try:
            return sse.parse(piece for _, piece in self.pieces)
        except UnicodeDecodeError as error:
            raise Violation(f"expected UTF-8: {error}") from error

    def payloads(self) -> list[Json]:
        """The JSON objects of all events, without ``[DONE]``.

        Raises:
            Violation: an event is neither JSON nor ``[DONE]``.
        """
        payloads = []
        for event in self.events():
            if event.data == "[DONE]":
                continue
            try:
                payload = json.loads(event.data, parse_constant=_refuse_constant)
            except ValueError as error:
                raise Violation(f"expected JSON in every event, got {event.data[:200]!r}") from error
            if not isinstance(payload, dict):
                raise Violation(f"expected an object in every event, got {event.data[:200]!r}")
            payloads.append(payload)
        return payloads

    def choices(self, index: int = 0) -> list[Json]:
        """What the chunks say of one choice, in order."""
        found = [c for chunk in self.payloads() for c in chunk.get("choices", []) if c.get("index") == index]
        if not found:
            raise Violation(f"expected chunks with choice {index}")
        return found

    def content(self, index: int = 0) -> str:
        """The joined text of one choice, of chat or completions."""
        return "".join(c.get("delta", c).get("content", c.get("text")) or "" for c in self.choices(index))


class Client:
    """Sends requests to one server and keeps them.

    Args:
        base_url: the server's, with or without ``/v1``.
        key: sent as a bearer token, and to Anthropic's routes as ``x-api-key``.
        timeout: seconds until an answer is given up.
    """

    def __init__(self, base_url: str, key: str, timeout: float) -> None:
        base = base_url.rstrip("/")
        last = urlsplit(base).path.rpartition("/")[2]
        self.api = base if last[:1] == "v" and last[1:2].isdigit() else base + "/v1"
        self.root = self.api.rpartition("/")[0]
        self.key = key
        self.timeout = timeout
        self.exchanges: list[Exchange] = []  # of the check that runs
        self.unanswered = False  # the server may still be busy with a request that was given up
        # a connection that a server closes after a failure must not fail the next request
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.Client(timeout=timeout, limits=limits, follow_redirects=False, verify=_certificates())

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def url(self, path: str) -> str:
        """``/…`` is under the API's base; ``root:/…`` is beside it."""
        return self.root + path.removeprefix("root:") if path.startswith("root:") else self.api + path

    def headers(self, anthropic: bool = False) -> dict[str, str]:
        """Of every request."""
        headers = {"accept-encoding": "identity", "user-agent": "tandem-conformance"}
        if anthropic:
            headers |= {"anthropic-version": "2023-06-01", "x-api-key": self.key or "none"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        return headers

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str | None] | None = None,
        timeout: float | None = None,
    ) -> Exchange:
        """One request; a body that is not bytes is sent as JSON. A header of None is left out."""
        exchange = self._exchange(Exchange, method, path, body, headers)
        return self._run(exchange, timeout)

    def get(self, path: str, **options: Any) -> Exchange:
        """A GET."""
        return self.send("GET", path, **options)

    def post(self, path: str, body: Any, **options: Any) -> Exchange:
        """A POST."""
        return self.send("POST", path, body, **options)

    def stream(self, path: str, body: Json, *, headers: Mapping[str, str | None] | None = None) -> Stream:
        """A POST that asks for a stream; it is read to its end."""
        exchange = self._exchange(Stream, "POST", path, {**body, "stream": True}, headers)
        self._run(exchange, None)
        return exchange

    def abandon(self, path: str, body: Json, after: int) -> Stream:
        """A POST whose connection is closed after so many pieces of the answer."""
        exchange = self._exchange(Stream, "POST", path, body, None)
        return self._run(exchange, None, after)

    def slowly(self, path: str, body: Json, pause: float) -> Stream:
        """A stream, each piece of which is read only ``pause`` seconds after the one before."""
        exchange = self._exchange(Stream, "POST", path, {**body, "stream": True}, None)
        return self._run(exchange, None, pause=pause)

    def _exchange(
        self, kind: type[E], method: str, path: str, body: Any, headers: Mapping[str, str | None] | None
    ) -> E:
        given: dict[str, str | None] = dict(self.headers(path.startswith("/messages")))
        data = b""
        if body is not None:
            given["content-type"] = "application/json"
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given |= headers or {}
        exchange = kind(method, self.url(path), {k: v for k, v in given.items() if v is not None}, data)
        self.exchanges.append(exchange)
        return exchange

    def _run(self, exchange: E, timeout: float | None, after: int = -1, pause: float = 0.0) -> E:
        began = time.monotonic()
        try:
            request = self._http.build_request(
                exchange.method,
                exchange.url,
                headers=exchange.headers,
                content=exchange.body or None,
                timeout=timeout or self.timeout,
            )
            if exchange.method == "POST" and not exchange.body:
                request.headers["content-length"] = "0"
            response = self._http.send(request, stream=True)
            try:
                exchange.status, exchange.answer_headers = response.status_code, response.headers
                for piece in response.iter_raw():
                    exchange.pieces.append((time.monotonic() - began, piece))
                    if len(exchange.pieces) == after:
                        break
                    if pause:
                        time.sleep(pause)
            finally:
                response.close()
        except httpx.HTTPError as error:
            exchange.error = f"{type(error).__name__}: {error}"
            self.unanswered = True
        exchange.seconds = time.monotonic() - began
        return exchange


class Api:
    """The requests that checks send most: short answers, greedy unless told otherwise."""

    def __init__(self, client: Client, model: str) -> None:
        self.client = client
        self.model = model
        self.limit = "max_tokens"  # or max_completion_tokens, where a server knows only the newer name
        self.thinking: Json = {}  # what asks for reasoning, where a server has to be asked

    def chat_body(self, content: Any = "Say hello.", **fields: Any) -> Json:
        """A conversation of one message, and ``fields``."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            self.limit: 8,
            "temperature": 0,
        }
        return _with(body, fields)

    def chat(self, content: Any = "Say hello.", **fields: Any) -> Exchange:
        """Asks for a whole answer."""
        return self.client.post("/chat/completions", self.chat_body(content, **fields))

    def chat_stream(self, content: Any = "Say hello.", **fields: Any) -> Stream:
        """Asks for a stream."""
        return self.client.stream("/chat/completions", self.chat_body(content, **fields))

    def text_body(self, prompt: Any = "Hello, my", **fields: Any) -> Json:
        """A prompt to go on with, and ``fields``."""
        return _with({"model": self.model, "prompt": prompt, "max_tokens": 8, "temperature": 0}, fields)

    def settle(self) -> None:
        """After a request without an answer: wait until it answers again; only one check fails."""
        until = time.monotonic() + SETTLING * self.client.timeout
        while self.client.unanswered and time.monotonic() < until:
            self.client.unanswered = False
            if self.chat(**{self.limit: 1}).error:
                time.sleep(0.1)  # a refused connection is no wait

    def complete(self, prompt: Any = "Hello, my", **fields: Any) -> Exchange:
        """Asks for a whole completion."""
        return self.client.post("/completions", self.text_body(prompt, **fields))

    def complete_stream(self, prompt: Any = "Hello, my", **fields: Any) -> Stream:
        """Asks for a completion as a stream."""
        return self.client.stream("/completions", self.text_body(prompt, **fields))

    def respond_body(self, input: Any = "Say hello.", **fields: Any) -> Json:
        """The body of a request to /responses."""
        body = {"model": self.model, "input": input, "max_output_tokens": 16, "temperature": 0, "stream": False}
        return _with(body, fields)

    def respond(self, input: Any = "Say hello.", **fields: Any) -> Exchange:
        """Asks for a whole response."""
        return self.client.post("/responses", self.respond_body(input, **fields))

    def respond_stream(self, input: Any = "Say hello.", **fields: Any) -> Stream:
        """Asks for a response as a stream."""
        return self.client.stream("/responses", self.respond_body(input, **fields))

    def decide(self, questions: Any, /, **fields: Any) -> Exchange:
        """Asks for probabilities of answers to questions about an input."""
        body = {"model": self.model, "input": "It rained all day in Paris.", "questions": questions}
        return self.client.post("/decisions", _with(body, fields))

    def message_body(self, content: Any = "Say hello.", **fields: Any) -> Json:
        """The body of a request to Anthropic's /messages."""
        messages = [{"role": "user", "content": content}]
        return _with({"model": self.model, "messages": messages, "max_tokens": 8, "temperature": 0}, fields)

    def message(self, content: Any = "Say hello.", **fields: Any) -> Exchange:
        """Asks for a whole message."""
        return self.client.post("/messages", self.message_body(content, **fields))

    def message_stream(self, content: Any = "Say hello.", **fields: Any) -> Stream:
        """Asks for a message as a stream."""
        return self.client.stream("/messages", self.message_body(content, **fields))

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        tokens = self.client.post("root:/tokenize", body).ok().get("tokens")
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise Violation("expected tokens to be a list of integers")
        return tokens


def clip(text: str, limit: int = SHOWN) -> str:
    """The beginning of a text."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def content_of(body: Json, index: int = 0) -> str:
    """The text of one choice of a whole answer, of chat or completions."""
    choice = choice_of(body, index)
    text = choice["message"].get("content") if "message" in choice else choice.get("text")
    return text or ""


def choice_of(body: Json, index: int = 0) -> Json:
    """The choice with that index."""
    choices = body.get("choices")
    found = [c for c in choices if c.get("index") == index] if isinstance(choices, list) else []
    if len(found) != 1:
        raise Violation(f"expected one choice with index {index}")
    return cast(Json, found[0])


def middle_of(texts: Sequence[str]) -> tuple[int, str]:
    """A text's number and a few letters from inside it, fit as a stop string: nothing that breaks a character."""
    for number, text in enumerate(texts):
        for i in range(2, len(text) - 1):
            piece = text[i : i + 2]
            if piece.isascii() and piece.isalnum() and text.find(piece) > 0:
                return number, piece
        for i in range(1, len(text)):
            if text[i].isprintable() and text[i] != "\ufffd" and not text[i].isspace() and text.find(text[i]) > 0:
                return number, text[i]
    return -1, ""


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Reading them takes longer than most requests: once is enough for all clients."""
    return httpx.create_ssl_context()


def _with(body: Json, fields: Json) -> Json:
    return {name: value for name, value in {**body, **fields}.items() if value is not OMIT}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
