"""Streams of events, and noticing that nobody listens any more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.errors import ApiError, ClientGoneError, api_error
from server.intake.pool import WorkPool
from tandem.errors import TandemError

logger = logging.getLogger("tandem")
T = TypeVar("T")
E = TypeVar("E")
E_contra = TypeVar("E_contra", contravariant=True)
E_co = TypeVar("E_co", covariant=True)

SILENCE_SECONDS = 15.0  # proxies close connections on which nothing happens for longer
MAX_EVENTS = 256  # written at once: a client that has read nothing for long must not hold up the others


@dataclass(frozen=True, slots=True)
class StreamForm:
    """How a stream is framed: its content type, and what is sent where nothing has been for long."""

    media_type: str
    silence: bytes


EVENTS = StreamForm("text/event-stream", b": waiting\n\n")


class Source(Protocol[E_co]):
    """Where a stream's events come from; ``Generation`` is one, and says what the methods do."""

    async def next(self) -> Sequence[E_co]: ...

    @property
    def finished(self) -> bool: ...

    def wake(self) -> None: ...

    def abort(self) -> None: ...


class Writer(Protocol[E_contra]):
    """What a stream needs of a dialect; ``Dialect`` says what the methods do."""

    def begin(self) -> bytes: ...

    def size(self, events: Sequence[E_contra], /) -> int: ...

    def events(self, events: Sequence[E_contra], /) -> bytes: ...

    def end(self) -> bytes: ...

    def error(self, error: ApiError, /) -> bytes: ...


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do ``work`` for a client; cancel it when the client disconnects. The request's body must have been read.

    Raises:
        ClientGoneError: the client has gone.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for unfinished in (task, gone):
            unfinished.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response, Generic[E]):
    """Sends a source's events as a dialect writes them; aborts the source when the client disconnects."""

    def __init__(
        self,
        source: Source[E],
        dialect: Writer[E],
        pool: WorkPool,
        headers: Mapping[str, str],
        form: StreamForm = EVENTS,
    ) -> None:
        self._source = source
        self._dialect = dialect
        self._pool = pool
        self._silence = form.silence
        self._first: Sequence[E] = []
        self._sent_at = 0.0
        unbuffered = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(headers={**headers, **unbuffered}, media_type=form.media_type)
        del self.headers["content-length"]

    async def wait(self) -> EventStream[E]:
        """Wait for the first events, though not for long, so that whatever fails before has its own HTTP status.

        Raises:
            EngineError, RequestError: as ``Generation.next``.
        """
        try:
            with self._waking():
                self._first = await self._source.next()
            return self
        except BaseException:
            self._source.abort()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; ends early, and quietly, when the client disconnects."""
        try:
            with contextlib.suppress(ClientGoneError):
                await unless_gone(receive, self._run(send))
        finally:
            self._source.abort()

    async def _run(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            with self._waking():
                await self._send_events(send)
        except Exception as error:
            if not isinstance(error, TandemError):
                logger.exception("a stream failed")
            await send(_part(self._dialect.error(api_error(error))))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, send: Send) -> None:
        source, clock = self._source, asyncio.get_running_loop().time
        if data := self._dialect.begin():
            await send(_part(data))
        events = self._first
        while True:
            for start in range(0, len(events), MAX_EVENTS):
                if data := await self._write(events[start : start + MAX_EVENTS]):
                    self._sent_at = clock()
                    await send(_part(data))
            if not events:
                self._sent_at = clock()
                await send(_part(self._silence))
            if source.finished:
                break
            events = await source.next()
        await send(_part(self._dialect.end()))

    async def _write(self, events: Sequence[E]) -> bytes:
        return await self._pool.run(self._dialect.size(events), self._dialect.events, events)

    @contextlib.contextmanager
    def _waking(self) -> Iterator[None]:
        """Let ``Generation.next`` return whenever nothing has been sent for too long."""
        self._sent_at = asyncio.get_running_loop().time()
        self._wake_when_silent(SILENCE_SECONDS)
        try:
            yield
        finally:
            self._timer.cancel()

    def _wake_when_silent(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._check_silence, loop)

    def _check_silence(self, loop: asyncio.AbstractEventLoop) -> None:
        left = self._sent_at + SILENCE_SECONDS - loop.time()
        if left <= 0:
            self._source.wake()
        self._wake_when_silent(left if left > 0 else SILENCE_SECONDS)


def _part(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}
