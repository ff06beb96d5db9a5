"""The engine's loop: take messages, step, send what the step produced.

``python -m tandem.process.worker`` is the engine's process. It reads a ``Start`` message from standard input, which
stays
open for as long as the front process lives: its end tells the worker at once, on every system, that its parent is
gone.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import struct
import sys
import threading
import time
import traceback
from typing import IO

import msgspec
import zmq

from tandem.engine import Engine, EngineOutput
from tandem.errors import TandemError
from tandem.process.transport import (
    AbortRequests,
    AddRequests,
    Failed,
    FromEngine,
    Heartbeat,
    Loading,
    Ready,
    Shutdown,
    Start,
    StepDone,
    ToEngine,
    decode_start,
    decode_to_engine,
    encode,
    open_socket,
)

HEARTBEAT_SECONDS = 0.2
IDLE_POLL_MS = 1000


class EngineLoop:
    """Drives one engine over a pair of sockets; ``run`` returns after ``Shutdown`` or ``Failed``."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._context = zmq.Context()
        self._inbox = open_socket(self._context, zmq.PULL, start.requests_address, bind=False)
        self._outbox = open_socket(self._context, zmq.PUSH, start.outputs_address, bind=False)
        self._step_began = 0.0
        self._ended = threading.Event()

    def run(self) -> None:
        """Build the engine, then serve until told to end. Every ending is reported to the front."""
        heart = threading.Thread(target=self._beat, name="engine-heartbeat", daemon=True)
        heart.start()
        try:
            self._serve()
        except TandemError as error:
            self._send(Failed(str(error)))
        except Exception as error:
            traceback.print_exc()
            self._send(Failed(f"{type(error).__name__}: {error}".splitlines()[0]))
        finally:
            self._ended.set()
            heart.join()
            for socket in (self._inbox, self._outbox):
                socket.close(linger=1000)
            self._context.term()

    def _serve(self) -> None:
        from tandem.registry import create_engine

        engine = create_engine(self._start.config, lambda share: self._send(Loading(share)))
        try:
            self._send(Ready(engine.info))
            while self._take_messages(engine):
                if engine.has_unfinished:
                    self._step(engine)
        finally:
            engine.close()

    def _take_messages(self, engine: Engine) -> bool:
        """Handle all waiting messages, or wait for one if there is nothing to step; False after ``Shutdown``."""
        if not engine.has_unfinished:
            self._inbox.poll(IDLE_POLL_MS)
        while True:
            try:
                message = decode_to_engine(self._inbox.recv(zmq.NOBLOCK))
            except zmq.Again:
                return True
            except msgspec.MsgspecError:
                print("engine: dropped a frame that is no message", file=sys.stderr)
                continue
            if isinstance(message, Shutdown):
                return False
            self._handle(engine, message)

    def _handle(self, engine: Engine, message: ToEngine) -> None:
        if isinstance(message, AbortRequests):
            for request_id in message.request_ids:
                engine.abort(request_id)
            if not engine.has_unfinished:
                self._send(StepDone([], engine.stats))
        elif isinstance(message, AddRequests):
            for request in message.requests:
                try:
                    engine.add(request)
                except ValueError as error:
                    refused = EngineOutput(request.request_id, [], finish_reason="error", error=str(error))
                    self._send(StepDone([refused], engine.stats))

    def _step(self, engine: Engine) -> None:
        self._step_began = time.monotonic()
        outputs = engine.step()
        self._step_began = 0.0
        self._send(StepDone(list(outputs), engine.stats))

    def _send(self, message: FromEngine) -> None:
        self._outbox.send(encode(message))

    def _beat(self) -> None:
        """Sockets belong to one thread each, so the heart has its own."""
        outbox = open_socket(self._context, zmq.PUSH, self._start.outputs_address, bind=False)
        while not self._ended.wait(HEARTBEAT_SECONDS):
            began = self._step_began
            outbox.send(encode(Heartbeat(time.monotonic() - began if began else 0.0)))
        outbox.close()


def write_start(pipe: IO[bytes], start: Start) -> None:
    """Send ``start`` as the front process does: its length in four bytes, then msgpack."""
    body = encode(start)
    pipe.write(struct.pack("<I", len(body)) + body)
    pipe.flush()


def read_start(pipe: IO[bytes]) -> Start:
    """The counterpart of ``write_start``."""
    (size,) = struct.unpack("<I", pipe.read(4))
    return decode_start(pipe.read(size))


def _exit_with_parent(pipe: IO[bytes], directory: str) -> None:
    """Wait for the end of a pipe that the parent holds open and never writes to again; tidy up after the parent."""
    pipe.read(1)
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(1)


def main() -> None:
    """Entry point of the engine's process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # may reach the whole group; the front decides what they mean
        signal.signal(number, signal.SIG_IGN)
    pipe = sys.stdin.buffer
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(message)s")
    start = read_start(pipe)
    directory = start.requests_address.removeprefix("ipc://").rpartition("/")[0]
    threading.Thread(target=_exit_with_parent, args=(pipe, directory), name="parent-watch", daemon=True).start()
    EngineLoop(start).run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # interpreter shutdown would wait for the thread that reads standard input


if __name__ == "__main__":
    main()
