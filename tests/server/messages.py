"""What tests of Anthropic's Messages API have in common: conversations, and answers held to the published types."""

from __future__ import annotations

import json
from typing import Any

import pydantic
from anthropic.types import (
    RawMessageStreamEvent,
)

from server.dialects.messages import added_up
from server.intake.messages import chat_request
from server.routes.vendors.messages import PARSER

DEMO = "tandem-demo"
PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
JSON = {"content-type": "application/json"}
WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TIMER: Any = {
    "name": "set_timer",
    "description": "Set a timer.",
    "input_schema": {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]},
}
OSLO: Any = [{"role": "user", "content": "How is the weather in Oslo?"}]
SUM: Any = [{"role": "user", "content": "What is 17 plus 25?"}]
USED: Any = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}}
RESULT: Any = {"type": "tool_result", "tool_use_id": "toolu_1", "content": '{"temperature": 21}'}
GREEDY: Any = {"extra_body": {"temperature": 0}}
NULLABLE = {"stop_reason", "stop_sequence", "stop_details"}


def strictly(kind: Any, data: Any) -> Any:
    """``data`` as the published type, with nothing converted, nothing unknown and no stray null."""
    value = pydantic.TypeAdapter(kind).validate_python(data, strict=True)
    _no_extras(value)
    return value


def _no_extras(value: Any) -> None:
    if isinstance(value, pydantic.BaseModel):
        assert not value.model_extra, value
        for name in value.model_fields_set:
            assert getattr(value, name) is not None or name in NULLABLE, name
            _no_extras(getattr(value, name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _no_extras(item)


def stream_of(text: str) -> list[Any]:
    """The events of a stream, each named as its type says, in the order that the API promises."""
    assert text.endswith("\n\n")
    found = []
    for block in text[:-2].split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def checked(events: list[Any]) -> list[Any]:
    """The same without pings, every event valid, blocks numbered and one after the other."""
    assert events[1] == {"type": "ping"}
    events = [event for event in events if event != {"type": "ping"}]
    for event in events:
        strictly(RawMessageStreamEvent, event)
    assert events[0]["type"] == "message_start" and events[0]["message"]["content"] == []
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    index, is_open = -1, False
    for event, following in zip(events[1:-2], events[2:], strict=False):
        if event.get("delta", {}).get("type") == "thinking_delta":
            assert following["delta"]["type"] in ("thinking_delta", "signature_delta")
        if event["type"] == "content_block_start":
            assert not is_open
            index, is_open = index + 1, True
        assert is_open and event["index"] == index
        is_open = event["type"] != "content_block_stop"
    assert not is_open
    return events


def put_together(events: list[Any]) -> dict[str, Any]:
    """The message that a stream tells of."""
    delta = events[-2]
    return events[0]["message"] | {"content": added_up(events[1:-2]), **delta["delta"], "usage": delta["usage"]}


def same(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what differs between two answers to one request."""
    content = [{k: v for k, v in block.items() if k != "id"} for block in message["content"]]
    return {k: v for k, v in message.items() if k != "id"} | {"content": content}


def meant(**fields: Any) -> Any:
    body = {"model": "m", "max_tokens": 2000, "messages": SUM} | fields
    return chat_request(PARSER.parse(json.dumps(body).encode())[0])
