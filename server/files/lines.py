"""Lines of batches: each is a request of the API, and is answered as the server would answer it.

Wire format: the request input and output objects of OpenAI's batch API. A line that is no request, or that is
refused, has an ``error``; the others have none. ``response`` holds the status and body of every answer.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Scope

from server.middleware.gate import BATCH, OWNER
from server.state import ServerState

ENDPOINTS = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/decisions", "/v1/systemone",
    "/generative_scoring", "/inference/v1/generate", "/invocations",
)  # fmt: skip
MAX_CUSTOM_ID = 512
RETRY_SECONDS = 0.5
MAX_ATTEMPTS = 3  # of a line whose engine dies: it may be the line that kills it
PASSING = ("loading", "restarting", "unhealthy")  # states of a server that get better by themselves
ENDING = ("draining", "dead")


class Line(msgspec.Struct, kw_only=True):
    """A request of a batch."""

    custom_id: str
    url: str
    body: dict[str, Any]
    method: str = "POST"


class LineError(ValueError):
    """A line is no request; ``param`` is the field to blame."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class ServerEndingError(Exception):
    """The server answers no further line: it is shutting down, or its engine is gone for good."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What becomes of a line: a line of output. ``usage`` is that of the answer's body, if it has one."""

    data: bytes
    failed: bool
    usage: Any = None


def read_line(data: bytes) -> Line:
    """Parse and check a line. Raises ``LineError``."""
    try:
        line = msgspec.json.decode(data, type=Line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as wrong:
        raise LineError("invalid_json_line", " ".join(str(wrong).split())[:200]) from wrong
    if len(line.custom_id) > MAX_CUSTOM_ID:
        raise LineError("invalid_custom_id", f"custom_id has at most {MAX_CUSTOM_ID} characters", "custom_id")
    if line.method != "POST":
        raise LineError("invalid_method", "method must be POST", "method")
    if line.url not in ENDPOINTS:
        raise LineError("invalid_url", f"url must be one of {', '.join(ENDPOINTS)}", "url")
    for name in ("stream", "background"):
        if line.body.get(name):
            raise LineError("invalid_request", f"body.{name}: answers of a batch are whole", f"body.{name}")
    return line


async def answer(state: ServerState, app: ASGIApp, line: Line, owner: str = "") -> Answered:
    """Have the application answer a line, when the server has room for it.

    Args:
        owner: whose key the batch came with.

    Raises:
        ServerEndingError: the line has no answer.
    """
    body = await state.pool.run_in_thread(0, msgspec.json.encode, line.body)
    num_attempts = 0
    while True:
        while (health := state.health.state) in PASSING:
            await asyncio.sleep(RETRY_SECONDS)
        if health in ENDING:
            raise ServerEndingError
        status, content = await _call(app, line.url, body, owner)
        num_attempts += status == 503
        if status == 429 or (status == 503 and num_attempts < MAX_ATTEMPTS):
            await asyncio.sleep(RETRY_SECONDS * random.uniform(0.5, 1.5))  # in step, lines would refuse each other
        elif status == 503 and state.health.state in ENDING:
            raise ServerEndingError
        else:
            return await state.pool.run(len(content), _answered, line.custom_id, status, content)


def failed(custom_id: str | None, code: str, message: str) -> Answered:
    """Of a line that no route has seen."""
    error = {"code": code, "message": message}
    result = {"id": _new_id(), "custom_id": custom_id, "response": None, "error": error}
    return Answered(_encode(result), failed=True)


def custom_id_of(data: bytes) -> str | None:
    """Of a line that may otherwise be wrong, if it can be found."""
    try:
        found = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    custom_id = found.get("custom_id") if isinstance(found, dict) else None
    return custom_id if isinstance(custom_id, str) else None


def _answered(custom_id: str, status: int, content: bytes) -> Answered:
    try:
        body = msgspec.json.decode(content) if content else None
    except (msgspec.MsgspecError, UnicodeDecodeError):  # an operator's middleware may answer anything
        body = content.decode(errors="replace")
    error = None
    if status >= 400:
        error = body.get("error") if isinstance(body, dict) else None
        error = error if isinstance(error, dict) else {"code": None, "message": f"status {status}"}
    response = {"status_code": status, "request_id": f"req-{uuid.uuid4().hex}", "body": body}
    result = {"id": _new_id(), "custom_id": custom_id, "response": response, "error": error}
    usage = body.get("usage") if isinstance(body, dict) else None
    return Answered(_encode(result), error is not None, usage)


def _new_id() -> str:
    return f"batch_req_{uuid.uuid4().hex}"


def _encode(result: dict[str, Any]) -> bytes:
    return msgspec.json.encode(result) + b"\n"


async def _call(app: ASGIApp, path: str, body: bytes, owner: str) -> tuple[int, bytes]:
    """Have the application answer a POST without a socket: status and body."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    status, parts = 500, []

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()  # nobody hangs up
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    try:
        await app(_scope(path, len(body), owner), receive, send)
    except Exception:
        if not parts:  # else the answer says that something went wrong, and the log says what
            raise
    return status, b"".join(parts)


def _scope(path: str, num_bytes: int, owner: str) -> Scope:
    headers = [(b"host", b"batch"), (b"content-type", b"application/json"), (b"content-length", b"%d" % num_bytes)]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("batch", 0),
        "server": ("batch", 80),
        OWNER: owner,
        BATCH: True,
    }
