"""From an HTTP request to a checked request struct."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request

from server.errors import ApiError, ClientGoneError
from server.schemas.parse import BodyParser, Checked
from server.state import LoadedModel, ServerState

logger = logging.getLogger("tandem")
T = TypeVar("T", bound=Checked)

IGNORED_HEADER = "x-tandem-ignored-fields"
MAX_IGNORED_NAMES = 32
OVERLOAD_RETRY_SECONDS = 1


def state_of(request: Request) -> ServerState:
    """The application's state."""
    state: ServerState = request.app.state.tandem
    return state


async def read(request: Request, parser: BodyParser[T]) -> tuple[T, dict[str, str]]:
    """The body as a struct, and the headers that name the fields of it that were ignored.

    Raises:
        ApiError: 413, 415.
        RequestError: see ``BodyParser.parse``.
        ClientGoneError: the client went away in the middle.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        message = f"the content type must be application/json, not {kind[:128] or 'missing'}"
        raise ApiError(415, message, "unsupported_media_type")
    body = await _read_bytes(request, state_of(request).config.max_body_bytes)
    parsed, ignored = parser.parse(body)
    return parsed, _ignored_headers(request.url.path, ignored)


def require_capacity(state: ServerState) -> LoadedModel:
    """The model, if one more request may be taken.

    The limit belongs to the server, not to this client, so it is 503 rather than 429: balancers then try another one.

    Raises:
        EngineError: there is no model to ask now.
        ApiError: 503, too many requests are unfinished.
    """
    model = state.require_model()
    limit = state.config.max_queued_requests
    if limit and state.client is not None and state.client.num_unfinished >= limit:
        message = f"the server already works on {limit} requests, its limit"
        headers = {"retry-after": str(OVERLOAD_RETRY_SECONDS)}
        raise ApiError(503, message, "server_overloaded", headers=headers)
    return model


def served_model(state: ServerState, name: str | None) -> str:
    """The model's name as answers give it.

    Raises:
        ApiError: 404, there is no such model.
    """
    if name is None:
        return state.names[0]
    if name not in state.names:
        raise ApiError(404, f"the model {name!r} does not exist here; see /v1/models", "model_not_found", "model")
    return name


async def _read_bytes(request: Request, limit: int) -> bytes:
    too_large = ApiError(413, f"the body is larger than {limit} bytes", "request_too_large")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        raise too_large
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise too_large
            parts.append(part)
    except ClientDisconnect as error:
        raise ClientGoneError from error
    return b"".join(parts)


def _ignored_headers(path: str, names: Sequence[str]) -> dict[str, str]:
    if not names:
        return {}
    listed = ", ".join(quote(name[:64], safe="") for name in names[:MAX_IGNORED_NAMES])
    logger.warning("%s: ignored unknown fields: %s", path, listed)
    return {IGNORED_HEADER: listed}
