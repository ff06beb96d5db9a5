"""The description of the API at ``/openapi.json``: bodies are parsed by msgspec, so their schemas come from there.

Every operation names each status that it can have. What is refused by the gate, the size of a body or the engine is
the same for all, and is added here.
"""

from __future__ import annotations

from types import UnionType
from typing import Any, get_args

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.schemas.answers import ANSWERS, LINKS, METRICS, STREAMED, Schema
from server.schemas.bodies import REFERENCE, body_schemas
from tandem import __version__

OPEN: dict[str, Any] = {"openapi_extra": {"security": []}}  # arguments of a route that needs no key
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


_ANTHROPIC_ERROR = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {
                "type": {"type": "string"},
                "message": {"type": "string"},
                "details": {"type": "object", "properties": {"error_code": {"type": "string"}}},
            },
        },
        "request_id": {"type": "string"},
    },
}


_OLLAMA_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


_REFUSALS = {
    "400": "The request is refused; the message or `param` names the field.",
    "401": "A key is needed.",
    "404": "There is no such model or object.",
    "429": "The server has as much to do as it takes; `Retry-After` says when to try again.",
    "500": "The request failed, or something unforeseen happened.",
    "503": "The model is being loaded, the engine is restarted, or the server ends.",
}
_BODY_REFUSALS = {
    "408": "The body took too long to arrive.",
    "413": "The body is larger than the server takes.",
    "415": "The body is no JSON, by its content type, or is compressed.",
}


_UPLOAD_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "a JSON line a request"},
        "purpose": {"type": "string", "enum": ["batch"]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
    },
}
UPLOAD = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _UPLOAD_FORM}}}}


def describe(body: type | UnionType, summary: str) -> dict[str, Any]:
    """Arguments of a route whose body is the struct ``body``, or one of several."""
    bodies = [{"$ref": REFERENCE.format(name=struct.__name__)} for struct in get_args(body) or (body,)]
    schema = bodies[0] if len(bodies) == 1 else {"anyOf": bodies}
    request = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    return {"summary": summary, "openapi_extra": request}


def queries(**schemas: Schema) -> dict[str, Any]:
    """Arguments of a route that reads these parameters of its address."""
    parameters = [{"name": name, "in": "query", "schema": schema} for name, schema in schemas.items()]
    return {"openapi_extra": {"parameters": parameters}}


def install_openapi(app: FastAPI) -> None:
    """Make ``app.openapi`` include the bodies."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _responses(method: str, path: str, operation: dict[str, Any]) -> dict[str, Any]:
    """All that an operation can answer, by status."""
    error = "AnthropicError" if path.startswith("/v1/messages") else "Error"
    if path.startswith("/api/"):
        error = "OllamaError"
    refusals = {**_REFUSALS, **(_BODY_REFUSALS if "requestBody" in operation else {})}
    if (method, path) == ("post", "/v1/batches/{batch_id}/cancel"):
        refusals["409"] = "The batch has ended."
    if operation.get("security") == []:
        del refusals["401"]
    found = {
        status: {"description": text, "content": _content({"$ref": REFERENCE.format(name=error)})}
        for status, text in sorted(refusals.items())
    }
    answer = ANSWERS.get((method, path), {})
    content = {} if answer is None else _content(answer)
    if (method, path) == METRICS:
        content = {"text/plain": {"schema": {"type": "string"}}}
    elif streamed := STREAMED.get((method, path)):
        content[streamed] = {"schema": {}}  # of events or lines, each an object
    if path in ("/health", "/ping"):
        found = {"503": {"description": "The reason why nothing is answered.", "content": content}}
    return {"200": {"description": "The answer.", "content": content}, **found}


def _content(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _link(paths: dict[str, Any]) -> None:
    """Say which operations take the ids that others answer with."""
    for source, targets in LINKS.items():
        links = paths[source]["post"]["responses"]["200"].setdefault("links", {})
        for (method, path), parameters in targets.items():
            operation_id = paths[path][method]["operationId"]
            links[operation_id] = {"operationId": operation_id, "parameters": parameters}


def _build(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(
        title=app.title,
        version=__version__,
        routes=app.routes,
        description="An OpenAI-compatible API. `null` means *not given* in every field of a request.",
    )
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's, which validates nothing here
        schemas.pop(unused, None)
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            operation["responses"] = _responses(method, path, operation)
    _link(schema["paths"])
    schemas.update(body_schemas(), Error=_ERROR, AnthropicError=_ANTHROPIC_ERROR, OllamaError=_OLLAMA_ERROR)
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"key": []}]
    return schema
