"""The stub's files and batches: a batch is answered when it is asked about."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.conformance.stub.fields import BadField
from tests.conformance.stub.state import Json, wrong

Route = Callable[[Request, Json], Awaitable[Response]]
_files: dict[str, tuple[Json, bytes]] = {}
_batches: dict[str, Json] = {}
TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


async def answer(request: Request, path: str, routes: Mapping[str, Route]) -> Response:
    """Whatever is below these paths."""
    method, parts = request.method, path.removeprefix("/v1/").split("/")
    match method, parts:
        case "POST", ["files"]:
            return JSONResponse(await upload(request))
        case "GET", ["files"]:
            files = [file for file, _ in reversed(_files.values())]
            return page(request, files)
        case "GET", ["files", name]:
            return JSONResponse(find(_files, name)[0])
        case "GET", ["files", name, "content"]:
            data = find(_files, name)[1]
            return Response(data.replace(b"\r\n", b"\n") if wrong("line ends") else data)
        case "DELETE", ["files", name]:
            find(_files, name)
            if not wrong("file not deleted"):
                del _files[name]
            return JSONResponse({"id": name, "object": "file", "deleted": True})
        case "POST", ["batches"]:
            return JSONResponse(create(await request.json(), routes))
        case "GET", ["batches"]:
            return page(request, list(_batches.values()) if wrong("oldest first") else [*reversed(_batches.values())])
        case "GET", ["batches", name]:
            batch = find(_batches, name)
            await finish(request, batch, routes)
            return JSONResponse(batch)
        case "POST", ["batches", name, "cancel"]:
            batch = find(_batches, name)
            batch["status"] = "in_progress" if wrong("cancel ignored") else "cancelling"
            return JSONResponse(batch)
    raise BadField(None, "no such route", 404, "unknown_url")


def find(kept: dict[str, Any], name: str) -> Any:
    """Or 404."""
    if name not in kept:
        if wrong("unknown is empty"):
            return ({}, b"") if kept is _files else {"status": "completed"}
        raise BadField("id", "there is none", 404)
    return kept[name]


def page(request: Request, items: list[Json]) -> Response:
    """A part of a list."""
    limit, after = int(request.query_params.get("limit", 20)), request.query_params.get("after")
    ids = [item["id"] for item in items]
    start = ids.index(after) + (not wrong("after included")) if after in ids else 0
    part = items[start : start + limit]
    return JSONResponse({"object": "list", "data": part, "has_more": start + limit < len(items)})


async def upload(request: Request) -> Json:
    """A form to a file."""
    form = await request.form()
    file, purpose = form.get("file"), form.get("purpose")
    if purpose != "batch" and not wrong("any purpose"):
        raise BadField("purpose", "no such purpose")
    data = await file.read()  # type: ignore[union-attr]
    return keep(data, file.filename or "", str(purpose))  # type: ignore[union-attr]


def keep(data: bytes, name: str, purpose: str) -> Json:
    """A file of these bytes."""
    file = {
        "id": f"file-{uuid.uuid4().hex}", "object": "file", "bytes": len(data) + wrong("bytes off"), "filename": name,
        "created_at": int(time.time()), "purpose": purpose, "status": "processed",
    }  # fmt: skip
    _files[str(file["id"])] = file, data
    return file


def create(body: Json, routes: Mapping[str, Route]) -> Json:
    """A batch that nothing has been done of."""
    if not wrong("any batch"):
        find(_files, body["input_file_id"])
        if body["endpoint"] not in routes or body["completion_window"] != "24h":
            raise BadField("endpoint", "no such route or window")
    batch = {
        **body,
        "id": f"batch_{uuid.uuid4().hex}", "object": "batch", "created_at": int(time.time()),
        "status": "started" if wrong("batch status") else "in_progress",
        "errors": None, "output_file_id": None, "error_file_id": None,
        "request_counts": {"total": 0, "completed": 0, "failed": 0}, **{f"{name}_at": None for name in TIMES},
    }  # fmt: skip
    _batches[str(batch["id"])] = batch
    return batch


async def finish(request: Request, batch: Json, routes: Mapping[str, Route]) -> None:
    """Answer all lines at once."""
    if batch["status"] == "cancelling":
        batch["status"] = "cancelled"
    if batch["status"] != "in_progress":
        return
    errors, requests, seen = [], [], set()
    for number, text in enumerate(_files[batch["input_file_id"]][1].decode().splitlines(), 1):
        try:
            line = json.loads(text)
            if line["custom_id"] in seen or line["url"] != batch["endpoint"]:
                raise ValueError(text)
            seen.add(line["custom_id"])
            requests.append(line)
        except ValueError:
            errors.append({"code": "invalid", "message": "no request", "line": number + wrong("lines from 0") * -1})
    if errors and not wrong("bad lines passed over"):
        batch |= {"status": "failed", "errors": {"object": "list", "data": errors}}
        return
    outputs: dict[str, list[Json]] = {"output": [], "error": []}
    for line in requests[wrong("first line lost") :]:
        try:
            done = await routes[line["url"]](request, line["body"])
            kind, status, body, error = "output", 200, json.loads(bytes(done.body)), None
            if wrong("batch shouts"):
                body["choices"][0]["message"]["content"] = body["choices"][0]["message"]["content"].upper() + "!"
        except BadField as refusal:
            kind, status, body, error = "error", 400, None, {"code": None, "message": str(refusal)}
        response = {"status_code": status, "request_id": "r", "body": body}
        result = {"id": "i", "custom_id": line["custom_id"], "response": response, "error": error}
        outputs["output" if wrong("one file for all") else kind].append(result)
    for kind, found in outputs.items():
        if found:
            data = "".join(json.dumps(result) + "\n" for result in found).encode()
            batch[f"{kind}_file_id"] = keep(data, "out.jsonl", "batch_output")["id"]
    counts = {"completed": len(outputs["output"]), "failed": len(outputs["error"]), "total": len(requests)}
    batch |= {"status": "completed", "request_counts": counts}
