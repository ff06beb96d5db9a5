"""An HTTP request's body: read within limits of size and time, then parsed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request

from server.errors import ApiError, ClientGoneError
from server.intake.capacity import Reservation
from server.state import ServerState

logger = logging.getLogger("tandem")

IGNORED_HEADER = "x-tandem-ignored-fields"
MAX_IGNORED_NAMES = 32
SLOWEST_BYTES_PER_SECOND = 2**16


def state_of(request: Request) -> ServerState:
    """The application's state."""
    state: ServerState = request.app.state.tandem
    return state


async def read_body(request: Request, reservation: Reservation) -> bytearray:
    """The whole body; its bytes are held by ``reservation``.

    A client has ``--http-timeout`` seconds, and a second more for each 64 KiB that it has sent.

    Raises:
        ApiError: 408, 413, 415, or 429 where too many bodies are in memory.
        ClientGoneError: the client went away in the middle.
    """
    _check_headers(request)
    limit, body = state_of(request).config.max_body_bytes, bytearray()
    check_size(request, limit)

    async def take(part: bytes) -> None:
        body.extend(part)
        _check_size(len(body), limit)
        reservation.hold_body(len(body))

    await receive_body(request, take)
    return body


async def receive_body(request: Request, take: Callable[[bytes], Awaitable[None]]) -> None:
    """Hand over a body piece by piece, in the time that its client has.

    Raises:
        ApiError: 408, or what ``take`` raises.
        ClientGoneError: the client went away in the middle.
    """
    patience, num_bytes = asyncio.get_running_loop().time() + state_of(request).config.http_timeout, 0
    try:
        async with asyncio.timeout_at(patience) as deadline:
            async for part in request.stream():
                num_bytes += len(part)
                await take(part)
                deadline.reschedule(patience + num_bytes / SLOWEST_BYTES_PER_SECOND)
    except TimeoutError as error:
        headers = {"connection": "close"}
        raise ApiError(408, "the body took too long to arrive", "request_timeout", headers=headers) from error
    except ClientDisconnect as error:
        raise ClientGoneError from error


def ignored_headers(path: str, names: Sequence[str]) -> dict[str, str]:
    """The headers that name the fields of a request that mean nothing here."""
    if not names:
        return {}
    listed = ", ".join(quote(name[:64], safe="") for name in names[:MAX_IGNORED_NAMES])
    logger.warning("%s: ignored unknown fields: %s", path, listed)
    return {IGNORED_HEADER: listed}


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


def _check_headers(request: Request) -> None:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        message = f"the content type must be application/json, not {kind[:128] or 'missing'}"
        raise ApiError(415, message, "unsupported_media_type")
    check_encoding(request)


def check_encoding(request: Request) -> None:
    """Raise ``ApiError`` 415 for a compressed body."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        message = f"the body must not be compressed, but content-encoding is {encoding[:128]}"
        raise ApiError(415, message, "unsupported_media_type", headers={"accept-encoding": "identity"})


def check_size(request: Request, limit: int) -> None:
    """Raise ``ApiError`` 413 for a body whose head says that it is larger."""
    length = request.headers.get("content-length", "0")
    _check_size(int(length) if length.isdigit() else 0, limit)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise ApiError(413, f"the body is larger than {limit} bytes", "request_too_large")
