"""``python -m optimized.runner.process FD``: the process behind a ``RemoteRunner``. It ends when its socket does.

A plan has no reply, so steps overlap as in one process. Whatever goes wrong in one is the reply to the next
``collect``, and further plans are ignored until ``reset``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from optimized.runner.local import LocalRunner
from optimized.runner.wire import (
    Array,
    Build,
    Built,
    Call,
    Collect,
    Done,
    Failed,
    Progress,
    Reply,
    Request,
    Results,
    Submit,
    decode_request,
    receive,
    send,
)


class Server:
    """Answers one ``RemoteRunner``."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._runner: LocalRunner | None = None
        self._failure: Failed | None = None  # of a plan; it is the reply to every ``collect`` until ``reset``

    def run(self) -> None:
        """Until the other end is gone."""
        try:
            while True:
                reply = self._handle(receive(self._channel, decode_request))
                if reply is not None:
                    send(self._channel, reply)
        except (EOFError, ConnectionError):
            if self._runner is not None:
                self._runner.close()

    def _handle(self, request: Request) -> Reply | None:
        try:
            match request:
                case Build(config):
                    self._runner = LocalRunner(config, lambda share: send(self._channel, Progress(share)))
                    return Built(self._runner.info)
                case Submit(plan):
                    if self._failure is None:
                        self._runner_built().submit(plan)
                    return None
                case Collect():
                    return self._failure or Results(self._runner_built().collect())
                case Call(method, arguments):
                    return self._call(method, arguments)
        except Exception as error:
            failure = Failed.of(error)
            if isinstance(request, Submit | Collect):
                self._failure = failure
            return None if isinstance(request, Submit) else failure

    def _call(self, method: str, arguments: list[Any]) -> Done:
        runner = self._runner_built()
        calls: dict[str, Callable[..., Any]] = {
            "reset": runner.reset,
            "sleep": runner.sleep,
            "wake_up": runner.wake_up,
            "replace_weights": runner.replace_weights,
            "trace": runner.trace,
        }
        result = calls[method](*arguments)
        if method == "reset":
            self._failure = None
        return Done([Array.of(x) for x in result] if method == "trace" else [])

    def _runner_built(self) -> LocalRunner:
        assert self._runner is not None, "the first request builds the runner"
        return self._runner


def main() -> None:
    """Entry point of the process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the engine decides what they mean, and closes the socket
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as channel, contextlib.suppress(BrokenPipeError):
        Server(channel).run()
    os._exit(0)  # a compiler that still builds kernels is not waited for


if __name__ == "__main__":
    main()
