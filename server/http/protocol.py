"""HTTP/1.1 with limits: uvicorn's protocol reads heads of any length, for any time, and takes half a close for one.

What is limited here comes before the application, and so before authentication: the bytes and the seconds of a head,
the seconds in which a refused body must end, and those in which a client must read on. The time and size of bodies
that are wanted are limited where they are read (``server.intake.body``).
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.errors import ApiError

MAX_HEAD_BYTES = 2**16
VERSIONS = ("1.0", "1.1")
LAST_READ_SECONDS = 0.5
LAST_READ_BYTES = 2**20
# After a client has shut down its sending side, only writing shows whether it still reads: interim answers, which
# clients skip, or comments in a stream of events. The first is answered by a reset if nobody does, and the next one
# finds that.
PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
PROBE_IN_STREAM = b"3\r\n:\n\n\r\n"  # a whole chunk; streams of events are the only chunked answers here
PROBE_SECONDS = (0.0, 0.05, 0.5, 5.0)


class LimitedProtocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        timeout: seconds; see ``ServerConfig.http_timeout``.
    """

    timeout = 60.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_refused = False
        self._in_body = False
        self._num_unparsed = 0  # bytes since the last of a head, a piece of body or a message's end
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._probing: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ heads

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is expected at once; later ones whenever uvicorn's own timer allows."""
        super().connection_made(transport)
        self._expect_within(self.timeout)

    def data_received(self, data: bytes) -> None:
        """Parse, within the limits."""
        self._num_unparsed += len(data)
        if self._is_refused:
            if self._num_unparsed > LAST_READ_BYTES:
                self.transport.close()
            return
        if not self._in_body and self._reading is None:
            self._expect_within(self.timeout)
        super().data_received(data)
        if self._num_unparsed > MAX_HEAD_BYTES:
            self._refuse_long_head()

    def on_message_begin(self) -> None:
        """A head begins, perhaps in the middle of what has been received."""
        super().on_message_begin()
        if self._reading is None and not self._is_refused:
            self._expect_within(self.timeout)

    def on_headers_complete(self) -> None:
        """Start the request, if it is one."""
        if self._is_refused:
            return
        self._in_body, self._num_unparsed = True, 0
        self._stop_expecting()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refuse_long_head()
        elif (version := self.parser.get_http_version()) not in VERSIONS:
            self._refuse(ApiError(505, f"HTTP {version} is not spoken here", "http_version_not_supported"))
        elif (hosts := sum(name == b"host" for name, _ in self.headers)) != 1 and (hosts or version == "1.1"):
            self._refuse(ApiError(400, f"one Host header is needed, not {hosts}", "invalid_host"))
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self._is_refused:
            self._num_unparsed = 0
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The body's end."""
        if not self._is_refused:
            self._in_body, self._num_unparsed = False, 0
            self._stop_expecting()
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """What is left of a body that was refused must end in time, too."""
        self._stop_probing()
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._expect_within(self.timeout)

    def _refuse_long_head(self) -> None:
        self._refuse(ApiError(431, f"the head is larger than {MAX_HEAD_BYTES} bytes", "head_too_large"))

    def _refuse(self, error: ApiError) -> None:
        """Answer without the application and close, unless another answer is on its way: then only close."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._stop_expecting()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()
            return
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(error.body)
        self.transport.write(STATUS_LINE[error.status] + head + error.body)
        # closing with bytes unread would reset the connection, and the client might never see why
        self._reading = self.loop.call_later(LAST_READ_SECONDS, self.transport.close)

    def _expect_within(self, seconds: float) -> None:
        self._stop_expecting()
        self._reading = self.loop.call_later(seconds, self._on_silence)

    def _stop_expecting(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _on_silence(self) -> None:
        self._reading = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._expect_within(self.timeout)  # the next request's head may take as long as this one's answer
        elif self._num_unparsed and not self._in_body:
            self._refuse(ApiError(408, "the head took too long to arrive", "request_timeout"))
        else:
            self.transport.close()

    # ------------------------------------------------------------------ answers

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        self._check_reading_on(self.transport.get_write_buffer_size() + 1)

    def resume_writing(self) -> None:
        """It has read on."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _check_reading_on(self, unread: int) -> None:
        """Give up a client that has read nothing since there were ``unread`` bytes for it."""
        now = self.transport.get_write_buffer_size()
        if now >= unread:
            self.transport.abort()
            return
        self._writing = self.loop.call_later(self.timeout, self._check_reading_on, now)

    # ------------------------------------------------------------------ ends

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. It gets its answer, if it has asked for one and still reads."""
        waits = self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete
        if not waits or self.scope["http_version"] != "1.1" or self.scheme == "https":
            return False
        self.cycle.keep_alive = False
        self._probe(0)
        return True

    def _probe(self, number: int) -> None:
        self._probing = None
        cycle = self.cycle
        is_whole = cycle.response_started and not cycle.chunked_encoding
        if self.transport.is_closing() or cycle.response_complete or is_whole or number == len(PROBE_SECONDS) - 1:
            return
        self.transport.write(PROBE_IN_STREAM if cycle.response_started else PROBE)
        self._probing = self.loop.call_later(PROBE_SECONDS[number + 1], self._probe, number + 1)

    def _stop_probing(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None

    def shutdown(self) -> None:
        """The server ends. Whoever has not read what was written for him will not get it any more."""
        if self.flow is not None and self.flow.write_paused:
            self.transport.abort()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to wait for."""
        self._stop_expecting()
        self._stop_probing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        super().connection_lost(exc)


def limited_protocol(timeout: float) -> type[LimitedProtocol]:
    """The protocol of a server with that ``--http-timeout``."""
    return type("LimitedProtocol", (LimitedProtocol,), {"timeout": timeout})
