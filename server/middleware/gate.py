"""Who may come in, and how many are inside."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.config import ServerConfig, check_key
from server.errors import ApiError
from server.http.failures import failure
from server.routes import page
from server.state import ServerState

# need no key, are answered while draining, and are no requests for HTTP metrics: monitors ask for them all the time
OPEN_PATHS = frozenset(path + end for path in ("/health", "/ping", "/version", "/metrics") for end in ("", "/"))


def is_open(scope: Scope, config: ServerConfig) -> bool:
    """Whether a request is for one of ``OPEN_PATHS``, or for a file of the page."""
    path = scope["path"].removeprefix(config.root_path.rstrip("/"))
    return path in OPEN_PATHS or (path in page.PATHS and not config.disable_ui)


# in a scope, which no client writes
OWNER = "tandem.owner"  # the hash of the key that opened the gate
BATCH = "tandem.batch"  # it is a line of a batch, whose owner has been let in before


class Gate:
    """Lets in who has a key, while new requests are taken; counts who is inside.

    The path decided on is ``scope["path"]``, the one that is routed on; no header has a part in it. Keys are compared
    as hashes, all of them in constant time.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state
        self._hashes = [_hash(check_key(key).encode()) for key in state.config.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or is_open(scope, self._state.config):
            return await self._app(scope, receive, send)
        if BATCH not in scope and (refusal := self._refusal(scope)):
            self._state.metrics.rejected(refusal.status, refusal.code)
            return await failure(refusal, scope)(scope, receive, send)
        self._state.num_requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._state.num_requests -= 1

    def _refusal(self, scope: Scope) -> ApiError | None:
        owner = self._owner(Headers(scope=scope).raw) if self._hashes else b""
        if owner is None:
            headers = {"www-authenticate": "Bearer"}
            message = "a valid API key is needed: Authorization: Bearer …"
            return ApiError(401, message, "invalid_api_key", headers=headers)
        scope[OWNER] = owner.hex()
        if self._state.draining:
            headers = {"retry-after": "1", "connection": "close"}
            return ApiError(503, "the server is shutting down", "shutting_down", headers=headers)
        return None

    def _owner(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
        """The hash of the last key that fits; None if none does."""
        found: bytes | None = None
        for name, value in headers:
            scheme, _, token = value.partition(b" ")
            if name == b"authorization" and scheme.lower() == b"bearer":
                found = self._known(token.strip()) or found
            elif name == b"x-api-key":
                found = self._known(value.strip()) or found
        return found

    def _known(self, candidate: bytes) -> bytes | None:
        hashed = _hash(candidate)
        # a list: no early end
        return hashed if any([hmac.compare_digest(hashed, known) for known in self._hashes]) else None


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
