"""Routes that change what the server does: only with ``--enable-dev-mode`` (or VLLM_SERVER_DEV_MODE=1).

Those that take profiles are there with ``--profiler-config``. Names and shapes are those of vLLM's development mode.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.dialects.dialect import encode_json
from server.intake.body import read_body, state_of
from server.openapi import describe, queries
from server.responses.paging import number
from server.schemas.control import CollectiveCall
from server.schemas.parse import BodyParser
from server.state import ServerState
from tandem import __version__
from tandem.errors import EngineLoadingError, RequestError
from tandem.process.client import CALL_SECONDS, EngineClient

SECRETS = frozenset({"api_keys", "ssl_keyfile", "engine_address"})
router = APIRouter(tags=["control"])
profile_router = APIRouter(tags=["control"])  # with --profiler-config

COLLECTIVE = BodyParser(CollectiveCall, refusals={})


@router.post(
    "/pause",
    summary="Begin no further generation; requests wait until /resume.",
    **queries(mode={"enum": ["abort", "wait"], "default": "abort"}),
)
async def pause(request: Request) -> Response:
    """``mode``: ``abort`` what is in flight, or ``wait`` until it has ended."""
    mode = request.query_params.get("mode", "abort")
    if mode not in ("abort", "wait"):
        raise RequestError("mode must be abort or wait", "mode")
    await state_of(request).pause(aborts=mode == "abort")
    return _answer({"status": "paused"})


@router.post("/resume", summary="Take up generation again.")
async def resume(request: Request) -> Response:
    """Any number of times."""
    state_of(request).resume()
    return _answer({"status": "resumed"})


@router.get("/is_paused", summary="Whether generation is paused.")
async def is_paused(request: Request) -> Response:
    """Answers ``{"is_paused"}``."""
    return _answer({"is_paused": state_of(request).is_paused})


@router.post(
    "/sleep",
    summary="Free the cache (level 1), and the weights too (level 2).",
    **queries(level={"type": "integer", "minimum": 1, "maximum": 2, "default": 1}),
)
async def sleep(request: Request) -> Response:
    """Unfinished requests wait."""
    level = number(request.query_params, "level", 1, 1, 2)
    await _client(state_of(request)).call("sleep", level)
    return Response(status_code=200)


@router.post("/wake_up", summary="Take the memory again and go on.")
async def wake_up(request: Request) -> Response:
    """Weights and cache together: ``tags`` that ask for one of them are refused."""
    if request.query_params.getlist("tags"):
        raise RequestError("tags: weights and cache wake up together", "tags", "unsupported_parameter")
    await _client(state_of(request)).call("wake_up")
    return Response(status_code=200)


@router.get("/is_sleeping", summary="Whether the engine sleeps.")
async def is_sleeping(request: Request) -> Response:
    """Answers ``{"is_sleeping"}``."""
    return _answer({"is_sleeping": _client(state_of(request)).stats.is_asleep})


@router.post("/reset_prefix_cache", summary="Forget what was computed for earlier requests.")
async def reset_prefix_cache(request: Request) -> Response:
    """Unfinished requests keep what they hold."""
    await _client(state_of(request)).call("reset_prefix_cache")
    return Response(status_code=200)


@router.post("/collective_rpc", **describe(CollectiveCall, "An administrative call of the engine, by name."))
async def collective_rpc(request: Request) -> Response:
    """Answers ``{"results": [null]}``, an entry an engine: none of the calls returns anything."""
    state = state_of(request)
    with state.capacity.reserve() as reservation:
        call, _ = COLLECTIVE.parse(await read_body(request, reservation))
    try:
        await _client(state).call(call.method, *call.args, timeout=call.timeout or CALL_SECONDS)
    except TypeError as error:
        raise RequestError(f"args do not fit {call.method}", "args") from error
    return _answer({"results": [None]})


@profile_router.post("/start_profile", summary="Begin a profile of the engine's steps.")
async def start_profile(request: Request) -> Response:
    """One at a time; after ``max_iterations`` steps it ends by itself."""
    await _client(state_of(request)).call("start_profile")
    return Response(status_code=200)


@profile_router.post("/stop_profile", summary="End the profile and write it to a file.")
async def stop_profile(request: Request) -> Response:
    """Answers once the file is written; the engine does nothing else meanwhile."""
    await _client(state_of(request)).call("stop_profile")
    return Response(status_code=200)


@router.get("/server_info", summary="The configuration, without secrets, and what the engine is.")
async def server_info(request: Request) -> Response:
    """For people who look for a fault."""
    state = state_of(request)
    config = msgspec.to_builtins(state.config)
    shown = {name: value for name, value in config.items() if name not in SECRETS}
    engine = None if state.model is None else msgspec.to_builtins(state.model.info)
    return _answer({"version": __version__, "config": shown, "engine": engine})


def _client(state: ServerState) -> EngineClient:
    if state.client is None:
        raise EngineLoadingError("the engine has not been started yet")
    return state.client


def _answer(body: dict[str, Any]) -> Response:
    return Response(encode_json(body), media_type="application/json")
