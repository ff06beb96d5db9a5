"""``/v1/responses``. Wire format: the Responses API of OpenAI's published API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.dialects.dialect import encode_json
from server.errors import ApiError
from server.http.streaming import EventStream, unless_gone
from server.intake.body import ignored_headers, read_body, served_model, state_of
from server.intake.pool import SHORT_BYTES
from server.intake.prompts import chat_prompt
from server.middleware.gate import OWNER
from server.openapi import describe, queries
from server.responses.journal import Journal, Written, unpack
from server.responses.paging import FLAG, FLAGS, PAGING, Paging, flag, listed, number
from server.responses.run import MAX_BACKGROUND, Run
from server.responses.turn import ResponseJob, count_tokens, gather, response_job
from server.routes.generation import Arrival, Family, Started
from server.schemas.openai.responses import REFUSED, InputTokensRequest, ResponsesRequest
from server.schemas.parse import BodyParser
from server.schemas.unsupported import UNSUPPORTED
from server.state import LoadedModel, ServerState
from tandem.errors import RequestError

PARSER = BodyParser(ResponsesRequest, {**UNSUPPORTED, **REFUSED})
COUNT_PARSER = BodyParser(InputTokensRequest, {**UNSUPPORTED, **REFUSED})
PREFIX = "resp_"
T = TypeVar("T")
router = APIRouter(tags=["responses"])


@router.post("/v1/responses", **describe(ResponsesRequest, "Answer items: whole, as a stream, or in the background."))
async def create_response(request: Request) -> Response:
    """One response, kept unless ``store`` is false."""
    return await FAMILY.respond(request)


@router.post("/v1/responses/input_tokens", **describe(InputTokensRequest, "How many tokens a prompt would have."))
async def count_input_tokens(request: Request) -> Response:
    """Answers ``{"object", "input_tokens"}``."""
    state = state_of(request)
    model, owner = state.require_model(), request.scope.get(OWNER, "")
    with state.capacity.reserve() as reservation:
        body = await read_body(request, reservation)

        async def answer() -> Response:
            asked, ignored = await state.pool.run(len(body), COUNT_PARSER.parse, body)
            headers = ignored_headers(request.url.path, ignored)
            served_model(state, asked.model)
            count = await state.pool.run_in_thread(len(body), _count, state, model, owner, asked, len(body))
            return _json({"object": "response.input_tokens", "input_tokens": count}, headers)

        return await unless_gone(request.receive, answer())


@router.get(
    "/v1/responses/{response_id}",
    summary="A response; with `stream=true` its events, from the beginning.",
    **queries(
        stream=FLAG,
        starting_after={"type": "integer", "minimum": 0, "maximum": 2**53},
        include_obfuscation={"enum": [name for name, value in FLAGS.items() if not value]},
    ),
)
async def retrieve_response(request: Request, response_id: str) -> Response:
    """Events are kept of responses that were streamed or made in the background."""
    state, owner = state_of(request), request.scope.get(OWNER, "")
    query = request.query_params
    start = number(query, "starting_after", -1, 0, 2**53) + 1
    if flag(query, "include_obfuscation"):
        raise RequestError("there is no obfuscation", "include_obfuscation", "unsupported_parameter")
    if not flag(query, "stream"):
        if start:
            raise RequestError("starting_after needs stream=true", "starting_after")
        return _json(await _response(state, owner, response_id))
    if (run := _running(state, owner, response_id)) is not None and run.request.background:
        reader = run.read(start)
    else:
        reader = (await _journal(state, owner, response_id)).read(start)
    return await unless_gone(request.receive, EventStream(reader, Written(), state.pool, {}).wait())


@router.delete("/v1/responses/{response_id}", summary="Forget a response.")
async def delete_response(request: Request, response_id: str) -> Response:
    """One that is still being made ends."""
    state, owner = state_of(request), request.scope.get(OWNER, "")
    run = _running(state, owner, response_id)
    if run is not None and run.request.background:
        run.stop("forget")
        await run.settled()  # lest it be kept a moment later
    if not await _stored(state, lambda: state.store.delete(owner, "response", response_id)):
        raise _not_found(response_id)
    return _json({"id": response_id, "object": "response", "deleted": True})


@router.post("/v1/responses/{response_id}/cancel", summary="End a response that is made in the background.")
async def cancel_response(request: Request, response_id: str) -> Response:
    """The response as far as it came; one that has ended stays as it is."""
    state, owner = state_of(request), request.scope.get(OWNER, "")
    if (run := _running(state, owner, response_id)) is not None and run.request.background:
        run.stop("cancel")
        await run.settled()
    response = await _response(state, owner, response_id)
    if not response["background"]:
        raise RequestError("only a response made in the background can be cancelled", "response_id")
    return _json(response)


@router.get(
    "/v1/responses/{response_id}/input_items", summary="The items that a response answers.", **queries(**PAGING)
)
async def list_input_items(request: Request, response_id: str) -> Response:
    """Those of the conversation before it included."""
    state, owner = state_of(request), request.scope.get(OWNER, "")
    paging = Paging.of(request.query_params)
    page = await _stored(
        state,
        lambda: state.store.page(owner, "response", response_id, paging.limit, paging.newest_first, paging.after),
    )
    if page is None:
        raise _not_found(response_id)
    return _json(listed(page))


def _prepare(arrival: Arrival, request: ResponsesRequest) -> ResponseJob:
    state = arrival.state
    turn = gather(state.store, arrival.owner, request, len(arrival.body))
    if request.request_id is not None and request.stored:
        response_id = PREFIX + request.request_id
        if _is_taken(state, arrival.owner, response_id):
            raise RequestError(f"there is a response {response_id!r} already", "request_id")
    return response_job(arrival.model, state.config, request, turn, arrival.time)


def _is_taken(state: ServerState, owner: str, response_id: str) -> bool:
    return (owner, response_id) in state.runs or state.store.body(owner, "response", response_id) is not None


async def _deliver(started: Started[ResponsesRequest]) -> Response:
    """The run is the generation's owner from here on; its client, if anybody, is the run's."""
    arrival, request = started.arrival, started.request
    state = arrival.state
    run = Run(state, arrival.owner, request, started.context, started.generation)
    try:
        if request.background:
            _check_background(state)
            await run.keep_begun()
        run.start()
    except BaseException:
        started.generation.abort()
        raise
    if request.stream:
        return await EventStream(run.read(), Written(), state.pool, started.headers).wait()
    if not request.background:
        try:
            await run.wait()
        except BaseException:
            run.stop("forget")
            raise
    body = await state.pool.run(run.size, lambda: encode_json(run.response))
    return Response(body, headers=started.headers, media_type="application/json")


def _check_background(state: ServerState) -> None:
    if sum(bool(run.request.background) for run in state.runs.values()) >= MAX_BACKGROUND:
        message = f"at most {MAX_BACKGROUND} responses are made in the background at once"
        raise ApiError(429, message, "server_overloaded", "background", {"retry-after": "1"})


def _count(state: ServerState, model: LoadedModel, owner: str, request: InputTokensRequest, size: int) -> int:
    turn = gather(state.store, owner, request, size)
    role = state.config.response_role
    return count_tokens(request, turn, lambda chat: len(chat_prompt(model, chat, None, role).token_ids))


def _running(state: ServerState, owner: str, response_id: str) -> Run | None:
    run = state.runs.get((owner, response_id))
    return run if run is not None and run.request.stored else None


async def _response(state: ServerState, owner: str, response_id: str) -> dict[str, Any]:
    if (run := _running(state, owner, response_id)) is not None and run.request.background:
        return run.response
    body = await _stored(state, lambda: state.store.body(owner, "response", response_id))
    if body is None:
        raise _not_found(response_id)
    return body


async def _journal(state: ServerState, owner: str, response_id: str) -> Journal:
    """The events of a response that has ended."""

    def load() -> list[bytes] | None:
        data = state.store.journal(owner, response_id)
        return None if data is None else unpack(data)

    await _response(state, owner, response_id)
    blocks = await _stored(state, load)
    if blocks is None:
        raise RequestError("the events of this response were not kept: it was not streamed", "stream")
    journal = Journal()
    journal.add(blocks)
    journal.close()
    return journal


async def _stored(state: ServerState, work: Callable[[], T]) -> T:
    """Done in a thread: it may wait for a disk."""
    return await state.pool.run_in_thread(SHORT_BYTES, work)


def _not_found(response_id: str) -> ApiError:
    return ApiError(404, f"Response with id {response_id!r} not found.", "response_not_found", "response_id")


def _json(fields: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(encode_json(fields), headers=headers, media_type="application/json")


FAMILY = Family(
    PARSER,
    count=lambda request: 1,
    prepare=_prepare,
    deliver=_deliver,
    id_prefix=PREFIX,
    kinds=("response", "response"),
    prompt_field="input",
    runs_templates=True,
)
