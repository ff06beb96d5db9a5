"""Strict types of answers, made from the models of the ``openai`` and ``anthropic`` packages.

Those models are lenient: every optional field may be null in them. The published schemas are not. Here a field may be
null only where the published schema says so (``NULLABLE``), what it requires must be there (``REQUIRED``), and enums
hold. Fields that the schema does not know are allowed, as clients ignore them.

One check a form of answer demands all of that; the others, which are about something else, demand what the packages'
models do, so that one stray null is one failure.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import anthropic.types as anthropic_types
import jsonschema
import openai.types as openai_types
import openai.types.chat as chat_types
import openai.types.responses as responses_types
from pydantic import TypeAdapter

from .requirement import Violation

Json = dict[str, Any]

# Fields that may be null, by the name of the model that has them. "*": all optional ones.
_USAGE_DETAILS: dict[str, set[str]] = {"CompletionTokensDetails": set(), "PromptTokensDetails": set()}
_CHAT_LOGPROBS = {
    "ChoiceLogprobs": {"content", "refusal"},
    "ChatCompletionTokenLogprob": {"bytes"},
    "TopLogprob": {"bytes"},
}
_ITEMS = {
    "ResponseOutputMessage": {"phase"},
    "ResponseFunctionToolCall": {"caller"},
    "ResponseReasoningItem": {"encrypted_content"},
    "Reasoning": {"*"},
}
NULLABLE: dict[str, dict[str, set[str]]] = {
    "chat": {
        "ChatCompletion": {"service_tier"},
        "Choice": {"logprobs"},
        "ChatCompletionMessage": {"content", "refusal", "audio"},
        **_CHAT_LOGPROBS,
        **_USAGE_DETAILS,
    },
    "chat chunk": {
        "ChatCompletionChunk": {"service_tier", "usage"},
        "Choice": {"logprobs", "finish_reason"},
        "ChoiceDelta": {"content", "refusal"},
        **_CHAT_LOGPROBS,
        **_USAGE_DETAILS,
    },
    "completion": {"CompletionChoice": {"logprobs"}, **_USAGE_DETAILS},
    # OpenAI's own streams of completions have a null finish_reason until the end
    "completion chunk": {
        "Completion": {"usage"},
        "CompletionChoice": {"logprobs", "finish_reason"},
        **_USAGE_DETAILS,
    },
    "embeddings": {},
    "model": {},
    "file": {"FileObject": {"expires_at", "status_details"}},
    # OpenAI's own batches have null in every optional field
    "batch": {"Batch": {"*"}, "BatchError": {"*"}},
    "decision": {"*": {"name"}},
    # OpenAI's own answers have null in every optional field of the response itself
    "response": {"Response": {"*"}, **_ITEMS},
    "response event": {
        "Response": {"*"},
        **_ITEMS,
        "ResponseErrorEvent": {"code", "param"},
    },
    # Anthropic's schema writes nearly every optional field as null
    "message": {"*": {"*"}},
    "message event": {"*": {"*"}},
}
# Fields that must be there although the packages' models have a default for them.
REQUIRED: dict[str, dict[str, set[str]]] = {
    "chat": {
        "Choice": {"logprobs"},
        "ChatCompletionMessage": {"content", "refusal"},
        "ChoiceLogprobs": {"content", "refusal"},
        "ChatCompletionTokenLogprob": {"bytes"},
        "TopLogprob": {"bytes"},
    },
    "chat chunk": {"Choice": {"finish_reason"}, "ChatCompletionTokenLogprob": {"bytes"}, "TopLogprob": {"bytes"}},
    "completion": {"CompletionChoice": {"logprobs"}},
    "response": {"Response": {"error", "incomplete_details", "instructions", "metadata", "temperature", "top_p"}},
    "message": {"Message": {"stop_reason", "stop_sequence"}},
}
# The published schema requires it and gives it no null: until a choice ends nothing at all fits, so both are taken.
OPTIONAL: dict[str, dict[str, set[str]]] = {"completion chunk": {"CompletionChoice": {"finish_reason"}}}
_MODELS: dict[str, Any] = {
    "chat": chat_types.ChatCompletion,
    "chat chunk": chat_types.ChatCompletionChunk,
    "completion": openai_types.Completion,
    "completion chunk": openai_types.Completion,
    "embeddings": openai_types.CreateEmbeddingResponse,
    "model": openai_types.Model,
    "file": openai_types.FileObject,
    "batch": openai_types.Batch,
    "decision": openai_types.Decision,
    "response": responses_types.Response,
    "response event": responses_types.ResponseStreamEvent,
    "message": anthropic_types.Message,
    "message event": anthropic_types.RawMessageStreamEvent,
}


def validate(kind: str, value: Any, strict: bool = True) -> None:
    """Hold an answer to its strict type.

    Args:
        kind: one of ``NULLABLE``'s keys.
        strict: if false, to what the packages' models demand: the null of an optional field may be there or not.

    Raises:
        Violation: it does not fit; the message names the place.
    """
    for_type = value.get("type") if isinstance(value, dict) and kind.endswith(" event") else None
    validator = _validator(kind, for_type, strict)
    error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    if error is not None:
        place = error.json_path.removeprefix("$.") if error.absolute_path else "the answer"
        raise Violation(f"expected a valid {kind}; {place}: {error.message[:300]}")


def is_valid(schema: Json, value: Any) -> bool:
    """Whether a value fits a schema of a request."""
    return bool(_strict(schema).is_valid(value))


@functools.cache
def _validator(kind: str, event_type: str | None, strict: bool) -> Any:
    schema = _tightened(kind) if strict else _adapter(kind).json_schema()
    definitions: Json = schema.get("$defs", {})
    if kind.endswith(" event"):
        # a union is told apart by its type: only then does an error say which field is wrong
        found = [name for name, definition in definitions.items() if _is_event(definition, event_type)]
        if not found:
            raise Violation(f"expected a known event, got type {event_type!r}")
        schema = {"$ref": f"#/$defs/{found[0]}", "$defs": definitions}
    return _strict(schema)


def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(_MODELS[kind])


@functools.cache
def _tightened(kind: str) -> Json:
    """The strict schema of one kind of answer."""
    schema = _adapter(kind).json_schema()
    for name, definition in [*schema.get("$defs", {}).items(), (schema.get("title", ""), schema)]:
        _tighten(kind, name, definition)
    return schema


def _is_event(definition: Json, event_type: str | None) -> bool:
    wanted = definition.get("properties", {}).get("type", {}).get("const")
    return event_type is not None and wanted == event_type and definition["title"].endswith("Event")


def _tighten(kind: str, name: str, definition: Json) -> None:
    """Take null from where the published schema has none, and require what it requires; in place."""
    nullable = NULLABLE[kind]
    name = name.rpartition("__")[2]
    own = nullable.get(name, nullable.get("*", set()))
    properties = definition.get("properties", {})
    for field, schema in properties.items():
        options = schema.get("anyOf")
        if field in own and "null" not in str(options):
            properties[field] = {"anyOf": [schema, {"type": "null"}]}
        if options and {"type": "null"} in options and field not in own and "*" not in own:
            schema["anyOf"] = [option for option in options if option != {"type": "null"}]
    extra = REQUIRED.get(kind, {}).get(name, set())
    optional = OPTIONAL.get(kind, {}).get(name, set())
    definition["required"] = sorted({*definition.get("required", []), *extra} - optional)


def _strict(schema: Json) -> Any:
    """A validator for which 1.0 is no integer and true is no number."""
    base = jsonschema.Draft202012Validator
    is_integer: Callable[[Any, Any], bool] = lambda _, value: type(value) is int  # noqa: E731
    checker = base.TYPE_CHECKER.redefine("integer", is_integer)
    return jsonschema.validators.extend(base, type_checker=checker)(schema)
