"""How much work the server takes on: reserved when a request's head has been read, before its body costs anything."""

from __future__ import annotations

from types import TracebackType

from server.config import ServerConfig
from server.errors import ApiError
from tandem.errors import RequestError

RETRY_SECONDS = 1
SMALL_BODY_BYTES = 2**16  # smaller bodies are not counted
LARGE_BODIES = 4  # as many of the largest size may be in memory at once


class Capacity:
    """The limits, and what is taken of them.

    Attributes:
        choices: choices that are not finished, those of requests whose body is unread counting one.
        tokens: of prompts of unfinished requests.
        body_bytes: of bodies that are being read or worked on.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._limits = {
            "choices": config.max_queued_requests,
            "tokens": config.max_queued_tokens,
            "body_bytes": LARGE_BODIES * config.max_body_bytes,
        }
        self.choices = 0
        self.tokens = 0
        self.body_bytes = 0

    def reserve(self, choices: int = 0) -> Reservation:
        """A share for one request, to be released whatever happens.

        Raises:
            ApiError: 429, the server is full.
        """
        reservation = Reservation(self)
        reservation.hold(choices=choices)
        return reservation

    def change(self, name: str, old: int, new: int) -> None:
        """Let a share grow or shrink from ``old`` to ``new``.

        Raises:
            ApiError: 429, too little is left.
            RequestError: it is more than all there is.
        """
        used, limit = getattr(self, name) + new - old, self._limits[name]
        if limit and new > old:
            if new > limit:
                raise _too_much(name, new, limit)
            if used > limit:
                raise _full(name, limit)
        setattr(self, name, used)


class Reservation:
    """One request's share of the capacity; as a context manager it is released at the end."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._held: dict[str, int] = {}

    def hold(self, **amounts: int) -> None:
        """Have so many ``choices``, ``tokens`` or ``body_bytes`` from now on. Raises as ``Capacity.change``."""
        for name, amount in amounts.items():
            self._capacity.change(name, self._held.get(name, 0), amount)
            self._held[name] = amount

    def hold_body(self, num_bytes: int) -> None:
        """Have read so much of the body. Raises as ``Capacity.change``."""
        if num_bytes > SMALL_BODY_BYTES:
            self.hold(body_bytes=num_bytes)

    def release(self) -> None:
        """Give all of it back; any number of times."""
        self.hold(**dict.fromkeys(self._held, 0))

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def _full(name: str, limit: int) -> ApiError:
    what = {"choices": "unfinished choices", "tokens": "unfinished prompt tokens", "body_bytes": "bytes of bodies"}
    message = f"the server is full: at most {limit} {what[name]} at once"
    return ApiError(429, message, "server_overloaded", headers={"retry-after": str(RETRY_SECONDS)})


def _too_much(name: str, amount: int, limit: int) -> Exception:
    if name == "choices":
        return RequestError(f"{amount} choices are more than this server takes at once: {limit}", "n")
    if name == "tokens":
        return RequestError(f"{amount} prompt tokens are more than this server takes at once: {limit}", "prompt")
    return ApiError(413, f"the body is larger than {limit} bytes", "request_too_large")
