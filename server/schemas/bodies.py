"""What routes take, as JSON schemas of ``/openapi.json``: what msgspec knows of the structs, and what parsers add.

JSON Schema cannot say which fields contradict each other, nor what depends on the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from server.schemas.control import CollectiveCall
from server.schemas.openai.batches import BatchRequest
from server.schemas.openai.chat import ChatRequest
from server.schemas.openai.completions import CompletionRequest
from server.schemas.openai.conversations import ConversationRequest, ConversationUpdate, ItemsRequest
from server.schemas.openai.decisions import (
    DECISIONS_REFUSALS,
    NO_STREAM,
    SYSTEM_ONE_REFUSALS,
    DecisionsRequest,
    SystemOneRequest,
)
from server.schemas.openai.items import Item
from server.schemas.openai.responses import REFUSED, InputTokensRequest, ResponsesRequest
from server.schemas.tokens import DetokenizeRequest, TokenizeRequest
from server.schemas.unsupported import UNSUPPORTED, Refusals
from server.schemas.vendors.generate import GENERATE_REFUSALS, TokensRequest
from server.schemas.vendors.messages import REFUSALS, CountRequest, MessagesRequest
from server.schemas.vendors.ollama import (
    CHAT_REFUSALS,
    OPTION_REFUSALS,
    OllamaChat,
    OllamaGenerate,
    OllamaShow,
    Options,
)
from server.schemas.vendors.ollama import GENERATE_REFUSALS as OLLAMA_GENERATE_REFUSALS
from server.schemas.vendors.scoring import ScoringRequest

Schema = dict[str, Any]

REFERENCE = "#/components/schemas/{name}"
# struct -> the fields that its route refuses by name
BODIES: dict[type, Refusals] = {
    ChatRequest: UNSUPPORTED,
    CompletionRequest: UNSUPPORTED,
    MessagesRequest: REFUSALS,
    CountRequest: REFUSALS,
    OllamaChat: CHAT_REFUSALS,
    OllamaGenerate: OLLAMA_GENERATE_REFUSALS,
    OllamaShow: {},
    ResponsesRequest: {**UNSUPPORTED, **REFUSED},
    InputTokensRequest: {**UNSUPPORTED, **REFUSED},
    ConversationRequest: {},
    ConversationUpdate: {},
    ItemsRequest: {},
    BatchRequest: {},
    TokenizeRequest: {},
    DetokenizeRequest: {},
    ScoringRequest: NO_STREAM,
    SystemOneRequest: SYSTEM_ONE_REFUSALS,
    DecisionsRequest: DECISIONS_REFUSALS,
    TokensRequest: GENERATE_REFUSALS,
    CollectiveCall: {},
}
_NULL: Schema = {"type": "null"}


def body_schemas() -> dict[str, Schema]:
    """The components of the description, by name."""
    (*_, item, options), components = msgspec.json.schema_components((*BODIES, Item, Options), ref_template=REFERENCE)
    for body, refusals in BODIES.items():
        _add_refusals(components[body.__name__], refusals)
    components["Item"] = _item(item, components)
    _add_conditions(components)
    components["Options"]["additionalProperties"] = False
    _add_refusals(components["Options"], OPTION_REFUSALS)
    for body in (OllamaChat, OllamaGenerate):
        components[body.__name__]["properties"]["options"] = {"anyOf": [options, _NULL], "default": None}
    return components


def _add_conditions(components: dict[str, Schema]) -> None:
    """What ``check`` demands of fields together, as far as a schema can say it."""
    message = components["Message"]
    message["anyOf"] = _message_forms(message["properties"])
    tokenize = components["TokenizeRequest"]
    tokenize["anyOf"] = [
        _given(tokenize, "prompt", without=("messages",)),
        _given(tokenize, "messages", without=("prompt",)),
    ]
    for body in (components["ResponsesRequest"], components["InputTokensRequest"]):
        _array(body["properties"]["input"])["items"] = {"$ref": REFERENCE.format(name="Item")}
        body["anyOf"] = [
            _given(body, "input", without=("previous_response_id", "conversation")),
            _given(body, "previous_response_id", without=("conversation",)),
            _given(body, "conversation", without=("previous_response_id",)),
        ]


def _message_forms(fields: Schema) -> list[Schema]:
    """A message by its role (``check_messages``)."""
    content = {"anyOf": [{"type": "string"}, {**_array(fields["content"]), "minItems": 1}]}
    no_calls = {"tool_calls": {"anyOf": [{"type": "array", "maxItems": 0}, _NULL]}, "function_call": _NULL}
    others = [role for role in fields["role"]["enum"] if role not in ("assistant", "tool")]

    def form(roles: list[str], /, **needed: Schema) -> Schema:
        return {"required": ["role", *needed], "properties": {"role": {"enum": roles}, **no_calls, **needed}}

    return [
        form(others, content=content),
        form(["tool"], content=content, tool_call_id={"type": "string"}),
        form(["assistant"], content=content),
        form(["assistant"], refusal={"type": "string"}),
        form(["assistant"], tool_calls={"type": "array", "minItems": 1}),
        form(["assistant"], function_call={"type": "object"}),
    ]


def _array(field: Schema) -> Schema:
    return next(form for form in field["anyOf"] if form.get("type") == "array")


def _given(body: Schema, name: str, without: Sequence[str] = ()) -> Schema:
    """The field has a value that is not null, and others have none."""
    forms = [form for form in body["properties"][name]["anyOf"] if form != _NULL]
    value = forms[0] if len(forms) == 1 else {"anyOf": forms}
    return {"required": [name], "properties": {name: value, **dict.fromkeys(without, _NULL)}}


def _add_refusals(schema: Schema, refusals: Refusals) -> None:
    """Fields that are refused have the values that change nothing."""
    for name, (why, neutral) in refusals.items():
        schema["properties"].setdefault(name, {"enum": [None, *neutral], "description": f"Not supported: {why}."})


def _item(union: Schema, components: dict[str, Schema]) -> Schema:
    """Of items, null means "not given", and what needs no type may be without one (``read_items``)."""
    for form in union["anyOf"]:
        components[form["$ref"].rpartition("/")[2]]["additionalProperties"] = _NULL
    for name in ("MessageItem", "ItemReference"):
        schema = components[name]
        schema["required"].remove("type")
        schema["properties"]["type"] = {"anyOf": [schema["properties"]["type"], _NULL]}
    thoughts = components["ReasoningItem"]["properties"]
    thoughts["summary"] = {"anyOf": [thoughts["summary"], _NULL]}
    return {"anyOf": union["anyOf"]}  # without the discriminator, which would need the type
