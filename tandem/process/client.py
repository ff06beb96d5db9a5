"""A front's end of an engine: hands over requests, hands out what they yield, judges the engine's health.

One message arrives per engine step and wakes the front once; each request's outputs go where its stream finds them.
Several clients, in several processes, may be connected to one engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import zmq

from tandem.engine import EngineInfo, EngineOutput, EngineRequest, EngineStats
from tandem.errors import (
    EngineDeadError,
    EngineDisconnectedError,
    EngineError,
    EngineLoadingError,
    EngineStalledError,
)
from tandem.process.inbox import Inbox
from tandem.process.messages import (
    METHODS,
    Abort,
    Add,
    Broken,
    Bye,
    Call,
    Failure,
    FrameError,
    FromEngine,
    Heartbeat,
    Hello,
    Probe,
    Reply,
    Step,
    StepBody,
    ToEngine,
    Welcome,
    decoder,
    encode,
    out_of_step,
)
from tandem.process.submission import pack
from tandem.process.supervisor import EngineStatus, State, Supervisor
from tandem.process.transport import Endpoint, connect

logger = logging.getLogger("tandem")

WATCH_SECONDS = 0.1
SILENCE_SECONDS = 1.5  # without a heartbeat; with WATCH_SECONDS and the heartbeat's own 0.2 s, noticed within 2 s
STALL_SECONDS = 60.0
PROBE_SECONDS = 1.0  # how soon a lost frame is noticed while requests are open, if no other follows it
HELLO_SECONDS = 1.0  # after which an engine that is ready and has not answered is greeted again
DISCONNECT_SECONDS = 0.2  # for a supervisor to say why a connection was lost
CALL_SECONDS = 600.0

_decode_header: Callable[[bytes], FromEngine] = decoder(FromEngine)
_decode_info: Callable[[bytes], EngineInfo] = decoder(EngineInfo)
_decode_step: Callable[[bytes], StepBody] = decoder(StepBody)
_decode_failure: Callable[[bytes], Failure] = decoder(Failure)
_decode_heartbeat: Callable[[bytes], Heartbeat] = decoder(Heartbeat)


class OutputStream:
    """What the engine yields for some requests; outputs that nobody has taken yet are taken together."""

    def __init__(self, client: EngineClient, request_ids: Iterable[str]) -> None:
        self._client = client
        self._open = set(request_ids)
        self._outputs: list[EngineOutput] = []
        self._error: EngineError | None = None
        self._news = asyncio.Event()
        self._listener: Callable[[], None] | None = None

    @property
    def finished(self) -> bool:
        """Whether all requests have ended and all has been taken; False while there is an error to raise."""
        return not self._open and not self._outputs and self._error is None

    def listen(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called, from the event loop, once for each step that brought something, and for an error.

        It takes what has come, and must not raise.
        """
        self._listener = listener

    def take(self) -> list[EngineOutput]:
        """All outputs since the last call, in order; possibly none.

        Raises:
            EngineError: all has been taken, and the engine, or the connection to it, was lost before the requests
                ended.
        """
        outputs, self._outputs = self._outputs, []
        if self._error is not None and not outputs:
            raise self._error
        return outputs

    async def next(self) -> list[EngineOutput]:
        """Wait for outputs; at least one. Call only while not ``finished``. Raises as ``take``."""
        while not (outputs := self.take()):
            self._news.clear()
            await self._news.wait()
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

    def _fail(self, error: EngineError) -> None:
        self._open.clear()
        self._error = error

    def _tell(self) -> None:
        """There is something to take."""
        self._news.set()
        if self._listener is not None:
            self._listener()


class EngineClient:
    """One client of an engine. Belongs to one event loop.

    Args:
        engine: the supervisor of an engine, or where an engine that somebody else supervises listens.
        stall_timeout: seconds of silence, or within one step, after which open requests fail and the supervisor
            replaces the engine; 0 for never.
        on_step: called once with the statistics of each step that brought this client something, or nobody anything.

    Attributes:
        identity: tells this client from all others, of any engine.
    """

    def __init__(
        self,
        engine: Supervisor | Endpoint,
        *,
        stall_timeout: float = STALL_SECONDS,
        on_step: Callable[[EngineStats], None] | None = None,
    ) -> None:
        self.identity = secrets.token_hex(8)
        self.on_step = on_step
        self._supervisor = engine if isinstance(engine, Supervisor) else None
        self._endpoint = engine.endpoint if isinstance(engine, Supervisor) else engine
        self._stall_timeout = stall_timeout
        self._status = EngineStatus("loading", "the model is being loaded")
        self._settled = asyncio.Event()  # ready or dead
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._num_steps = 0  # of which ``on_step`` knows
        self._incarnation = 0  # of the engine that has welcomed us
        self._streams: dict[str, OutputStream] = {}
        self._unsent: list[EngineRequest] = []  # since the event loop's last turn
        self._calls: dict[str, asyncio.Future[None]] = {}
        self._call_ids = map(str, count())
        self._session = self._sent = self._received = 0
        self._greeted = self._sent_at = 0.0
        self._last_sign = time.monotonic()
        self._step_seconds = 0.0
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
            EngineError: there is none yet, none now, or none any more.
        """
        self._require_ready()
        assert self._info is not None
        return self._info

    @property
    def stats(self) -> EngineStats:
        """As of the latest step; of all clients together."""
        return self._stats

    @property
    def salt(self) -> str:
        """Differs between the clients of one engine; empty for the one whose supervisor it is."""
        return "" if self._supervisor is not None else self.identity

    @property
    def num_unfinished(self) -> int:
        """Requests of this client that the engine still works on."""
        return len(self._streams)

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
        HTTP request begin in one step. Requests whose ``prompt_token_ids``, ``sampling`` and token sequences are the
        same objects share them on the wire and in the engine.

        Raises:
            EngineError: the engine cannot take them now; nothing was handed over.
        """
        self._require_ready()
        stream = OutputStream(self, [request.request_id for request in requests])
        for request in requests:
            self._streams[request.request_id] = stream
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._send_requests)
        self._unsent += requests
        return stream

    async def call(self, method: str, *arguments: Any, timeout: float = CALL_SECONDS) -> None:
        """Have the engine do one of ``METHODS`` between two steps: what ``Engine`` defines under the same name.

        ``start_profile`` and ``stop_profile`` are about the steps, and ``tandem.process.profiler``'s.

        Args:
            timeout: seconds after which nobody waits any more; the engine may still do it.

        Raises:
            ValueError: there is no such method.
            TandemError: what the engine raised, as the class it was there.
            EngineError: the engine cannot take calls now, is lost before it answers, or does not answer in time.
        """
        if method not in METHODS:
            raise ValueError(f"{method!r} is not one of {', '.join(METHODS)}")
        body = encode(METHODS[method](*arguments))
        self._require_ready()
        call_id = next(self._call_ids)
        answer = self._calls[call_id] = asyncio.get_running_loop().create_future()
        self._send(Call(*self._number(), call_id), body)
        try:
            await asyncio.wait_for(answer, timeout)
        except TimeoutError as error:
            raise EngineStalledError(f"the engine has not answered {method} within {timeout:g} s") from error
        finally:
            self._calls.pop(call_id, None)

    # ------------------------------------------------------------------ lifecycle

    async def start(self) -> None:
        """Connect; returns at once, whether or not the engine is there yet."""
        where, context = self._endpoint, zmq.Context[zmq.Socket[bytes]]()
        self._context = context
        self._heartbeats = connect(context, zmq.SUB, where.heartbeats, where.secret)
        self._socket = connect(context, zmq.DEALER, where.requests, where.secret, self.identity)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._last_sign = time.monotonic()
        self._inbox = Inbox(self._socket, self._on_frames)
        self._others = Inbox(self._heartbeats, self._on_heartbeat_frame), Inbox(self._monitor, self._on_disconnected)
        self._greet()
        self._watching = asyncio.create_task(self._watch())
        if self._supervisor is not None:
            self._supervisor.subscribe(self._on_supervisor)
            self._on_supervisor(self._supervisor.status)

    async def close(self) -> None:
        """Disconnect; open requests fail and the engine drops them. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        for inbox in (self._inbox, *self._others):
            inbox.close()
        self._fail(EngineDeadError("the server is shutting down"))
        self._set("dead", "the server is shutting down")
        self._send(Bye(*self._number()))
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close(linger=200)
        self._heartbeats.close()
        self._context.term()

    # ------------------------------------------------------------------ sending

    def _number(self) -> tuple[int, int]:
        """Session and sequence of the next frame, after what was submitted before."""
        self._send_requests()
        return self._session, self._sent

    def _send(self, header: ToEngine, *bodies: bytes) -> None:
        self._sent += 1
        self._sent_at = time.monotonic()
        self._socket.send_multipart([encode(header), *bodies])  # queued at once; there is no limit to wait for
        self._inbox.look()

    def _send_requests(self) -> None:
        if not self._unsent:
            return
        requests, self._unsent = self._unsent, []
        packed = pack(requests)
        if packed.prompts:
            header = Add(self._session, self._sent, len(packed.shared), packed.request_ids)
            self._send(header, *packed.shared, *packed.prompts)
        self._deliver(
            EngineOutput(
                request_id, [], finish_reason="error", error=f"the request cannot be sent to the engine: {why}"
            )
            for request_id, why in packed.refused.items()
        )

    def _abort(self, request_ids: set[str]) -> None:
        known = [request_id for request_id in request_ids if self._streams.pop(request_id, None) is not None]
        if known and not self._closing:
            self._send(Abort(*self._number(), known))

    def _greet(self) -> None:
        """Begin a session; the engine drops what is left of the one before."""
        self._unsent.clear()
        self._session += 1
        self._sent = self._received = 0
        self._greeted = time.monotonic()
        self._send(Hello(self._session, 0))

    # ------------------------------------------------------------------ receiving

    def _on_frames(self, frames: list[bytes]) -> None:
        header_frame, *bodies = frames
        try:
            header = _decode_header(header_frame)
        except FrameError:
            self._break("sent a frame that cannot be read")
            return
        if header.session == self._session:
            self._handle(header, bodies)

    def _handle(self, header: FromEngine, bodies: list[bytes]) -> None:
        self._last_sign = time.monotonic()
        if isinstance(header, Broken):
            self._break(header.reason)
            return
        if header.sequence != self._received:
            self._break(out_of_step(self._received, header.sequence))
            return
        self._received += 1
        match header:
            case Welcome():
                self._on_welcome(header, b"".join(bodies))
            case Step():
                self._on_step(header, b"".join(bodies))
            case Reply():
                self._on_reply(header, b"".join(bodies))

    def _on_welcome(self, header: Welcome, body: bytes) -> None:
        try:
            self._info = _decode_info(body)
        except FrameError as error:
            logger.error("The engine does not say what it is: %s", error)
            return
        if header.incarnation != self._incarnation:
            self._num_steps = 0
        self._incarnation = header.incarnation
        self._greeted = 0.0
        self._step_seconds = 0.0
        self._set("ready", "the engine is ready")

    def _on_step(self, header: Step, body: bytes) -> None:
        try:
            step = _decode_step(body)
            if len(step.outputs) != len(header.request_ids):
                raise FrameError("it does not hold as many outputs as it says")
        except FrameError as error:
            self._fail_unreadable(header.request_ids, error)
            return
        self._stats = step.stats
        self._deliver(step.outputs)
        if self.on_step is not None and step.stats.num_steps != self._num_steps:
            self._num_steps = step.stats.num_steps
            self.on_step(step.stats)

    def _on_reply(self, header: Reply, body: bytes) -> None:
        answer = self._calls.get(header.call_id)
        if answer is None or answer.done():
            return
        try:
            failure = _decode_failure(body) if body else None
        except FrameError as error:
            failure = Failure("EngineError", f"the engine's answer cannot be read: {error}")
        if failure is None:
            answer.set_result(None)
        else:
            answer.set_exception(failure.error)

    def _fail_unreadable(self, request_ids: list[str], error: FrameError) -> None:
        reason = f"an output of the engine cannot be read: {error}"
        logger.error("%s", reason)
        open_ids = [request_id for request_id in request_ids if request_id in self._streams]
        if open_ids:
            self._send(Abort(*self._number(), open_ids))
        self._deliver([EngineOutput(i, [], finish_reason="error", error=reason) for i in open_ids])

    def _deliver(self, outputs: Iterable[EngineOutput]) -> None:
        """Hand out what came together, and only then tell: whoever is told may submit and abort."""
        told: dict[OutputStream, None] = {}
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is None:  # aborted while the output was on its way
                continue
            if output.finish_reason is not None:
                del self._streams[output.request_id]
            stream._put(output)
            told[stream] = None
        for stream in told:
            stream._tell()

    # ------------------------------------------------------------------ losing the engine, or the connection to it

    def _break(self, reason: str) -> None:
        """The session is over; another begins at once. ``reason`` completes "the connection to the engine …"."""
        if self._closing:
            return
        error = EngineDisconnectedError(f"the connection to the engine {reason}; its open requests have failed")
        logger.error("%s", error)
        self._fail(error)
        self._greet()

    def _fail(self, error: EngineError) -> None:
        """Fail all that is open."""
        streams, self._streams = set(self._streams.values()), {}
        calls, self._calls = self._calls, {}
        for answer in calls.values():
            if not answer.done():
                answer.set_exception(error)
        self._unsent.clear()
        for stream in streams:
            stream._fail(error)
        for stream in streams:
            stream._tell()

    def _on_supervisor(self, status: EngineStatus) -> None:
        """The engine's process has died, or is there again, which only its welcome makes certain."""
        if self._closing or status.state not in ("restarting", "dead"):
            return
        self._set(status.state, status.detail)
        self._stats = EngineStats()
        self._fail(EngineDeadError(status.detail))
        if status.state == "restarting":
            self._greet()  # waits in the socket for the next engine

    def _on_disconnected(self, _: list[bytes]) -> None:
        """Tell an engine that has vanished from one that is silent."""
        was_welcome = not self._greeted
        asyncio.get_running_loop().call_later(DISCONNECT_SECONDS, self._check_connection, self._session, was_welcome)

    def _check_connection(self, session: int, was_welcome: bool) -> None:
        is_welcome_since = not was_welcome and not self._greeted  # over the next connection, then
        is_lost = session == self._session and not is_welcome_since
        if is_lost and self._status.state in ("ready", "unhealthy"):
            self._break("was lost")
            self._set("unhealthy", "the connection to the engine was lost")

    # ------------------------------------------------------------------ health

    def _on_heartbeat_frame(self, frames: list[bytes]) -> None:
        with contextlib.suppress(FrameError):  # no request depends on it, and silence will be noticed
            self._on_heartbeat(_decode_heartbeat(b"".join(frames)))

    def _on_heartbeat(self, heartbeat: Heartbeat) -> None:
        if heartbeat.incarnation < self._incarnation:
            return  # of an engine that is gone
        now = self._last_sign = time.monotonic()
        self._step_seconds = heartbeat.step_seconds
        is_unanswered = self._greeted and now - self._greeted > HELLO_SECONDS
        if is_unanswered and heartbeat.is_ready and not self._streams and not self._calls:
            self._greet()  # the last greeting may have gone to an engine that was about to vanish
        if self._status.state == "loading":
            self._set("loading", f"the model is being loaded: {heartbeat.loaded:.0%} of the weights")
        elif self._incarnation and heartbeat.incarnation > self._incarnation and not self._greeted:
            self._break("belonged to an engine that has been restarted")
        elif heartbeat.incarnation == self._incarnation and self._status.state != "restarting":
            self._stats = heartbeat.stats

    async def _watch(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(WATCH_SECONDS)
            now = time.monotonic()
            if now - before > WATCH_SECONDS + SILENCE_SECONDS / 2:
                self._last_sign = now  # this process was itself held up; the engine's signs are still in the socket
            self._judge(now)
            if (self._streams or self._calls) and now - self._sent_at > PROBE_SECONDS:
                self._send(Probe(*self._number()))

    def _judge(self, now: float) -> None:
        if self._status.state not in ("ready", "unhealthy"):
            return
        silence = now - self._last_sign
        if self._stall_timeout and max(silence, self._step_seconds) > self._stall_timeout:
            if silence > self._stall_timeout:
                self._on_stall(f"has sent no heartbeat for {silence:.1f} s")
            else:
                self._on_stall(f"has been stuck in a step for {self._step_seconds:.1f} s")
        elif silence > SILENCE_SECONDS:
            self._set("unhealthy", f"the engine has sent no heartbeat for {silence:.1f} s")
        elif self._status.state == "unhealthy" and not self._greeted:
            logger.warning("The engine answers again")
            self._set("ready", "the engine is ready")

    def _on_stall(self, why: str) -> None:
        """Fail what is open and have the engine replaced; where nobody can, it may come back."""
        self._set("unhealthy", f"the engine {why}")
        if self._streams or self._calls:
            self._fail(EngineStalledError(f"the engine {why}; its open requests have failed"))
            self._greet()
        if self._supervisor is not None:
            self._supervisor.replace(why)

    # ------------------------------------------------------------------ status

    def _set(self, state: State, detail: str) -> None:
        if state == "unhealthy" != self._status.state:
            logger.error("%s", detail)
        self._status = EngineStatus(state, detail)
        if state in ("ready", "dead"):
            self._settled.set()

    def _require_ready(self) -> None:
        match self._status.state:
            case "loading" | "restarting":
                raise EngineLoadingError(self._status.detail)
            case "unhealthy":
                raise EngineStalledError(self._status.detail)
            case "dead":
                raise EngineDeadError(self._status.detail)
