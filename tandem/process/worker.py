"""The engine's loop: take messages, step, send what the step produced.

``python -P -m tandem.process.worker`` is the engine's process. On standard input it reads a ``Start`` message, then
one byte when it is to end; the end of the pipe tells it at once, on every system, that its parent is gone. On
standard output it reports that the engine is built, and why it ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import msgspec
import zmq

from tandem.engine import Engine, EngineOutput, EngineRequest, EngineStats
from tandem.errors import TandemError
from tandem.process.connections import Connections, Message, Session
from tandem.process.heartbeat import HeartbeatSender
from tandem.process.messages import (
    Abort,
    Add,
    Built,
    Call,
    Ending,
    Failure,
    Method,
    ReplaceWeights,
    Report,
    ResetPrefixCache,
    Sleep,
    Start,
    StartProfile,
    StopProfile,
    WakeUp,
    decoder,
    encode,
)
from tandem.process.profiler import Profiler
from tandem.process.submission import Unreadable, unpack

logger = logging.getLogger(__name__)

IDLE_POLL_MS = 100
PREPARING_POLL_MS = 1
PREPARING_STACK_BYTES = 64 << 20  # compiling a grammar recurses
INTAKE_SECONDS = 0.05  # for messages between two steps, however many there are
PROBE_SECONDS = 1.0  # how soon the requests of a client that has disappeared are dropped, at the latest
SOCKETS = 2  # that an engine binds
STOP = b"\x01"  # on the worker's standard input
FAILED = 1

_decode_start: Callable[[bytes], Start] = decoder(Start)
_decode_report: Callable[[bytes], Report] = decoder(Report)
_decode_method: Callable[[bytes], Method] = decoder(Method)


class EngineLoop:
    """Drives one engine for all its clients.

    Args:
        start: what to build, and where to listen.
        on_built: called once the engine is ready.
    """

    def __init__(self, start: Start, on_built: Callable[[], None]) -> None:
        self._start = start
        self._on_built = on_built
        self._stopping = threading.Event()
        self._context: zmq.Context[Any] = zmq.Context()

    def stop(self) -> None:
        """Let ``run`` return after the step it is in. Any thread may call it."""
        self._stopping.set()

    def run(self) -> Ending:
        """Build the engine and serve until asked to stop, or until something breaks; returns why it ended."""
        try:
            self._run()
        except TandemError as error:
            return Ending(str(error))
        except Exception as error:
            traceback.print_exc()
            return Ending(type(error).__name__)  # clients see it; the text may hold paths and addresses
        finally:
            self._context.term()
        return Ending("")

    def _run(self) -> None:
        from tandem.registry import create_engine

        with HeartbeatSender(self._context, self._start.endpoint, self._start.incarnation) as heartbeat:
            engine = create_engine(self._start.config, heartbeat.on_progress)
            try:
                self._serve(engine, heartbeat)
            finally:
                engine.close()

    def _serve(self, engine: Engine, heartbeat: HeartbeatSender) -> None:
        start, profiler = self._start, Profiler(self._start.profiler)
        connections = Connections(self._context, start.endpoint, start.incarnation, engine.abort, engine.info)
        try:
            heartbeat.is_ready = True
            self._on_built()
            service = _Service(engine, connections, heartbeat, profiler)
            while not self._stopping.is_set():
                service.turn()
        finally:
            profiler.close()
            connections.close()


class Preparation:
    """A thread that prepares requests, so that no step waits for what only one of them needs."""

    def __init__(self, prepare: Callable[[EngineRequest], None]) -> None:
        self._prepare = prepare
        self._todo: queue.SimpleQueue[tuple[Session, EngineRequest]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Session, EngineRequest]] = queue.SimpleQueue()
        self.num_open = 0  # requests that have been put and not taken
        self._thread: threading.Thread | None = None

    def put(self, session: Session, request: EngineRequest) -> None:
        """Prepare a request."""
        if self._thread is None:
            before = threading.stack_size(PREPARING_STACK_BYTES)
            self._thread = threading.Thread(target=self._run, name="preparation", daemon=True)
            self._thread.start()
            threading.stack_size(before)
        self.num_open += 1
        self._todo.put((session, request))

    def take(self) -> Iterator[tuple[Session, EngineRequest]]:
        """Those that are prepared, in order."""
        while self.num_open and not self._done.empty():
            self.num_open -= 1
            yield self._done.get()

    def _run(self) -> None:
        while True:
            session, request = self._todo.get()
            try:
                self._prepare(request)
            except Exception:  # the engine will find out again, in a step that fails this request alone
                logger.exception("a request could not be prepared")
            self._done.put((session, request))


class _Service:
    """A built engine and its clients."""

    def __init__(
        self, engine: Engine, connections: Connections, heartbeat: HeartbeatSender, profiler: Profiler
    ) -> None:
        self._engine = engine
        self._profiler = profiler
        self._connections = connections
        self._heartbeat = heartbeat
        self._probed = time.monotonic()
        self._preparing = Preparation(engine.prepare)

    def turn(self) -> None:
        """Handle what has come, or wait for something; then step. What it raises has broken the engine."""
        engine = self._engine
        if not engine.has_unfinished:
            self._connections.socket.poll(PREPARING_POLL_MS if self._preparing.num_open else IDLE_POLL_MS)
        for session, request in self._preparing.take():
            if self._connections.owns(session, request.request_id):
                with contextlib.suppress(ValueError):  # aborted, and sent again under the same id meanwhile
                    self._engine.add(request)
        deadline = time.monotonic() + INTAKE_SECONDS
        while (message := self._connections.receive()) is not None:
            self._handle(message)
            if engine.has_unfinished and time.monotonic() > deadline:
                break
        outputs = self._step() if engine.has_unfinished else ()
        num_steps = self._heartbeat.stats.num_steps
        stats = self._heartbeat.stats = self._stats
        self._connections.send_outputs(outputs, stats)
        if not outputs and stats.num_steps != num_steps:
            self._connections.probe(stats)  # the step was a part of a prompt, which clients only count
        if time.monotonic() - self._probed > PROBE_SECONDS:
            self._connections.probe(stats)
            self._probed = time.monotonic()

    @property
    def _stats(self) -> EngineStats:
        """The engine's, with the requests that wait for their grammar outside of it."""
        stats, count = self._engine.stats, self._preparing.num_open
        if not count:
            return stats
        return msgspec.structs.replace(
            stats, num_waiting=stats.num_waiting + count, num_deferred=stats.num_deferred + count
        )

    def _step(self) -> Sequence[EngineOutput]:
        self._heartbeat.step_began = time.monotonic()
        with self._profiler.step():
            outputs = self._engine.step()
        self._heartbeat.step_began = 0.0
        return outputs

    def _handle(self, message: Message) -> None:
        match message.header:
            case Add():
                self._add(message, message.header)
            case Abort(request_ids=request_ids):
                for request_id in request_ids:
                    engine_id = message.session.rename(request_id)
                    if self._connections.disown(message.session, engine_id):
                        self._engine.abort(engine_id)
                if not self._engine.has_unfinished:  # no step will bring news of it
                    self._connections.send_step(message.session, [], self._stats)
            case Call(call_id=call_id):
                self._call(message, call_id)

    def _add(self, message: Message, header: Add) -> None:
        session, engine = message.session, self._engine
        refused: list[EngineOutput] = []
        for item in unpack(engine.info, header.num_shared, header.request_ids, message.bodies, session.rename):
            if isinstance(item, Unreadable):
                refused += [_refusal(request_id, item.reason) for request_id in item.request_ids]
                continue
            if item.grammar and not self._connections.owns(session, item.request_id):
                self._connections.own(session, item.request_id)
                self._preparing.put(session, item)
                continue
            try:
                engine.add(item)
            except ValueError as error:
                refused.append(_refusal(item.request_id.removeprefix(session.rename("")), str(error)))
            else:
                self._connections.own(session, item.request_id)
        if refused:
            self._connections.send_step(session, refused, self._stats)

    def _call(self, message: Message, call_id: str) -> None:
        """Answer an administrative call. What the contract does not name as its error has broken the engine."""
        failure = None
        try:
            self._perform(_decode_method(b"".join(message.bodies)))
        except (TandemError, NotImplementedError) as error:
            failure = Failure.of(error)
        except Exception as error:
            self._connections.send_reply(message.session, call_id, Failure.of(error))
            raise
        self._connections.send_reply(message.session, call_id, failure)

    def _perform(self, method: Method) -> None:
        match method:
            case ResetPrefixCache():
                self._engine.reset_prefix_cache()
            case Sleep(level):
                self._engine.sleep(level)
            case WakeUp():
                self._engine.wake_up()
            case ReplaceWeights(path):
                self._engine.replace_weights(path)
            case StartProfile():
                self._profiler.start()
            case StopProfile():
                self._profiler.stop()


def _refusal(request_id: str, reason: str) -> EngineOutput:
    error = f"the engine could not take the request: {reason}"
    return EngineOutput(request_id, [], finish_reason="error", error=error)


# ---------------------------------------------------------------------- the process


def write_frame(pipe: IO[bytes], message: Start | Report) -> None:
    """Send a message over a pipe: its length in four bytes, then msgpack."""
    body = encode(message)
    pipe.write(struct.pack("<I", len(body)) + body)
    pipe.flush()


def read_start(pipe: IO[bytes]) -> Start | None:
    """The message a worker is started with; None if the parent has died before it could send it."""
    body = _read_frame(pipe)
    return None if body is None else _decode_start(body)


def read_report(pipe: IO[bytes]) -> Report | None:
    """The worker's next report; None if there is none any more."""
    body = _read_frame(pipe)
    return None if body is None else _decode_report(body)


def _read_frame(pipe: IO[bytes]) -> bytes | None:
    head = pipe.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack("<I", head)
    body = pipe.read(size)
    return body if len(body) == size else None


def _obey(pipe: IO[bytes], loop: EngineLoop, start: Start) -> None:
    """Wait for the word to end; if the pipe ends instead, tidy up after the parent and end at once."""
    if pipe.read(1) == STOP:
        loop.stop()
        pipe.read(1)
    if start.endpoint.directory is not None:
        for _ in range(SOCKETS + 1):  # the loop may bind a socket there meanwhile, which keeps the directory
            shutil.rmtree(start.endpoint.directory, ignore_errors=True)
    os._exit(FAILED)


def _take_standard_output() -> IO[bytes]:
    """Keep standard output for reports; what libraries print there goes to standard error."""
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return reports


def main() -> None:
    """Entry point of the engine's process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # may reach the whole group; the supervisor decides what they mean
        signal.signal(number, signal.SIG_IGN)
    reports, orders = _take_standard_output(), sys.stdin.buffer
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(message)s")
    start = read_start(orders)
    if start is None:
        os._exit(FAILED)
    loop = EngineLoop(start, lambda: write_frame(reports, Built()))
    threading.Thread(target=_obey, args=(orders, loop, start), name="orders", daemon=True).start()
    ending = loop.run()
    write_frame(reports, ending)
    sys.stderr.flush()
    os._exit(FAILED if ending.message else 0)  # interpreter shutdown would wait for the thread that reads orders


if __name__ == "__main__":
    main()
