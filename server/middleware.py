"""What happens around every request. Pure ASGI: streams pass through unbuffered.

From the outside in: ``RequestId``, ``Observe``, CORS, ``Gate``, the routes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import uuid
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError
from server.state import ServerState

OPEN_PATHS = frozenset({"/health", "/ping", "/version", "/metrics"})  # need no key; answered while draining
REQUEST_ID = "x-request-id"
_REQUEST_ID_FORM = re.compile(r"[!-~]{1,128}")


class RequestId:
    """Answers with the client's ``x-request-id``, or a fresh one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _REQUEST_ID_FORM.fullmatch(given) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class Observe:
    """Measures HTTP requests by route, and lets HEAD be asked wherever GET may be."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._metrics = state.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        method, began, status = scope["method"], time.monotonic(), 500
        if method == "HEAD":
            scope = {**scope, "method": "GET"}  # the protocol below us leaves the body out

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            handler = getattr(scope.get("route"), "path", "none")
            self._metrics.http_requests.labels(method, handler, f"{status // 100}xx").inc()
            self._metrics.http_seconds.labels(method, handler).observe(time.monotonic() - began)


class Gate:
    """Lets in who has a key, while new requests are taken; counts who is inside.

    The path decided on is ``scope["path"]``, the one that is routed on; no header has a part in it. Keys are compared
    as hashes, all of them in constant time.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state
        self._root = state.config.root_path.rstrip("/")
        self._hashes = [_hash(key.encode()) for key in state.config.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["path"].removeprefix(self._root) in OPEN_PATHS:
            return await self._app(scope, receive, send)
        if refusal := self._refusal(scope):
            return await refusal.response(scope, receive, send)
        self._state.num_requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._state.num_requests -= 1

    def _refusal(self, scope: Scope) -> ApiError | None:
        if self._hashes and not self._has_key(Headers(scope=scope).raw):
            headers = {"www-authenticate": "Bearer"}
            return ApiError(
                401, "a valid API key is needed: Authorization: Bearer …", "invalid_api_key", headers=headers
            )
        if self._state.draining:
            headers = {"retry-after": "1", "connection": "close"}
            return ApiError(503, "the server is shutting down", "shutting_down", headers=headers)
        return None

    def _has_key(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        found = False
        for name, value in headers:
            scheme, _, token = value.partition(b" ")
            if name == b"authorization" and scheme.lower() == b"bearer":
                found |= self._is_key(token.strip())
            elif name == b"x-api-key":
                found |= self._is_key(value.strip())
        return found

    def _is_key(self, candidate: bytes) -> bool:
        hashed = _hash(candidate)
        return any([hmac.compare_digest(hashed, known) for known in self._hashes])  # a list: no early end


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
