"""What routes answer, as JSON schemas of ``/openapi.json``; the dialects write it.

A form lists what is always there. Wire formats: those of the routes.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_OBJECT: Schema = {"type": "object"}
_OBJECTS: Schema = {"type": "array", "items": _OBJECT}
_USAGE: Schema = {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT}


def _form(**properties: Schema) -> Schema:
    """An object that has all of these."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _listed(**properties: Schema) -> Schema:
    return {"type": "array", "items": _form(**properties)}


_GENERATED = {"id": _TEXT, "created": _COUNT, "model": _TEXT, "usage": _form(**_USAGE)}
_READ = {"usage": _form(input_tokens=_COUNT, output_tokens=_COUNT)}
_PAGE = _form(object={"const": "list"}, data=_OBJECTS, first_id=_TEXT, last_id=_TEXT, has_more=_FLAG)
_RESPONSE = _form(id=_TEXT, object={"const": "response"}, status=_TEXT, output=_OBJECTS, model=_TEXT)
_CONVERSATION = _form(id=_TEXT, object={"const": "conversation"}, created_at=_COUNT, metadata=_OBJECT)
_DELETED = _form(id=_TEXT, object=_TEXT, deleted={"const": True})
_FILE = _form(id=_TEXT, object={"const": "file"}, bytes=_COUNT, created_at=_COUNT, filename=_TEXT, purpose=_TEXT)
_BATCH = _form(
    id=_TEXT, object={"const": "batch"}, endpoint=_TEXT, input_file_id=_TEXT, status=_TEXT, created_at=_COUNT
)
_LISTED = _form(object={"const": "list"}, data=_OBJECTS, has_more={"type": "boolean"})
_MODEL = _form(id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT)
_HEALTH = _form(status=_TEXT)
_VERSION = _form(version=_TEXT)
_OLLAMA = _form(model=_TEXT, created_at=_TEXT, done={"const": True}, done_reason=_TEXT)

# (method, path) -> the answer with status 200; None where it has no body
ANSWERS: dict[tuple[str, str], Schema | None] = {
    ("post", "/v1/chat/completions"): _form(
        object={"const": "chat.completion"},
        choices=_listed(index=_COUNT, message=_form(role=_TEXT), finish_reason=_TEXT),
        **_GENERATED,
    ),
    ("post", "/v1/completions"): _form(
        object={"const": "text_completion"},
        choices=_listed(index=_COUNT, text=_TEXT, finish_reason=_TEXT),
        **_GENERATED,
    ),
    ("post", "/v1/messages"): _form(
        id=_TEXT,
        type={"const": "message"},
        role={"const": "assistant"},
        model=_TEXT,
        content=_listed(type=_TEXT),
        usage=_form(input_tokens=_COUNT, output_tokens=_COUNT),
    ),
    ("post", "/v1/messages/count_tokens"): _form(input_tokens=_COUNT),
    ("post", "/v1/responses"): _RESPONSE,
    ("post", "/v1/responses/input_tokens"): _form(object={"const": "response.input_tokens"}, input_tokens=_COUNT),
    ("get", "/v1/responses/{response_id}"): _RESPONSE,
    ("delete", "/v1/responses/{response_id}"): _DELETED,
    ("post", "/v1/responses/{response_id}/cancel"): _RESPONSE,
    ("get", "/v1/responses/{response_id}/input_items"): _PAGE,
    ("post", "/v1/conversations"): _CONVERSATION,
    ("get", "/v1/conversations/{conversation_id}"): _CONVERSATION,
    ("post", "/v1/conversations/{conversation_id}"): _CONVERSATION,
    ("delete", "/v1/conversations/{conversation_id}"): _DELETED,
    ("get", "/v1/conversations/{conversation_id}/items"): _PAGE,
    ("post", "/v1/conversations/{conversation_id}/items"): _PAGE,
    ("get", "/v1/conversations/{conversation_id}/items/{item_id}"): _form(id=_TEXT, type=_TEXT),
    ("delete", "/v1/conversations/{conversation_id}/items/{item_id}"): _CONVERSATION,
    ("post", "/generative_scoring"): _form(
        object={"const": "list"}, data=_listed(index=_COUNT, object={"const": "score"}, score=_NUMBER), **_GENERATED
    ),
    ("post", "/v1/systemone"): _form(
        id=_TEXT, object={"const": "structured_decision"}, created=_COUNT, model=_TEXT, answers=_OBJECT, **_READ
    ),
    ("post", "/v1/decisions"): _form(model=_TEXT, answers=_listed(type=_TEXT), **_READ),
    ("post", "/inference/v1/generate"): _form(
        request_id=_TEXT, model=_TEXT, choices=_listed(index=_COUNT, finish_reason=_TEXT), usage=_form(**_USAGE)
    ),
    ("post", "/invocations"): _form(id=_TEXT, object=_TEXT, model=_TEXT),
    ("get", "/tokenizer_info"): _form(tokenizer_class=_TEXT),
    ("post", "/v1/files"): _FILE,
    ("get", "/v1/files"): _LISTED,
    ("get", "/v1/files/{file_id}"): _FILE,
    ("delete", "/v1/files/{file_id}"): _DELETED,
    ("get", "/v1/files/{file_id}/content"): None,
    ("post", "/v1/batches"): _BATCH,
    ("get", "/v1/batches"): _LISTED,
    ("get", "/v1/batches/{batch_id}"): _BATCH,
    ("post", "/v1/batches/{batch_id}/cancel"): _BATCH,
    ("get", "/v1/models"): _form(object={"const": "list"}, data={"type": "array", "items": _MODEL}),
    ("get", "/v1/models/{model}"): _MODEL,
    ("post", "/tokenize"): _form(count=_COUNT, max_model_len=_COUNT, tokens={"type": "array", "items": _COUNT}),
    ("post", "/detokenize"): _form(prompt=_TEXT),
    ("get", "/health"): _HEALTH,
    ("get", "/ping"): _HEALTH,
    ("post", "/ping"): _HEALTH,
    ("get", "/version"): _VERSION,
    ("get", "/load"): _form(server_load=_COUNT, num_requests_running=_COUNT, num_requests_waiting=_COUNT),
    ("post", "/pause"): _form(status={"const": "paused"}),
    ("post", "/resume"): _form(status={"const": "resumed"}),
    ("get", "/is_paused"): _form(is_paused=_FLAG),
    ("post", "/sleep"): None,
    ("post", "/wake_up"): None,
    ("get", "/is_sleeping"): _form(is_sleeping=_FLAG),
    ("post", "/reset_prefix_cache"): None,
    ("post", "/collective_rpc"): _form(results={"type": "array", "items": {"type": "null"}}),
    ("get", "/server_info"): _form(version=_TEXT, config=_OBJECT, engine={"type": ["object", "null"]}),
    ("post", "/start_profile"): None,
    ("post", "/stop_profile"): None,
    ("post", "/api/chat"): _OLLAMA,
    ("post", "/api/generate"): _OLLAMA,
    ("post", "/api/show"): _form(template=_TEXT, details=_OBJECT, model_info=_OBJECT),
    ("get", "/api/tags"): _form(models=_listed(name=_TEXT, model=_TEXT, size=_COUNT, digest=_TEXT)),
    ("get", "/api/ps"): _form(models=_listed(name=_TEXT, model=_TEXT, size=_COUNT, digest=_TEXT)),
    ("get", "/api/version"): _VERSION,
}
# further media types of the answer with status 200: what is streamed, and bytes as they are
STREAMED = {
    ("post", "/v1/chat/completions"): "text/event-stream",
    ("post", "/v1/completions"): "text/event-stream",
    ("post", "/v1/messages"): "text/event-stream",
    ("post", "/v1/responses"): "text/event-stream",
    ("get", "/v1/responses/{response_id}"): "text/event-stream",
    ("get", "/v1/files/{file_id}/content"): "application/octet-stream",
    ("post", "/inference/v1/generate"): "text/event-stream",
    ("post", "/invocations"): "text/event-stream",
    ("post", "/api/chat"): "application/x-ndjson",
    ("post", "/api/generate"): "application/x-ndjson",
}
METRICS = ("get", "/metrics")

_RESPONSE_ID = {"response_id": "$response.body#/id"}
_CONVERSATION_ID = {"conversation_id": "$response.body#/id"}
_ITEM_IDS = {"conversation_id": "$request.path.conversation_id", "item_id": "$response.body#/data/0/id"}
_KEPT = "/v1/conversations/{conversation_id}"
# path of a POST -> the operations that take what it answers with, and from where
LINKS: dict[str, dict[tuple[str, str], dict[str, str]]] = {
    "/v1/responses": {
        ("get", "/v1/responses/{response_id}"): _RESPONSE_ID,
        ("delete", "/v1/responses/{response_id}"): _RESPONSE_ID,
        ("post", "/v1/responses/{response_id}/cancel"): _RESPONSE_ID,
        ("get", "/v1/responses/{response_id}/input_items"): _RESPONSE_ID,
    },
    "/v1/conversations": {
        ("get", _KEPT): _CONVERSATION_ID,
        ("post", _KEPT): _CONVERSATION_ID,
        ("delete", _KEPT): _CONVERSATION_ID,
        ("get", _KEPT + "/items"): _CONVERSATION_ID,
        ("post", _KEPT + "/items"): _CONVERSATION_ID,
    },
    _KEPT + "/items": {
        ("get", _KEPT + "/items/{item_id}"): _ITEM_IDS,
        ("delete", _KEPT + "/items/{item_id}"): _ITEM_IDS,
    },
}
