"""The front process's end of the engine: starts its loop, follows its health, hands out what it yields.

One message arrives per engine step and wakes the front once; each request's outputs go where its stream finds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import zmq
import zmq.asyncio

from tandem.config import EngineConfig
from tandem.engine import EngineInfo, EngineOutput, EngineRequest, EngineStats
from tandem.errors import (
    EngineDeadError,
    EngineError,
    EngineLoadingError,
    EngineStalledError,
)
from tandem.process.transport import (
    AbortRequests,
    AddRequests,
    Failed,
    Heartbeat,
    Loading,
    Ready,
    Shutdown,
    Start,
    StepDone,
    ToEngine,
    decode_from_engine,
    encode,
    open_socket,
)
from tandem.process.worker import EngineLoop, write_start

logger = logging.getLogger("tandem")

WATCH_SECONDS = 0.1
SILENCE_SECONDS = 1.5  # without a heartbeat; with WATCH_SECONDS and the beat's own 0.2 s, noticed within 2 s
STEP_SECONDS = 300.0  # within one step
CLOSE_SECONDS = 3.0

State = Literal["loading", "ready", "stalled", "dead"]


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The engine's health as ``/health`` tells it; ``detail`` is one line for the user."""

    state: State
    detail: str


class OutputStream:
    """What the engine yields for some requests; outputs that nobody has fetched yet are fetched together."""

    def __init__(self, client: EngineClient, request_ids: Iterable[str]) -> None:
        self._client = client
        self._open = set(request_ids)
        self._outputs: list[EngineOutput] = []
        self._error: EngineError | None = None
        self._news = asyncio.Event()

    @property
    def finished(self) -> bool:
        """Whether every request has ended and its last output has been fetched; False while ``next`` has an error."""
        return not self._open and not self._outputs and self._error is None

    async def next(self) -> list[EngineOutput]:
        """All outputs since the last call, in order; at least one. Call only while not ``finished``.

        Raises:
            EngineDeadError, EngineStalledError: the engine was lost before the requests ended.
        """
        await self._news.wait()
        self._news.clear()
        outputs, self._outputs = self._outputs, []
        if not outputs and self._error is not None:
            self._news.set()
            raise self._error
        if self._error is not None:
            self._news.set()
        return outputs

    def abort(self, request_ids: Iterable[str] | None = None) -> None:
        """Stop the work on some or all of the requests that have not ended; any number of times."""
        ids = self._open & set(request_ids) if request_ids is not None else set(self._open)
        self._open -= ids
        self._client._abort(ids)

    def _put(self, output: EngineOutput) -> None:
        self._outputs.append(output)
        if output.finish_reason is not None:
            self._open.discard(output.request_id)
        self._news.set()

    def _fail(self, error: EngineError) -> None:
        self._open.clear()
        self._error = error
        self._news.set()


class EngineClient:
    """Owns an engine's loop, in a process of its own or in a thread of this one. Belongs to one event loop.

    Args:
        config: what the engine is built from.
        in_process: run the loop in a thread; it serves the same messages over the same kind of socket.
        on_step: called with the statistics of each step.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        in_process: bool = False,
        on_step: Callable[[EngineStats], None] | None = None,
    ) -> None:
        self._config = config
        self._in_process = in_process
        self.on_step = on_step
        self._streams: dict[str, OutputStream] = {}
        self._unsent: list[EngineRequest] = []  # since the event loop's last turn
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._status = EngineStatus("loading", "the model is being loaded")
        self._settled = asyncio.Event()  # ready or dead
        self._last_sign = time.monotonic()
        self._step_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False

    # ------------------------------------------------------------------ what the routes see

    @property
    def status(self) -> EngineStatus:
        """How the engine is now."""
        return self._status

    @property
    def info(self) -> EngineInfo:
        """Facts about the engine.

        Raises:
            EngineError: there is none yet, or no more.
        """
        self._require_ready()
        assert self._info is not None
        return self._info

    @property
    def stats(self) -> EngineStats:
        """As of the latest step."""
        return self._stats

    @property
    def num_unfinished(self) -> int:
        """Requests the engine still works on."""
        return len(self._streams)

    @property
    def process_id(self) -> int | None:
        """Of the engine's process; None in thread mode."""
        return self._process.pid if self._process else None

    async def wait_ready(self) -> EngineInfo:
        """Wait for the model to be loaded.

        Raises:
            EngineDeadError: it could not be; the message says why.
        """
        await self._settled.wait()
        return self.info

    def submit(self, requests: list[EngineRequest]) -> OutputStream:
        """Hand admitted requests to the engine, in order.

        All that is handed over within one turn of the event loop travels in one message, so that the prompts of one
        HTTP request begin in one step.

        Raises:
            EngineError: it is loading, stalled or dead; nothing was handed over.
        """
        self._require_ready()
        stream = OutputStream(self, [request.request_id for request in requests])
        for request in requests:
            self._streams[request.request_id] = stream
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._send_requests)
        self._unsent += requests
        return stream

    # ------------------------------------------------------------------ lifecycle

    async def start(self) -> None:
        """Open the sockets and start the engine's loop; returns at once, long before the model is loaded."""
        self._directory = Path(tempfile.mkdtemp(prefix="tandem-"))  # mode 0700
        start = Start(self._config, f"ipc://{self._directory}/requests", f"ipc://{self._directory}/outputs")
        self._context = zmq.asyncio.Context()
        self._to_engine = open_socket(zmq.Context(self._context), zmq.PUSH, start.requests_address, bind=True)
        self._from_engine = open_socket(self._context, zmq.PULL, start.outputs_address, bind=True)
        self._last_sign = time.monotonic()
        if self._in_process:
            self._thread = threading.Thread(target=EngineLoop(start).run, name="engine", daemon=True)
            self._thread.start()
        else:
            self._process = _spawn(start)
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._watch())]

    async def close(self) -> None:
        """End the engine's loop; open requests fail. Idempotent."""
        if self._closing:
            return
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._lose(EngineDeadError("the server is shutting down"), "dead")
        self._send(Shutdown())
        await asyncio.to_thread(self._join)
        self._to_engine.close()
        self._from_engine.close()
        self._context.term()
        shutil.rmtree(self._directory, ignore_errors=True)

    def kill(self) -> None:
        """End the engine at once, without waiting for anything; nothing else may be called after it."""
        if self._process is not None:
            self._process.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
        if self._process is None:
            return
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()

    # ------------------------------------------------------------------ messages

    def _send_requests(self) -> None:
        if self._unsent:
            requests, self._unsent = self._unsent, []
            self._send(AddRequests(requests))

    def _send(self, message: ToEngine) -> None:
        self._send_requests()  # what was said before comes before
        with contextlib.suppress(zmq.Again):  # only when there is no engine left to read it
            self._to_engine.send(encode(message), zmq.NOBLOCK)

    def _abort(self, request_ids: set[str]) -> None:
        for request_id in request_ids:
            self._streams.pop(request_id, None)
        if request_ids and self._status.state != "dead":
            self._send(AbortRequests(list(request_ids)))

    async def _receive(self) -> None:
        while True:
            frame = await self._from_engine.recv()
            try:
                message = decode_from_engine(frame)
            except msgspec.MsgspecError:
                logger.warning("dropped a frame from the engine that is no message")
                continue
            self._last_sign = time.monotonic()
            self._handle(message)

    def _handle(self, message: Any) -> None:
        match message:
            case StepDone(outputs, stats):
                self._stats = stats
                for output in outputs:
                    self._dispatch(output)
                if self.on_step is not None:
                    self.on_step(stats)
            case Heartbeat(step_seconds):
                self._step_seconds = step_seconds
            case Loading(fraction):
                self._status = EngineStatus("loading", f"the model is being loaded: {fraction:.0%} of the weights")
            case Ready(info):
                self._info = info
                self._status = EngineStatus("ready", "the engine is stepping")
                self._settled.set()
            case Failed(text):
                self._lose(EngineDeadError(text), "dead")

    def _dispatch(self, output: EngineOutput) -> None:
        stream = self._streams.get(output.request_id)
        if stream is None:  # aborted while the output was on its way
            return
        if output.finish_reason is not None:
            del self._streams[output.request_id]
        stream._put(output)

    # ------------------------------------------------------------------ health

    async def _watch(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(WATCH_SECONDS)
            now = time.monotonic()
            if now - before > WATCH_SECONDS + SILENCE_SECONDS / 2:
                self._last_sign = now  # this process was itself held up; the engine's signs are still in the socket
            self._judge(now)

    def _judge(self, now: float) -> None:
        if self._status.state == "dead":
            return
        if self._has_ended():
            self._lose(EngineDeadError("the engine process has ended unexpectedly"), "dead")
            return
        silent = now - self._last_sign > SILENCE_SECONDS
        stuck = self._step_seconds > STEP_SECONDS
        if self._status.state == "ready" and (silent or stuck):
            why = f"has sent no sign of life for {SILENCE_SECONDS:g} s" if silent else "is stuck in a step"
            self._lose(EngineStalledError(f"the engine {why}"), "stalled")
        elif self._status.state == "stalled" and not (silent or stuck):
            self._status = EngineStatus("ready", "the engine is stepping again")
            logger.warning(self._status.detail)

    def _has_ended(self) -> bool:
        if self._process is not None:
            return self._process.poll() is not None
        return self._thread is not None and not self._thread.is_alive()

    def _lose(self, error: EngineError, state: State) -> None:
        """Fail all open requests; tell an engine that may come back to drop them."""
        if self._status.state == "dead":
            return
        self._status = EngineStatus(state, str(error))
        if not self._closing:
            logger.error("%s", error)
        streams, self._streams = self._streams, {}
        for stream in set(streams.values()):
            stream._fail(error)
        if state == "stalled":
            self._send(AbortRequests(list(streams)))
        self._settled.set()

    def _require_ready(self) -> None:
        match self._status.state:
            case "loading":
                raise EngineLoadingError(self._status.detail)
            case "stalled":
                raise EngineStalledError(self._status.detail)
            case "dead":
                raise EngineDeadError(self._status.detail)


def _spawn(start: Start) -> subprocess.Popen[bytes]:
    """Start the engine's process with ``start`` on its standard input, which stays open as the sign that we live."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-m", "tandem.process.worker"], stdin=subprocess.PIPE, env=environment
    )
    assert process.stdin is not None
    write_start(process.stdin, start)
    return process
