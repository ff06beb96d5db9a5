"""HTTP metrics, and HEAD wherever GET is."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.state import ServerState


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
