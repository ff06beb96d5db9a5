"""What balancers, dashboards and people ask of a server: health, version, load, metrics."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.dialects.dialect import encode_json
from server.intake.body import state_of
from server.openapi import OPEN
from server.operations.metrics_port import metrics_response
from server.state import ServerState
from tandem import __version__
from tandem.engine import EngineStats

router = APIRouter(tags=["operations"])


@router.get("/health/", include_in_schema=False)
@router.get("/health", summary="200 while requests are answered, else 503 with the reason.", **OPEN)
async def health(request: Request) -> Response:
    """Liveness and readiness in one."""
    return _health(state_of(request))


@router.get("/ping/", include_in_schema=False)
@router.get("/ping", summary="The same as /health.", **OPEN)
async def ping(request: Request) -> Response:
    """For platforms that expect this name."""
    return _health(state_of(request))


@router.post("/ping/", include_in_schema=False)
@router.post("/ping", summary="The same as /health.", **OPEN)
async def ping_post(request: Request) -> Response:
    """For platforms that expect this name and method."""
    return _health(state_of(request))


@router.get("/version/", include_in_schema=False)
@router.get("/version", summary="The server's version.", **OPEN)
async def version() -> Response:
    """Answers ``{"version"}``."""
    return Response(encode_json({"version": __version__}), media_type="application/json")


@router.get("/load", summary="How much the server has to do now.")
async def load(request: Request) -> Response:
    """``server_load`` counts other HTTP requests; the rest counts what the engine works on, and what waits for it."""
    state = state_of(request)
    if not state.config.enable_server_load_tracking:
        raise HTTPException(404)
    stats = state.client.stats if state.client else EngineStats()
    answer = {
        "server_load": state.num_requests - 1,
        "num_requests_running": stats.num_running,
        "num_requests_waiting": stats.num_waiting,
        "num_requests_unfinished": state.client.num_unfinished if state.client else 0,
    }
    return Response(encode_json(answer), media_type="application/json")


@router.get("/metrics/", include_in_schema=False)
@router.get("/metrics", summary="Prometheus metrics.", **OPEN)
async def metrics(request: Request) -> Response:
    """In the text format; 404 where they are served on a port of their own, or not at all."""
    state = state_of(request)
    if not state.config.enable_metrics or state.config.metrics_port is not None:
        raise HTTPException(404)
    return metrics_response(state.metrics)


def _health(state: ServerState) -> Response:
    health = state.health
    if health.state == "healthy":
        return Response(encode_json({"status": "healthy"}), media_type="application/json")
    body = encode_json({"status": health.state, "detail": health.detail})
    return Response(body, 503, media_type="application/json")
