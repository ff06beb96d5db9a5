"""Streams, and the time that answers take."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tests.conformance.stub.state import STEP, Json, faults, state, wrong


async def work(request: Request, tokens: int) -> None:
    """Take the time that so many tokens take, while somebody waits."""
    state.running += 1
    if wrong("overload") or wrong("no retry after"):
        tokens += 200
    try:
        for _ in range(min(tokens, 1000)):
            await asyncio.sleep(STEP)
            if await request.is_disconnected() and not wrong("leaks"):
                break
    finally:
        state.running -= not wrong("leaks")


def stream(request: Request, chunks: Iterable[Json]) -> Response:
    """Chunks as events."""
    names = faults.get()

    async def events() -> AsyncIterator[bytes]:
        faults.set(names)
        state.running += 1
        held, is_done = b"", False
        try:
            for number, chunk in enumerate(chunks):
                data = json.dumps(chunk, ensure_ascii=wrong("ascii"))
                if wrong("raw newline"):
                    data = data.replace('"choices"', '\n"choices"')
                end = "\r\n\n" if wrong("mixed line endings") and number % 2 else "\n\n"
                event = f"data: {data}{end}".encode()
                if wrong("buffered"):
                    held += event
                    await asyncio.sleep(STEP)
                    continue
                await asyncio.sleep(STEP)
                yield event
            if held:
                yield held
            if wrong("lone cr"):
                yield b"data: [DONE]\n"
                return
            for _ in range(0 if wrong("no done") else 2 if wrong("two dones") else 1):
                yield b"data: [DONE]\n\n"
            if wrong("after done"):
                yield b": more\n\n"
            is_done = True
        finally:
            # where it is abandoned this runs in another context
            state.running -= "leaks" not in names
            state.abandoned += "spoilt" in names and not is_done

    headers = {} if wrong("no cache control") else {"cache-control": "no-cache"}
    kind = "application/octet-stream" if wrong("stream type") else "text/event-stream"
    return StreamingResponse(events(), headers=headers, media_type=kind)


def named_events(payloads: Iterator[Json]) -> Response:
    """Events whose name is their type."""
    names = faults.get()

    async def events() -> AsyncIterator[bytes]:
        faults.set(names)
        for payload in payloads:
            await asyncio.sleep(STEP)
            name = "" if wrong("events without names") else f"event: {payload['type']}\n"
            yield f"{name}data: {json.dumps(payload)}\n\n".encode()
        if wrong("done in messages"):
            yield b"data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")
