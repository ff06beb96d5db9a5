"""Supervised engines and their clients, for a test's length."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from tandem import SamplingParams
from tandem.config import EngineConfig
from tandem.engine import EngineOutput, EngineRequest
from tandem.process.client import EngineClient, OutputStream
from tandem.process.supervisor import Supervisor
from tests.process.stub import stub_config

STUB_WORKER = [sys.executable, "-P", "-m", "tests.process.stub"]
_ids = itertools.count()


@contextlib.asynccontextmanager
async def supervised(config: EngineConfig | None = None, **options: Any) -> AsyncIterator[Supervisor]:
    """A supervisor whose engine has been started; a stub's without ``config``."""
    supervisor = Supervisor(config or stub_config(), **options)
    supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.close()


@contextlib.asynccontextmanager
async def connected(engine: Any, *, wait: bool = True, **options: Any) -> AsyncIterator[EngineClient]:
    """A client of a supervisor or an endpoint, ready."""
    client = EngineClient(engine, **options)
    await client.start()
    try:
        if wait:
            await asyncio.wait_for(client.wait_ready(), 60)
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def running(
    config: EngineConfig | None = None, *, stall_timeout: float = 60.0, **options: Any
) -> AsyncIterator[tuple[Supervisor, EngineClient]]:
    """Both together."""
    async with (
        supervised(config, **options) as supervisor,
        connected(supervisor, stall_timeout=stall_timeout) as client,
    ):
        yield supervisor, client


def request(salt: str = "", max_tokens: int = 5, prompt: list[int] | None = None, **fields: Any) -> EngineRequest:
    """A request with an id of its own; ``salt`` tells a stub what to do."""
    given = {"request_id": f"r{next(_ids)}", "sampling": SamplingParams(), "seed": 1} | fields
    return EngineRequest(prompt_token_ids=prompt or [1, 2, 3], max_tokens=max_tokens, cache_salt=salt, **given)


async def finish(stream: OutputStream, seconds: float = 20.0) -> list[EngineOutput]:
    """All that a stream yields."""
    outputs: list[EngineOutput] = []
    async with asyncio.timeout(seconds):
        while not stream.finished:
            outputs += await stream.next()
    return outputs


async def works(client: EngineClient) -> bool:
    """Whether a request is answered."""
    outputs = await finish(client.submit([request(max_tokens=3)]))
    return len(outputs) == 3 and outputs[-1].finish_reason == "length"


async def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    """Wait for ``condition``; returns how long it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - start


def free_tcp_address() -> str:
    """An address whose port and the one after it are free."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return f"tcp://127.0.0.1:{port}"
