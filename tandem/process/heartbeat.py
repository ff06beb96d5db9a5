"""Heartbeats from a thread of its own, so that a long step does not silence them."""

from __future__ import annotations

import threading
import time
from typing import Any, Self

import zmq

from tandem.engine import EngineStats
from tandem.process.messages import Heartbeat, encode
from tandem.process.transport import Endpoint, listen

HEARTBEAT_SECONDS = 0.2
HELD_UP_SECONDS = 1.0


class HeartbeatSender:
    """Publishes a ``Heartbeat`` five times a second while it is entered.

    The engine's thread writes the attributes, the sending thread reads them.

    Attributes:
        loaded: share of the weights that has been read.
        is_ready: the engine is built.
        step_began: ``time.monotonic()`` at which the present step began; 0 between steps.
        stats: after the latest step.
    """

    def __init__(self, context: zmq.Context[Any], endpoint: Endpoint, incarnation: int) -> None:
        self.loaded = 0.0
        self.is_ready = False
        self.step_began = 0.0
        self.stats = EngineStats()
        self._incarnation = incarnation
        self._socket = listen(context, zmq.PUB, endpoint.heartbeats, endpoint.secret)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="engine-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()  # the socket is the thread's from now on
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def on_progress(self, share: float) -> None:
        """Note how much of the weights has been read."""
        self.loaded = share

    def _beat(self) -> None:
        previous = resumed = time.monotonic()
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            now, began = time.monotonic(), self.step_began
            if now - previous > HELD_UP_SECONDS:
                resumed = now  # the process was stopped, and the step with it
            previous = now
            seconds = now - max(began, resumed) if began else 0.0
            heartbeat = Heartbeat(self._incarnation, self.loaded, self.is_ready, max(0.0, seconds), self.stats)
            self._socket.send(encode(heartbeat))
        self._socket.close()
