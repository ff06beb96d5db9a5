"""Owns the engine: starts its loop, says why it died, starts it again, and gives up when that happens too often."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tandem.config import EngineConfig
from tandem.process.launch import EngineProcess, EngineThread, Launched
from tandem.process.messages import Start
from tandem.process.profiler import ProfilerConfig
from tandem.process.transport import Endpoint, make_socket_directory

logger = logging.getLogger("tandem")

RESTART_WINDOW_SECONDS = 600.0
CLOSE_SECONDS = 3.0

State = Literal["loading", "ready", "unhealthy", "restarting", "dead"]


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The engine's health as ``/health`` tells it.

    Attributes:
        state: ``loading`` until it is ready for the first time; ``unhealthy`` while it sends no heartbeat;
            ``restarting`` from its death until it is ready again; ``dead`` for good.
        detail: one line for the user.
    """

    state: State
    detail: str


class Supervisor:
    """Keeps one engine running. Belongs to one event loop.

    A process that dies before it was ready for the first time is not started again: its model cannot be loaded, and
    more attempts would only hide that. Later deaths are followed by a restart, at once for the first within the
    window and a second later for each one after it.

    Args:
        config: what the engine is built from.
        in_process: run the loop in a thread; it serves the same messages over the same kind of socket, and cannot be
            ended when it is stuck.
        max_restarts: within ten minutes; one more death ends it.
        address: ``tcp://HOST:PORT`` to listen at, instead of a Unix socket.
        profiler: how profiles are taken; None takes none.

    Raises:
        ConfigError: there is no place for sockets, or the address is malformed.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        in_process: bool = False,
        max_restarts: int = 3,
        address: str | None = None,
        profiler: ProfilerConfig | None = None,
    ) -> None:
        self.endpoint = Endpoint.over_tcp(address) if address else Endpoint.in_directory(make_socket_directory())
        self._config, self._profiler = config, profiler
        self._launch: type[EngineProcess] | type[EngineThread] = EngineThread if in_process else EngineProcess
        self._max_restarts = max_restarts
        self._status = EngineStatus("loading", "the model is being loaded")
        self._listeners: list[Callable[[EngineStatus], None]] = []
        self._launched: Launched | None = None
        self._incarnation = 0
        self._was_ready = False
        self._deaths: deque[float] = deque()
        self._restart: asyncio.TimerHandle | None = None
        self._dead = asyncio.Event()
        self._closing = False

    @property
    def status(self) -> EngineStatus:
        """What is known of the engine's process; whether it answers is for its clients to say."""
        return self._status

    @property
    def num_restarts(self) -> int:
        """How often the engine has been started again."""
        return max(0, self._incarnation - 1)

    @property
    def process_id(self) -> int | None:
        """Of the engine's process; None in thread mode, and while there is none."""
        return self._launched.process_id if self._launched else None

    def subscribe(self, listener: Callable[[EngineStatus], None]) -> None:
        """Call ``listener`` with every new status, from the event loop."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Start the engine's loop; returns at once, long before the model is loaded."""
        self._loop = asyncio.get_running_loop()
        self._start()

    async def wait_dead(self) -> str:
        """Wait until there is no engine and will be none; returns why."""
        await self._dead.wait()
        return self._status.detail

    def replace(self, because: str) -> bool:
        """End an engine that is stuck, so that another is started; False if it cannot be ended.

        Args:
            because: completes "the engine process …".
        """
        return self._launched is not None and self._launched.kill(because)

    async def close(self) -> None:
        """End the engine. Idempotent."""
        if self._closing:
            return
        self._closing = True
        if self._restart is not None:
            self._restart.cancel()
        if self._launched is not None:
            await asyncio.to_thread(_end, self._launched)
        self._set("dead", "the server is shutting down")
        self._remove_sockets()

    def kill(self) -> None:
        """End the engine at once, without waiting for anything; nothing else may be called after it."""
        self._closing = True
        self.replace("was asked to stop")
        self._remove_sockets()

    # ------------------------------------------------------------------ from birth to death

    def _start(self) -> None:
        self._restart = None
        self._incarnation += 1
        number = self._incarnation
        start = Start(self._config, self.endpoint, number, self._profiler)
        try:
            self._launched = self._launch(
                start,
                lambda: self._post(self._on_built, number),
                lambda why, said: self._post(self._on_end, why, said),
            )
        except OSError as error:  # no memory for another process, for instance
            self._loop.call_soon(self._on_end, f"cannot be started: {error.strerror}", "")

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        """From the launched loop's thread to the event loop, which may have ended before."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _on_built(self, incarnation: int) -> None:
        if incarnation > 1:
            logger.warning("The engine has been restarted and is ready again")
        self._was_ready = True
        self._set("ready", "the engine is ready")

    def _on_end(self, why: str, said: str) -> None:
        if self._closing:
            return
        self._launched = None
        now = time.monotonic()
        while self._deaths and now - self._deaths[0] > RESTART_WINDOW_SECONDS:
            self._deaths.popleft()
        self._deaths.append(now)
        if not self._was_ready:
            self._give_up(said or f"the engine process {why}")
        elif len(self._deaths) > self._max_restarts:
            minutes = RESTART_WINDOW_SECONDS / 60
            self._give_up(
                f"the engine process {why}; {self._max_restarts} restarts in {minutes:g} minutes are the limit"
            )
        else:
            self._restart = self._loop.call_later(len(self._deaths) - 1.0, self._start)
            restarts = f"restart {len(self._deaths)} of {self._max_restarts}"
            logger.error("The engine process %s; %s", why, restarts)
            self._set("restarting", f"the engine process {why}; it is being restarted ({restarts})")

    def _give_up(self, detail: str) -> None:
        if self._was_ready:
            logger.error("%s", detail)
        self._set("dead", detail)

    def _set(self, state: State, detail: str) -> None:
        self._status = EngineStatus(state, detail)
        if state == "dead":
            self._dead.set()
        for listener in self._listeners:
            listener(self._status)

    def _remove_sockets(self) -> None:
        if self.endpoint.directory is not None:
            shutil.rmtree(self.endpoint.directory, ignore_errors=True)


def _end(launched: Launched) -> None:
    launched.stop()
    if not launched.wait(CLOSE_SECONDS):
        launched.kill("was asked to stop")
        launched.wait(CLOSE_SECONDS)
