"""ZeroMQ messages on an event loop, without a coroutine, a future and a dozen system calls for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import zmq

MAX_AT_ONCE = 64  # messages in one turn of the event loop, which has other things to do


class Inbox:
    """Hands what a socket receives to a function. Belongs to the running event loop.

    The socket's descriptor is edge-triggered (``ZMQ_FD`` in ``zmq_getsockopt(3)``): it says once that something has
    changed, and any other use of the socket may take that word away. So it is read until nothing is left, and
    whoever sends through the socket calls ``look`` afterwards.
    """

    def __init__(self, socket: zmq.Socket[bytes], receive: Callable[[list[bytes]], None]) -> None:
        self._socket = socket
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._next_look: asyncio.Handle | None = None
        self._descriptor = int(socket.getsockopt(zmq.FD))
        self._is_closed = False
        self._loop.add_reader(self._descriptor, self._read)
        self.look()

    def look(self) -> None:
        """Read soon, whether or not the socket says so."""
        if self._next_look is None and not self._is_closed:
            self._next_look = self._loop.call_soon(self._read)

    def close(self) -> None:
        """Receive no more; idempotent. The socket stays open."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._descriptor)
        if self._next_look is not None:
            self._next_look.cancel()

    def _read(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        for _ in range(MAX_AT_ONCE):
            if self._is_closed:
                return
            try:
                frames: list[Any] = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._receive(frames)
        self.look()
