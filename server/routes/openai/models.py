"""``GET /v1/models`` and ``GET /v1/models/{id}``. Wire format: ``Model`` of OpenAI's published API."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.dialects.dialect import encode_json
from server.intake.body import served_model, state_of
from server.state import ServerState

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="The names under which the model is served.")
async def list_models(request: Request) -> Response:
    """Known before the model is loaded."""
    state = state_of(request)
    models = [_model(state, name) for name in state.names]
    return Response(encode_json({"object": "list", "data": models}), media_type="application/json")


@router.get("/v1/models/{model:path}", summary="One of them; the name may hold slashes.")
async def retrieve_model(request: Request, model: str) -> Response:
    """404 for other names."""
    state = state_of(request)
    return Response(encode_json(_model(state, served_model(state, model))), media_type="application/json")


def _model(state: ServerState, name: str) -> dict[str, Any]:
    fields = {"id": name, "object": "model", "created": state.created, "owned_by": "tandem", "root": state.names[0]}
    if state.model is not None:
        fields["max_model_len"] = state.model.info.max_model_len
    return fields
