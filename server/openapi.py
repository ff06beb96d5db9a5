"""The description of the API at ``/openapi.json``: bodies are parsed by msgspec, so their schemas come from there."""

from __future__ import annotations

from types import UnionType
from typing import Any, get_args

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.schemas.batches import BatchRequest
from server.schemas.chat import ChatRequest
from server.schemas.completions import CompletionRequest
from server.schemas.conversations import ConversationRequest, ConversationUpdate, ItemsRequest
from server.schemas.decisions import DecisionsRequest, SystemOneRequest
from server.schemas.generate import TokensRequest
from server.schemas.messages import CountRequest, MessagesRequest
from server.schemas.ollama import OllamaChat, OllamaGenerate, OllamaShow
from server.schemas.responses import InputTokensRequest, ResponsesRequest
from server.schemas.scoring import ScoringRequest
from server.schemas.tokens import DetokenizeRequest, TokenizeRequest
from tandem import __version__

BODIES = (
    ChatRequest,
    CompletionRequest,
    MessagesRequest,
    CountRequest,
    OllamaChat,
    OllamaGenerate,
    OllamaShow,
    ResponsesRequest,
    InputTokensRequest,
    ConversationRequest,
    ConversationUpdate,
    ItemsRequest,
    BatchRequest,
    TokenizeRequest,
    DetokenizeRequest,
    ScoringRequest,
    SystemOneRequest,
    DecisionsRequest,
    TokensRequest,
)
_REFERENCE = "#/components/schemas/{name}"
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
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": "string"},
    },
}


_OLLAMA_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


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


def describe(body: type | UnionType, summary: str, error_name: str = "Error") -> dict[str, Any]:
    """Arguments of a route whose body is the struct ``body`` or one of several, and whose errors have that schema."""
    bodies = [{"$ref": _REFERENCE.format(name=struct.__name__)} for struct in get_args(body) or (body,)]
    schema = bodies[0] if len(bodies) == 1 else {"anyOf": bodies}
    error = {"content": {"application/json": {"schema": {"$ref": _REFERENCE.format(name=error_name)}}}}
    request = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    return {
        "summary": summary,
        "openapi_extra": request,
        "responses": {
            400: {"description": "The request is refused; the message or `param` names the field.", **error}
        },
    }


def install_openapi(app: FastAPI) -> None:
    """Make ``app.openapi`` include the bodies."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _build(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(
        title=app.title,
        version=__version__,
        routes=app.routes,
        description="An OpenAI-compatible API. `null` means *not given* in every field of a request.",
    )
    _, components = msgspec.json.schema_components(BODIES, ref_template=_REFERENCE)
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(components, Error=_ERROR, AnthropicError=_ANTHROPIC_ERROR, OllamaError=_OLLAMA_ERROR)
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"key": []}]
    return schema
