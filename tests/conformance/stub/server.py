"""A server that does everything right, or one thing wrong.

``http://host/v1`` is the clean one; ``http://host/wrong/NAME/v1`` has the fault ``NAME`` (spaces as "-", several
joined by "+"). ``tests/conformance/faults.py`` lists them. Every request needs the key ``KEY``.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from typing import Any

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from tests.conformance.stub import files
from tests.conformance.stub.chat import chat
from tests.conformance.stub.completions import complete
from tests.conformance.stub.decisions import decision
from tests.conformance.stub.embeddings import embed
from tests.conformance.stub.fields import BadField
from tests.conformance.stub.files import Route
from tests.conformance.stub.language import SchemaError
from tests.conformance.stub.messages import anthropic_message
from tests.conformance.stub.responses import response
from tests.conformance.stub.state import CONTEXT, MODEL, faults, state, wrong
from tests.conformance.stub.tokens import count_tokens, detokenize, tokenize

KEY = "the-key"
ROUTES: dict[str, Route] = {
    "/v1/chat/completions": chat,
    "/v1/completions": complete,
    "/v1/embeddings": embed,
    "/v1/decisions": decision,
    "/v1/responses": response,
    "/v1/messages": anthropic_message,
    "/v1/messages/count_tokens": count_tokens,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}


class Stub:
    """The server in a thread, on a port that the system picks."""

    def __init__(self) -> None:
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> Stub:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Faults, ids and CORS around the routes."""
    path = scope["path"]
    names: frozenset[str] = frozenset()
    if path.startswith("/wrong/"):
        _, _, joined, path = path.split("/", 3)
        names, path = frozenset(joined.replace("-", " ").split("+")), "/" + path
    faults.set(names)
    request = Request(scope, receive)
    try:
        answer = await route(request, path)
    except BadField as error:
        answer = refusal(error, path)
        if wrong("errors in streams"):
            answer = Response(b"data: " + answer.body + b"\n\n", 200, media_type="text/event-stream")
    except ClientDisconnect:
        return
    if not wrong("no request id"):
        answer.headers["x-request-id"] = uuid.uuid4().hex
    if wrong("closes connections"):
        answer.headers["connection"] = "close"
    if wrong("words for limits"):
        answer.headers["x-ratelimit-limit-requests"] = "many"
    if "origin" in request.headers and not (wrong("no cors for errors") and answer.status_code >= 400):
        answer.headers["access-control-allow-origin"] = "*"
        if wrong("credentials for all"):
            answer.headers["access-control-allow-credentials"] = "true"
    await answer(scope, receive, send)


def refusal(error: BadField, path: str) -> Response:
    """An error in OpenAI's shape, or Anthropic's on its routes."""
    status = 500 if wrong("500 on bad input") and error.status == 400 else error.status
    status = 422 if wrong("422") and status == 400 else status
    message = str(error)
    if wrong("leak"):
        message += ' File "/home/me/server.py", line 3'
    if path.startswith("/v1/messages") and not wrong("openai errors for anthropic"):
        kind = {404: "not_found_error", 401: "authentication_error"}.get(status, "invalid_request_error")
        return JSONResponse({"type": "error", "error": {"type": kind, "message": message}}, status)
    if wrong("html errors"):
        return Response("<h1>Not found</h1>", status, media_type="text/html")
    body = {"message": message, "type": "invalid_request_error", "param": error.param, "code": error.code}
    if wrong("error without param"):
        del body["param"]
    if wrong("param not named"):
        body["param"] = None
    if wrong("other error type"):
        body["type"] = "bad"
    headers = {"allow": "POST"} if status == 405 and not wrong("no allow") else {}
    return JSONResponse({"error": body}, status, headers)


async def route(request: Request, path: str) -> Response:
    """Method and path to an answer."""
    if wrong("no head") and request.method == "HEAD":
        raise BadField(None, "no HEAD", 405)
    if wrong("ids fail") and len(request.headers.get("x-request-id", "")) > 128:
        raise BadField(None, "internal error", 500)
    if wrong("forwarded header fails") and "x-forwarded-host" in request.headers:
        raise BadField(None, "internal error", 500)
    method = "GET" if request.method == "HEAD" else request.method
    if method == "OPTIONS":
        headers = {"access-control-allow-methods": "*" if not wrong("preflight") else "GET"}
        headers["access-control-allow-headers"] = "authorization, content-type"
        return Response(None, 204, headers)
    if path == "/health":
        return JSONResponse({"status": "healthy"}, 500 if wrong("unhealthy") else 200)
    keys = [value.removeprefix("Bearer ") for value in request.headers.getlist("authorization")]
    keys += request.headers.getlist("x-api-key")
    by_host = wrong("key by host") and "health" in request.headers.get("host", "")
    if KEY not in keys and not (wrong("any key") and any(keys)) and not by_host:
        raise BadField(None, "a key is needed", 401, "invalid_api_key")
    if path.startswith(("/v1/files", "/v1/batches")):
        return await files.answer(request, path, ROUTES)
    if method == "GET":
        return get(path.replace("//", "/") if by_host else path)
    if method == "DELETE" and path.startswith("/v1/responses/") and forget(path.rpartition("/")[2]):
        return JSONResponse({"deleted": True})
    if path not in ROUTES:
        is_known = path == "/v1/models" and method != "POST"
        raise BadField(None, "no such route", 405 if is_known else 404, "unknown_url")
    if method != "POST":
        raise BadField(None, "use POST", 405, "method_not_allowed")
    return await post(request, path)


def forget(name: str) -> bool:
    """Delete a stored response; whether there was one."""
    return name in state.stored if wrong("not deleted") else state.stored.pop(name, None) is not None


def get(path: str) -> Response:
    """Models, metrics, load, stored responses."""
    models = [{"id": name, "object": "model", "created": 1700000000, "owned_by": "me"} for name in (MODEL, "alias")]
    for entry in models:
        entry["max_model_len"] = CONTEXT
        if wrong("created float"):
            entry["created"] = 1700000000.5
        if wrong("no owner"):
            del entry["owned_by"]
    if wrong("double name"):
        models.append(models[0])
    if path == "/v1/models":
        return JSONResponse({"object": "models" if wrong("list object") else "list", "data": models})
    if path.startswith("/v1/models/"):
        found = [entry for entry in models if entry["id"] == path.removeprefix("/v1/models/")]
        if wrong("any model"):
            found = found or models
        if not found or wrong("no retrieve"):
            raise BadField(None, "no such model", 404, "model_not_found")
        return JSONResponse(found[0])
    if path == "/metrics":
        text = "# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total "
        text += f'{0 if wrong("metrics do not count") else state.generated}\n# TYPE a gauge\na{{b="c"}} 1.0\n'
        if wrong("metrics"):
            text += "a{b=c} 1.0\n"
        return Response(text, media_type="text/plain; version=0.0.4")
    if path == "/load":
        return JSONResponse({"server_load": state.running})
    if path.startswith("/v1/responses/") and (stored := state.stored.get(path.rpartition("/")[2])):
        return JSONResponse(stored)
    if path in ("/v1/chat/completions", "/v1/completions"):
        raise BadField(None, "use POST", 405, "method_not_allowed")
    raise BadField(None, "no such route", 404, "unknown_url")


async def post(request: Request, path: str) -> Response:
    """Body to answer."""
    kind = request.headers.get("content-type", "")
    if not wrong("exact content type"):
        kind = kind.partition(";")[0].strip().lower()
    if kind != "application/json" and not wrong("any content type"):
        raise BadField(None, "send application/json", 415, "unsupported_media_type")
    if int(request.headers.get("content-length", "0")) > 2**25 and not wrong("any length"):
        raise BadField(None, "the body is too large", 413, "request_too_large")
    data = await request.body()
    try:
        body = json.loads(data.decode("utf-8"), parse_constant=lambda name: 1 / 0)
        if not isinstance(body, dict):
            raise ValueError("not an object")
        if wrong("null character") and "\0" in str(body.get("messages", [{}])[0].get("content")):
            raise BadField(None, "internal error", 500)
        json.dumps(body, ensure_ascii=False).encode()  # a lone surrogate is no text
    except (ValueError, ZeroDivisionError, RecursionError):
        raise BadField(None, "the body is not a JSON object", 500 if wrong("500 on bad JSON") else 400) from None
    if wrong("unknown field refused") and "no_such_field" in body:
        raise BadField(None, "unknown", 500)
    if body.get("model", MODEL) not in (MODEL, "alias") and isinstance(body["model"], str) and not wrong("any name"):
        raise BadField("model", "no such model", 404, "model_not_found")
    try:
        return await ROUTES[path](request, body)
    except SchemaError as error:
        raise BadField("response_format", str(error), 500 if wrong("500 on schema") else 400) from error
