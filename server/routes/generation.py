"""The way that all generating routes go: capacity, body, prompts, engine, events, dialect."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.config import MAX_CHOICES
from server.dialects.dialect import Answer, Context, Dialect, WholeWriter
from server.http.streaming import EVENTS, EventStream, StreamForm, unless_gone
from server.intake.body import ignored_headers, read_body, served_model, state_of
from server.intake.capacity import Reservation
from server.intake.job import Job
from server.intake.pool import SHORT_BYTES
from server.middleware.gate import BATCH, OWNER
from server.operations.logs import log_request
from server.operations.recorders import Recorders
from server.schemas.parse import BodyParser, Checked
from server.state import LoadedModel, ServerState
from tandem.engine import EngineRequest
from tandem.errors import RequestError
from tandem.generation.generation import Generation


class Generating(Checked, Protocol):
    """What a body of any dialect says of how it is to be answered."""

    @property
    def model(self) -> str | None:
        """The name that the client gives the model."""
        ...

    @property
    def stream(self) -> bool | None:
        """Whether events are wanted."""
        ...

    @property
    def request_id(self) -> str | None:
        """The end of the answer's id, if the client chooses it."""
        ...


R = TypeVar("R", bound=Generating)
TRACE_HEADERS = ("traceparent", "tracestate")  # of W3C's Trace Context


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request whose body has just been read, with what it holds of the server's capacity.

    Attributes:
        owner: whose key it came with; empty where none is needed.
        trace: headers that say to which trace it belongs, if it does.
        is_batch: it is a line of a batch.
    """

    state: ServerState
    model: LoadedModel
    reservation: Reservation
    time: float
    path: str
    owner: str
    trace: dict[str, str]
    body: bytearray
    is_batch: bool = False


async def arrive(http: Request, answer: Callable[[Arrival], Coroutine[Any, Any, Response]]) -> Response:
    """Reserve capacity for a request, read its body, and let it be answered for as long as its client is there."""
    arrival_time = time.monotonic()
    state = state_of(http)
    model = state.require_model()
    reservation = state.capacity.reserve(choices=1)
    try:
        body = await read_body(http, reservation)
        owner = http.scope.get(OWNER, "")
        trace = {name: http.headers[name] for name in TRACE_HEADERS if name in http.headers}
        is_batch = BATCH in http.scope
        arrival = Arrival(state, model, reservation, arrival_time, http.url.path, owner, trace, body, is_batch)
        return await unless_gone(http.receive, answer(arrival))
    except BaseException:
        reservation.release()
        raise


@dataclass(frozen=True, slots=True)
class Started(Generic[R]):
    """A request that the engine works on. Whoever has it aborts the generation when nobody wants it any more."""

    arrival: Arrival
    request: R
    generation: Generation
    context: Context
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Family(Generic[R]):
    """What tells one generating API from another.

    Attributes:
        count: choices of a request, known before its prompts are read.
        prepare: makes a job of a request; may take long, and is done in a thread.
        deliver: answers with what is generated.
        prompt_field: to blame for a prompt that is more than the server takes.
        count_field: to blame for more choices than the server takes.
        runs_templates: ``prepare`` may take long whatever the body's size.
        repeats_body: ``prepare`` works on all of the body for each choice.
        id_prefix: what the answer's id begins with.
        kinds: ``object`` of a whole answer and of a chunk.
        at_once: the answer to a request that asks for no text, given the model's name; None for all others.
    """

    parser: BodyParser[R]
    count: Callable[[R], int]
    prepare: Callable[[Arrival, R], Job]
    deliver: Callable[[Started[R]], Awaitable[Response]]
    id_prefix: str
    kinds: tuple[str, str]
    prompt_field: str = "prompt"
    count_field: str = "n"
    runs_templates: bool = False
    repeats_body: bool = False
    at_once: Callable[[R, str], Response | None] = lambda request, name: None

    async def respond(self, http: Request) -> Response:
        """Answer a request; each step on the way may refuse it."""
        return await arrive(http, self.answer)

    async def answer(self, arrival: Arrival) -> Response:
        """Answer one whose body has been read."""
        state, size = arrival.state, len(arrival.body)
        request, ignored = await state.pool.run(size, self.parser.parse, arrival.body)
        headers = ignored_headers(arrival.path, ignored)
        name = served_model(state, request.model)
        if (response := self.at_once(request, name)) is not None:
            arrival.reservation.release()
            return response
        if (count := self.count(request)) > MAX_CHOICES:
            raise RequestError(f"prompts times n must be at most {MAX_CHOICES}", self.count_field)
        with blaming(self.count_field):
            arrival.reservation.hold(choices=count)
        effort = size * count if self.repeats_body else size
        effort = max(effort, SHORT_BYTES) if self.runs_templates else effort
        job = await state.pool.run(effort, self.prepare, arrival, request)
        answer_id = f"{self.id_prefix}{request.request_id or uuid.uuid4().hex}"
        if state.config.enable_log_requests:
            await state.pool.run(effort, log_request, state, answer_id, job.prompts, job.sampling)
        await state.until_resumed()
        common = {
            "id": answer_id,
            "object": self.kinds[bool(request.stream)],
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": arrival.model.fingerprint,
        }
        generation = self._start(arrival, job, common)
        context = Context(arrival.model, job, common, generation.choices, state.config.response_role)
        return await self.deliver(Started(arrival, request, generation, context, headers))

    def _start(self, arrival: Arrival, job: Job, common: dict[str, Any]) -> Generation:
        """Hand a job to the engine. From here on the generation holds the capacity."""
        state, reservation = arrival.state, arrival.reservation
        with blaming(self.prompt_field):
            reservation.hold(tokens=sum(len(prompt.token_ids) for prompt in job.prompts), body_bytes=0)
        arrival.body.clear()
        recorders = Recorders(state, job, common, arrival.trace, arrival.time)
        requests = [after_clients(request) for request in job.requests] if arrival.is_batch else job.requests
        if state.config.salt_prefix_cache_by_key:
            requests = [
                msgspec.structs.replace(request, cache_salt=f"{arrival.owner}{request.cache_salt}")
                for request in requests
            ]
        generation = arrival.model.generator.start(requests, recorders.observe, job.reading, job.search)
        recorders.begin(generation)
        generation.add_done_callback(lambda _: reservation.release())
        state.track(generation)
        return generation


def after_clients(request: EngineRequest) -> EngineRequest:
    """A batch's request: where the engine looks at priorities, it runs after all others, in the batch's own order."""
    return msgspec.structs.replace(request, priority=2**62 + request.priority // 2)


@contextmanager
def blaming(field: str) -> Iterator[None]:
    """A refusal within is because of this field."""
    try:
        yield
    except RequestError as error:
        raise RequestError(str(error), field, error.code) from error


def in_dialect(
    dialect: Callable[[Context, R], Dialect], form: StreamForm = EVENTS
) -> Callable[[Started[R]], Awaitable[Response]]:
    """Answers of a dialect, whole or streamed as ``form`` says, that live as long as their connection."""

    async def deliver(started: Started[R]) -> Response:
        state, generation, headers = started.arrival.state, started.generation, started.headers
        writer = dialect(started.context, started.request)
        if started.request.stream:
            return await EventStream(generation, writer, state.pool, headers, form).wait()
        return await _whole(started, writer)

    return deliver


def as_whole(
    writer: Callable[[Context, R], WholeWriter],
) -> Callable[[Started[R]], Awaitable[Response]]:
    """Answers that are never streamed."""

    async def deliver(started: Started[R]) -> Response:
        return await _whole(started, writer(started.context, started.request))

    return deliver


async def _whole(started: Started[R], writer: WholeWriter) -> Response:
    state, generation = started.arrival.state, started.generation
    answer = Answer(len(started.context.job.requests))
    try:
        async for events in generation:
            answer.add(events)
    finally:
        generation.abort()
    body = await state.pool.run(answer.size, writer.whole, answer)
    return Response(body, headers=started.headers, media_type="application/json")
