"""``/v1/batches``. Wire format: the Batch API of OpenAI's published API."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.dialects.dialect import encode_json
from server.files.batches import Batches
from server.intake.body import ignored_headers, read_body, state_of
from server.middleware.gate import OWNER
from server.openapi import describe, queries
from server.responses.paging import listed, number
from server.schemas.openai.batches import BatchRequest
from server.schemas.parse import BodyParser

PARSER = BodyParser(BatchRequest, refusals={})
router = APIRouter(tags=["batches"])


@router.post(
    "/v1/batches", **describe(BatchRequest, "Answer the requests of a file, while no client needs the server.")
)
async def create_batch(request: Request) -> Response:
    """Answers at once; the batch tells how far it is."""
    state = state_of(request)
    with state.capacity.reserve() as reservation:
        body = await read_body(request, reservation)
        asked, ignored = await state.pool.run(len(body), PARSER.parse, body)
        batch = await _batches(request).create(_owner(request), asked)
        return _json(batch.wire, ignored_headers(request.url.path, ignored))


@router.get(
    "/v1/batches",
    summary="The batches, the newest first.",
    **queries(after={"type": "string"}, limit={"type": "integer", "minimum": 1, "maximum": 100}),
)
async def list_batches(request: Request) -> Response:
    """``after`` and ``limit`` say which."""
    query = request.query_params
    limit = number(query, "limit", 20, 1, 100)
    return _json(listed(_batches(request).page(_owner(request), limit, query.get("after"))))


@router.get("/v1/batches/{batch_id}", summary="How far a batch is.")
async def retrieve_batch(request: Request, batch_id: str) -> Response:
    """404 for one that is not there."""
    return _json(_batches(request).find(_owner(request), batch_id).wire)


@router.post("/v1/batches/{batch_id}/cancel", summary="End a batch early.")
async def cancel_batch(request: Request, batch_id: str) -> Response:
    """The answers that there are become its files."""
    return _json(await _batches(request).cancel(_owner(request), batch_id))


def _batches(request: Request) -> Batches:
    batches = state_of(request).batches
    assert batches is not None
    return batches


def _owner(request: Request) -> str:
    owner: str = request.scope.get(OWNER, "")
    return owner


def _json(fields: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(encode_json(fields), headers=headers, media_type="application/json")
