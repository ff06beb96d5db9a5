"""What routes take, as JSON schemas of ``/openapi.json``: what msgspec knows of the structs, and what parsers add.

JSON Schema cannot say which fields contradict each other, nor what depends on the model.
"""

from __future__ import annotations

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
    components["Options"]["additionalProperties"] = False
    _add_refusals(components["Options"], OPTION_REFUSALS)
    for body in (OllamaChat, OllamaGenerate):
        components[body.__name__]["properties"]["options"] = {"anyOf": [options, _NULL], "default": None}
    return components


def _add_refusals(schema: Schema, refusals: Refusals) -> None:
    """Fields that are refused have the values that change nothing."""
    for name, (why, neutral) in refusals.items():
        schema["properties"].setdefault(name, {"enum": [None, *neutral], "description": f"Not supported: {why}."})


def _item(union: Schema, components: dict[str, Schema]) -> Schema:
    """Of items, null means "not given", and what needs no type may be without one (``read_items``)."""
    for name in ("MessageItem", "ItemReference"):
        schema = components[name]
        schema["required"].remove("type")
        schema["properties"]["type"] = {"anyOf": [schema["properties"]["type"], _NULL]}
    thoughts = components["ReasoningItem"]["properties"]
    thoughts["summary"] = {"anyOf": [thoughts["summary"], _NULL]}
    return {"anyOf": union["anyOf"]}  # without the discriminator, which would need the type
