"""Chat templates in processes of their own, which are killed when one takes too long or too much.

A template is a program: from inside, Jinja cannot promise that it ends. So it runs in a child (``template_child.py``)
whose memory the kernel limits and whose time this side does.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tandem.errors import RequestError, TandemError

CHILD = Path(__file__).with_name("template_child.py")
LENGTH = struct.Struct(">I")
START_SECONDS = 60.0  # a machine may be busy; usually it takes a tenth of one
MIB = 2**20
# what an interpreter may need; the rest, keys and tokens among it, is nothing that a template should be near
KEPT_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TZ")


class TemplateProcesses:
    """A few children that render templates. Its methods may be called from any thread, and block.

    Children start when they are needed, stay for the next template, and end with this process, however it ends.

    Args:
        count: children at most; further callers wait.
        param: the request's parameter that is to blame when a template exceeds a limit.
        seconds: from a template's start to its last character.
        memory_bytes: of one child, the interpreter's own 10 MiB included. Only Linux enforces it.
        chars: of a rendered prompt.
    """

    def __init__(
        self,
        count: int,
        param: str,
        *,
        seconds: float = 5.0,
        memory_bytes: int = 512 * MIB,
        chars: int = 16 * MIB,
    ) -> None:
        self.param = param
        self.seconds = seconds
        self.memory_bytes = memory_bytes
        self.chars = chars
        self._idle: list[_Child] = []
        self._free = threading.BoundedSemaphore(count)
        atexit.register(self.close)

    def compile(self, source: str) -> None:
        """Check a template.

        Raises:
            RequestError: it is no valid template, or exceeds a limit.
        """
        self._run(source, None)

    def render(self, source: str, context: Mapping[str, Any]) -> str:
        """What a template makes of its variables, which must be what JSON can say.

        Raises:
            RequestError: the template is invalid, fails, exceeds a limit, or the variables cannot be sent.
        """
        return self._run(source, context)

    def close(self) -> None:
        """End the idle children; idempotent. A later call starts new ones."""
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().kill()

    def _run(self, source: str, context: Mapping[str, Any] | None) -> str:
        job = {"source": source, "context": context, "seconds": self.seconds, "chars": self.chars}
        try:
            frame = msgspec.json.encode(job)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else _first_line(error)
            raise RequestError(f"the conversation cannot be written as JSON: {reason}", "messages") from error
        if len(frame) > self.memory_bytes:
            raise self._refusal("memory")
        reply = self._exchange(frame)
        if reply.error is not None:
            raise self._refusal(reply.error, reply.reason)
        return reply.text

    def _exchange(self, frame: bytes) -> _Reply:
        if not self._free.acquire(timeout=self.seconds):
            raise RequestError("other templates are taking all the time there is; try again later", self.param)
        try:
            child = self._take_child()
            try:
                reply = msgspec.json.decode(child.exchange(frame, self.seconds, 6 * self.chars + MIB), type=_Reply)
            except BaseException as error:
                child.kill()
                if isinstance(error, TimeoutError):
                    raise self._refusal("seconds") from error
                if isinstance(error, (OSError, EOFError)):
                    raise self._refusal("memory") from error
                raise
            if reply.last:
                child.kill()
            else:
                self._idle.append(child)
            return reply
        finally:
            self._free.release()

    def _take_child(self) -> _Child:
        with contextlib.suppress(IndexError):
            while True:
                child = self._idle.pop()
                if child.is_alive():
                    return child
                child.kill()
        return _Child(self.memory_bytes)

    def _refusal(self, error: str, reason: str = "") -> RequestError:
        match error:
            case "compile":
                return RequestError(f"chat_template does not compile: {reason}", "chat_template")
            case "render":
                return RequestError(f"the chat template refuses this conversation: {reason}", "messages")
            case "chars":
                return RequestError(f"the rendered prompt exceeds {self.chars} characters", self.param)
            case "seconds":
                return RequestError(f"the chat template ran for more than {self.seconds:g} s", self.param)
            case _:
                needed = f"the chat template needs more than {self.memory_bytes // MIB} MiB of memory"
                return RequestError(needed, self.param)


class _Reply(msgspec.Struct):
    text: str
    error: str | None
    reason: str
    last: bool


class _Child:
    """One process and the socket to it; used by one thread at a time."""

    def __init__(self, memory_bytes: int) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P: nothing that lies in the working directory or beside the file is imported
                [sys.executable, "-P", str(CHILD), str(memory_bytes)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ},
                process_group=0,  # an interrupt from the terminal is for its parent
            )
        try:
            self._receive(time.monotonic() + START_SECONDS, 0)
        except (OSError, EOFError) as error:
            self.kill()
            raise TandemError("the process that renders chat templates cannot be started") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def exchange(self, frame: bytes, seconds: float, max_reply_bytes: int) -> bytes:
        """Send a job, receive its reply.

        Raises:
            TimeoutError: there is none within ``seconds``.
            OSError, EOFError: the child has ended, or answers more than ``max_reply_bytes``.
        """
        deadline = time.monotonic() + seconds
        self._socket.settimeout(seconds)
        self._socket.sendall(LENGTH.pack(len(frame)))
        self._socket.sendall(frame)
        return self._receive(deadline, max_reply_bytes)

    def is_alive(self) -> bool:
        """Whether it runs and is this process's own: after a fork, two would read each other's prompts."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process and wait until it is gone."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _receive(self, deadline: float, max_bytes: int) -> bytes:
        (length,) = LENGTH.unpack(self._receive_exactly(LENGTH.size, deadline))
        if length > max_bytes:
            raise EOFError(f"a reply of {length} bytes")
        return self._receive_exactly(length, deadline)

    def _receive_exactly(self, count: int, deadline: float) -> bytes:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            received = self._socket.recv_into(view)
            if not received:
                raise EOFError("the child has ended")
            view = view[received:]
        return bytes(data)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# Checkpoints' templates and those of requests never wait for each other. As many for the former as there are threads
# that work on text, so that a long conversation delays no other.
OF_CHECKPOINTS = TemplateProcesses(4, "messages")
OF_REQUESTS = TemplateProcesses(2, "chat_template")
