"""HTTP metrics, and HEAD wherever GET is."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.middleware.gate import is_open
from server.operations.metrics import Metrics
from server.state import ServerState


class Observe:
    """Measures HTTP requests by route, and lets HEAD be asked wherever GET may be."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._metrics = state.metrics
        self._config = state.config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        method = scope["method"]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}  # the protocol below us leaves the body out
        exchange = _Exchange(self._metrics, method, scope, receive, send)
        if is_open(scope, self._config):
            return await self._app(scope, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            exchange.record()


class _Exchange:
    """One request and its answer as they pass by."""

    def __init__(self, metrics: Metrics, method: str, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics = metrics
        self._method = method
        self._scope = scope
        self._receive = receive
        self._send = send
        self._began = time.monotonic()
        self._status = 500
        self._num_received = self._num_sent = 0
        self._is_recorded = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._num_received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        self._num_sent += len(message.get("body", b""))
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.record()  # not only when the application returns, which may be after the client's next request

    def record(self) -> None:
        """Count it, once."""
        if self._is_recorded:
            return
        self._is_recorded = True
        metrics, method = self._metrics, self._method
        handler = getattr(self._scope.get("route"), "path", "none")
        metrics.http_requests.labels(method, handler, f"{self._status // 100}xx").inc()
        metrics.http_seconds.labels(method, handler).observe(time.monotonic() - self._began)
        metrics.http_received.labels(handler).observe(self._num_received)
        metrics.http_sent.labels(handler).observe(0 if method == "HEAD" else self._num_sent)
