"""A server's life: bind, start the engine, assemble the application, listen, drain, end.

The port is bound first, so that a busy one is reported at once; the engine's process starts next and loads the model
while the web framework is imported here; from then on ``/health`` tells how far it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from server.config import ServerConfig
from server.sockets import Listener, address, is_public, open_listener, open_metrics_listener
from tandem.errors import ConfigError, EngineDeadError, TandemError

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp, Receive, Scope, Send

    from server.operations.metrics_port import MetricsServer
    from server.state import ServerState
    from tandem.process.supervisor import Supervisor

logger = logging.getLogger("tandem")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
FAILED = 1
ENGINE_LOST = 70  # EX_SOFTWARE: the engine died too often; starting the server anew may help
DRAIN_POLL_SECONDS = 0.05
LAST_WRITES_SECONDS = 2.0  # for error events, once the engine has been taken away from open requests
EXIT_SECONDS = 1.0  # for threads, once all else has ended


class EngineLostError(EngineDeadError):
    """The engine has died more often than it may be restarted."""


def serve(config: ServerConfig) -> int:
    """Run a server until a signal ends it; returns the exit status. What a user can mend is one line on stderr."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = _exit_status(runner, config)
        if status != FAILED:
            _exit_within(EXIT_SECONDS, status)
    return status


def _exit_status(runner: asyncio.Runner, config: ServerConfig) -> int:
    try:
        runner.run(run_server(config))
    except TandemError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return ENGINE_LOST if isinstance(error, EngineLostError) else FAILED
    except KeyboardInterrupt:  # before the signals were ours
        return 128 + signal.SIGINT
    return 0


def _exit_within(seconds: float, status: int) -> None:
    """End the process even if threads are still busy with texts that nobody waits for any more."""
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()


async def run_server(config: ServerConfig) -> None:
    """Serve until SIGTERM or SIGINT, or until cancelled.

    Raises:
        ConfigError: an option cannot be honoured, such as a port that is taken.
        CheckpointError, EngineDeadError: the model cannot be loaded.
        EngineLostError: the engine has died too often.
    """
    listener = open_listener(config)
    try:
        metrics_listener = open_metrics_listener(config)
        try:
            await _Server(config, listener, metrics_listener).run()
        finally:
            if metrics_listener is not None:
                metrics_listener.close()
    finally:
        listener.close()


class _Server:
    """One server while it lives."""

    def __init__(self, config: ServerConfig, listener: Listener, metrics_listener: Listener | None) -> None:
        from server.operations.logs import configure_logging
        from server.state import ServerState

        configure_logging(config)
        self._config = config
        self._listener = listener
        self._metrics_listener = metrics_listener
        self._state: ServerState = ServerState(config)
        self._supervisor: Supervisor | None = None
        self._web: uvicorn.Server | None = None
        self._metrics_server: MetricsServer | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """From the engine's start to its end."""
        with self._signals():
            engine = asyncio.create_task(self._run_engine())
            draining = asyncio.create_task(self._drain())
            try:
                await self._listen(engine)
            finally:
                for task in (engine, draining):
                    task.cancel()
                await asyncio.gather(engine, draining, return_exceptions=True)
                if self._metrics_server is not None:
                    self._metrics_server.close()
                if self._state.batches is not None:
                    await self._state.batches.close()
                if self._state.client is not None:
                    await self._state.client.close()
                if self._supervisor is not None:
                    await self._supervisor.close()
                self._state.close()

    async def _listen(self, engine: asyncio.Task[None]) -> None:
        """Answer requests until asked to stop, or until the model turns out to be unusable."""
        self._web = await asyncio.to_thread(_create_web, self._config, self._state)
        assert self._state.batches is not None
        self._state.batches.resume()
        if engine.done():
            engine.result()
        await self._serve_metrics()
        self._announce()
        serving = asyncio.create_task(self._web.serve([self._listener.socket]))
        try:
            await asyncio.wait((serving, engine), return_when=asyncio.FIRST_COMPLETED)
            if not self._stopping.is_set() and engine.done():
                engine.result()
            await asyncio.shield(serving)
        finally:
            self._web.should_exit = True
            await serving

    async def _run_engine(self) -> None:
        """Load the model, and end by an error once there is no engine any more."""
        from server.loading import load_model, start_engine

        resolved, self._supervisor = await start_engine(self._state)
        await load_model(self._state, resolved)
        why = await self._supervisor.wait_dead()
        await self._until_idle(LAST_WRITES_SECONDS)
        raise EngineLostError(why)

    async def _serve_metrics(self) -> None:
        if self._metrics_listener is not None:
            from server.operations.metrics_port import MetricsServer

            listener, config = self._metrics_listener, self._config
            self._metrics_server = await MetricsServer.start(self._state.metrics, listener, config.http_timeout)
            where = address(msgspec.structs.replace(config, ssl_certfile=None, ssl_keyfile=None), listener)
            logger.info("Metrics at %s/metrics", where)

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
        if self._supervisor is not None:
            self._supervisor.kill()
        self._listener.remove_file()
        os._exit(128 + number)

    async def _drain(self) -> None:
        """After the first signal: let open requests finish, then take the engine away from those that have not.

        Clients that do not read their last bytes lose them.
        """
        await self._stopping.wait()
        state = self._state
        state.draining = True
        await self._until_idle(self._config.shutdown_timeout)
        if state.has_open_work and state.client is not None:
            await state.client.close()
            await self._until_idle(LAST_WRITES_SECONDS)
        while self._web is None:
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        if state.num_requests:
            self._drop_connections(self._web)
        self._web.should_exit = True

    async def _until_idle(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._state.has_open_work and loop.time() < deadline:
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    def _drop_connections(self, web: uvicorn.Server) -> None:
        """End what is left; tasks, too, lest they go on to make all that the connections have held up."""
        connections, tasks = list(web.server_state.connections), list(web.server_state.tasks)
        logger.warning("Closing %d connections whose clients do not take their answers", len(connections))
        for connection in connections:
            if connection.transport is not None:
                connection.transport.abort()
        for task in tasks:
            task.cancel()


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
        _quiet_at_the_end(create_app(state), state),
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


def _quiet_at_the_end(app: ASGIApp, state: ServerState) -> ASGIApp:
    """Leave cancellations out of the log once the connections of a draining server are dropped."""

    async def quiet(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            if not state.draining:
                raise

    return quiet
