"""``/v1/files``. Wire format: the Files API of OpenAI's published API."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from server.dialects.dialect import encode_json
from server.files.form import read_upload
from server.intake.body import state_of
from server.intake.pool import SHORT_BYTES
from server.middleware.gate import OWNER
from server.openapi import UPLOAD, queries
from server.responses.paging import Paging, listed

MOST_LISTED = 10_000
router = APIRouter(tags=["files"])


@router.post("/v1/files", summary="Upload a file, such as the requests of a batch.", openapi_extra=UPLOAD)
async def create_file(request: Request) -> Response:
    """A form with ``file`` and ``purpose``, and perhaps ``expires_after``."""
    return _json((await read_upload(request, request.scope.get(OWNER, ""))).wire)


@router.get(
    "/v1/files",
    summary="The files, the newest first unless asked otherwise.",
    **queries(
        after={"type": "string"},
        limit={"type": "integer", "minimum": 1, "maximum": MOST_LISTED},
        order={"enum": ["asc", "desc"]},
        purpose={"type": "string"},
    ),
)
async def list_files(request: Request) -> Response:
    """``after``, ``limit``, ``order`` and ``purpose`` say which."""
    state, owner, query = state_of(request), request.scope.get(OWNER, ""), request.query_params
    paging = Paging.of(query, MOST_LISTED, MOST_LISTED)
    wanted = (owner, paging.limit, paging.newest_first, paging.after, query.get("purpose"))
    return _json(listed(await state.pool.run_in_thread(SHORT_BYTES, state.files.page, *wanted)))


@router.get("/v1/files/{file_id}", summary="What is known of a file.")
async def retrieve_file(request: Request, file_id: str) -> Response:
    """404 for one that is not there."""
    return _json(state_of(request).files.find(request.scope.get(OWNER, ""), file_id).wire)


@router.get("/v1/files/{file_id}/content", summary="A file's bytes.")
async def retrieve_content(request: Request, file_id: str) -> Response:
    """As they were uploaded, or as a batch has written them."""
    files = state_of(request).files
    file = files.find(request.scope.get(OWNER, ""), file_id)
    return FileResponse(files.path(file), media_type="application/octet-stream", filename=file.filename)


@router.delete("/v1/files/{file_id}", summary="Delete a file.")
async def delete_file(request: Request, file_id: str) -> Response:
    """A batch that has begun to read it reads on."""
    state, owner = state_of(request), request.scope.get(OWNER, "")
    await state.pool.run_in_thread(SHORT_BYTES, state.files.delete, owner, file_id)
    return _json({"id": file_id, "object": "file", "deleted": True})


def _json(fields: dict[str, Any]) -> Response:
    return Response(encode_json(fields), media_type="application/json")
