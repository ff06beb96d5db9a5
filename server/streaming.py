"""Server-sent events, and noticing that nobody listens any more.

Wire format: ``data: {JSON}`` and an empty line for each chunk, ``data: [DONE]`` at the end. An error is one event
with OpenAI's error object, after which the stream closes without ``[DONE]``: the official clients raise on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.answers import Answer
from server.errors import ClientGoneError, api_error
from tandem.errors import TandemError
from tandem.generation.outputs import ChoiceDelta

logger = logging.getLogger("tandem")
T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
encode_json = msgspec.json.Encoder().encode


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


class EventStream(Response):
    """Sends what ``chunks`` yields, one write an item.

    Args:
        first: an item taken from ``chunks`` already, so that whatever fails before it has its own HTTP status.
        chunks: encoded events; closed whatever happens.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, chunks: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        self._first = first
        self._chunks = chunks
        super().__init__(headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    @classmethod
    async def open(cls, chunks: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> EventStream:
        """Wait for the first chunk. Raises whatever ``chunks`` raises before it."""
        try:
            return cls(await anext(chunks), chunks, headers)
        except BaseException:
            await chunks.aclose()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; ends early, and quietly, when the client disconnects."""
        try:
            with contextlib.suppress(ClientGoneError):
                await unless_gone(receive, self._run(send))
        finally:
            await self._chunks.aclose()

    async def _run(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        try:
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception as error:
            if not isinstance(error, TandemError):
                logger.exception("a stream failed")
            await send(
                {"type": "http.response.body", "body": b"data: %b\n\n" % api_error(error).body, "more_body": True}
            )
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Chunks(Protocol):
    """How one route writes its stream."""

    def of(self, index: int, delta: ChoiceDelta) -> Iterable[bytes]:
        """The events that tell of a choice's delta."""
        ...

    def end(self) -> bytes:
        """The events after the last delta, before ``[DONE]``."""
        ...


async def stream(answer: Answer, chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """One item an engine step: all the events of it.

    Raises:
        EngineError: the engine was lost, or a choice failed in it.
    """
    try:
        async for step in answer:
            if data := b"".join(event for index, delta in step for event in chunks.of(index, delta)):
                yield data
        yield chunks.end() + DONE
    finally:
        answer.abort()


class ChunkWriter:
    """Writes the chunks of one stream: all that is the same in every chunk is encoded once.

    Args:
        common: fields of every chunk, such as ``id`` and ``model``.
        has_usage: every chunk has ``usage``: null, where ``chunk`` is given none.
    """

    def __init__(self, common: Mapping[str, Any], has_usage: bool) -> None:
        self._head = b"data: " + encode_json(common)[:-1] + b',"choices":['
        self._no_usage = b',"usage":null' if has_usage else b""

    def chunk(
        self,
        index: int,
        payload: bytes,
        logprobs: Mapping[str, Any] | None = None,
        finish_reason: str | None = None,
        extra: Mapping[str, Any] | None = None,
        usage: Mapping[str, Any] | None = None,
        top: Mapping[str, Any] | None = None,
    ) -> bytes:
        """One event with one choice.

        Args:
            payload: ``"delta":{…}`` or ``"text":…``.
            extra: further fields of the choice.
            top: further fields of the chunk.
        """
        return b"".join((
            self._head,
            b'{"index":%d,' % index,
            payload,
            b',"logprobs":',
            b"null" if logprobs is None else encode_json(logprobs),
            b',"finish_reason":',
            b"null" if finish_reason is None else b'"%b"' % finish_reason.encode(),
            _fields(extra),
            b"}]",
            _fields(top),
            self._no_usage if usage is None else b',"usage":' + encode_json(usage),
            b"}\n\n",
        ))  # fmt: skip

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        """The last event, without choices."""
        return b"".join((self._head, b'],"usage":', encode_json(usage), b"}\n\n"))


def _fields(fields: Mapping[str, Any] | None) -> bytes:
    return b"," + encode_json(fields)[1:-1] if fields else b""
