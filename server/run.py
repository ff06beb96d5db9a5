"""A server's life: bind, start the engine, assemble the application, listen, drain, end.

The port is bound first, so that a busy one is told at once; the engine's process starts next and loads the model
while the web framework is imported here; from then on ``/health`` tells how far it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from server.config import ServerConfig
from server.sockets import address, is_public, open_listener, remove_unix_socket
from tandem.errors import ConfigError, TandemError

if TYPE_CHECKING:
    import uvicorn

    from server.state import ServerState

logger = logging.getLogger("tandem")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
FAILED = 1
DRAIN_POLL_SECONDS = 0.05
LAST_WRITES_SECONDS = 2.0  # for error events, once the engine has been taken away from open requests


def serve(config: ServerConfig) -> int:
    """Run a server until a signal ends it; returns the exit status. What a user can mend is one line on stderr."""
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_server(config))
    except TandemError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:  # before the signals were ours
        return 128 + signal.SIGINT
    return 0


async def run_server(config: ServerConfig) -> None:
    """Serve until SIGTERM or SIGINT, or until cancelled.

    Raises:
        ConfigError: an option cannot be honoured, such as a port that is taken.
        CheckpointError, EngineDeadError: the model cannot be loaded.
    """
    listener = open_listener(config)
    try:
        await _Server(config, listener).run()
    finally:
        listener.close()
        remove_unix_socket(config)


class _Server:
    """One server while it lives."""

    def __init__(self, config: ServerConfig, listener: socket.socket) -> None:
        from server.operations.logs import configure_logging
        from server.state import ServerState

        configure_logging(config)
        self._config = config
        self._listener = listener
        self._state: ServerState = ServerState(config)
        self._web: uvicorn.Server | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """From the engine's start to its end."""
        with self._signals():
            loading = asyncio.create_task(self._load())
            draining = asyncio.create_task(self._drain())
            try:
                await self._listen(loading)
            finally:
                for task in (loading, draining):
                    task.cancel()
                await asyncio.gather(loading, draining, return_exceptions=True)
                if self._state.client is not None:
                    await self._state.client.close()
                self._state.close()

    async def _listen(self, loading: asyncio.Task[None]) -> None:
        """Answer requests until told to end, or until the model turns out to be unusable."""
        self._web = await asyncio.to_thread(_create_web, self._config, self._state)
        if loading.done():
            loading.result()
        self._announce()
        serving = asyncio.create_task(self._web.serve([self._listener]))
        try:
            await asyncio.wait((serving, loading), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
            await asyncio.shield(serving)
        finally:
            self._web.should_exit = True
            await serving

    async def _load(self) -> None:
        from server.loading import load_model, start_engine

        await load_model(self._state, await start_engine(self._state))

    def _announce(self) -> None:
        if is_public(self._listener) and not self._config.api_keys:
            logger.warning("No --api-key: whoever can reach this machine can use the server")
        logger.info("Tandem running on %s (press CTRL+C to quit)", address(self._config, self._listener))

    # ------------------------------------------------------------------ the end

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals are ours while we serve; in other threads than the main one there are none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        if not self._stopping.is_set():
            self._stopping.set()
            return
        if self._state.client is not None:
            self._state.client.kill()
        remove_unix_socket(self._config)
        os._exit(128 + number)

    async def _drain(self) -> None:
        """After the first signal: let open requests finish, then take the engine away from those that have not."""
        await self._stopping.wait()
        state, loop = self._state, asyncio.get_running_loop()
        state.draining = True
        await self._until_idle(loop.time() + self._config.shutdown_timeout)
        if state.has_open_work and state.client is not None:
            await state.client.close()
            await self._until_idle(loop.time() + LAST_WRITES_SECONDS)
        while self._web is None:
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        self._web.should_exit = True

    async def _until_idle(self, deadline: float) -> None:
        while self._state.has_open_work and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(DRAIN_POLL_SECONDS)


def _create_web(config: ServerConfig, state: ServerState) -> uvicorn.Server:
    """Import and assemble the web side; slow enough to be done beside the event loop."""
    import uvicorn

    from server.app import create_app
    from server.http.protocol import limited_protocol

    class Web(uvicorn.Server):
        """uvicorn without its own idea of signals."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    web_config = uvicorn.Config(
        create_app(state),
        http=limited_protocol(config.http_timeout),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=config.uvicorn_log_level,
        access_log=not config.disable_access_log,
        root_path="",  # FastAPI knows it; here it would be added to every path
        server_header=False,
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        ssl_ca_certs=config.ssl_ca_certs,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
    )
    try:
        web_config.load()
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            "--ssl-certfile", f"the certificate and its key cannot be used: {error.strerror}"
        ) from error
    return Web(web_config)
