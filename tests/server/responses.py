"""What tests of the Responses API have in common: requests, and answers held to the published types."""

from __future__ import annotations

import json
from typing import Any, get_args

import openai
import pydantic
from openai.types.responses import Response, ResponseStreamEvent

from tests.server.process import ServerProcess

PATH = "/v1/responses"
BODY: dict[str, Any] = {"input": "the quick brown fox", "max_output_tokens": 24, "seed": 7}
LONG: dict[str, Any] = {"input": "hi", "max_output_tokens": 3900, "ignore_eos": True}
LOGPROBS = "message.output_text.logprobs"
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
EVENT_TYPES = {
    get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in get_args(get_args(ResponseStreamEvent)[0])
}  # fmt: skip
# OpenAI sends it although its types do not have it
EXTRA = {"store"}


def sdk(server: ServerProcess, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0)


def extras(value: Any) -> set[str]:
    """Names of fields that the published types do not have, wherever they stand."""
    if isinstance(value, pydantic.BaseModel):
        own = set(value.model_extra or ())
        return own.union(*(extras(getattr(value, name)) for name in type(value).model_fields))
    if isinstance(value, list):
        return set().union(*map(extras, value))
    return set()


def validated(kind: Any, data: Any) -> Any:
    value = pydantic.TypeAdapter(kind).validate_python(data, strict=True)
    assert extras(value) <= EXTRA
    return value


def events(text: str) -> list[dict[str, Any]]:
    """Server-sent events, each checked against its published type; their numbers count from the first."""
    found = []
    assert text.endswith("\n\n") and "[DONE]" not in text
    for block in text[:-2].split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        validated(EVENT_TYPES[event["type"]], event)
        found.append(event)
    numbers = [event["sequence_number"] for event in found]
    assert numbers == list(range(numbers[0], numbers[0] + len(found)))
    return found


def streamed(server: ServerProcess, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = server.post(PATH, body | {"stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    return events(answer.text)


def whole(server: ServerProcess, body: dict[str, Any]) -> dict[str, Any]:
    answer = server.post(PATH, body)
    assert answer.status_code == 200, answer.text
    validated(Response, answer.json())
    return answer.json()


def plain(response: Any) -> Any:
    """Without what no two responses share."""
    own = {"id", "created_at", "completed_at", "call_id", "cached_tokens"}
    if isinstance(response, dict):
        return {name: plain(value) for name, value in response.items() if name not in own}
    return [plain(item) for item in response] if isinstance(response, list) else response


def rebuilt(stream: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output that the events of a stream tell of, checked for their order."""
    assert [event["type"] for event in stream[:2]] == ["response.created", "response.in_progress"]
    output: list[dict[str, Any]] = []
    parts: dict[str, Any] = {}
    for event in stream[2:-1]:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert not parts and event["output_index"] == len(output)
            assert event["item"]["status"] == "in_progress"
            parts = {"item": event["item"], "text": "", "logprobs": [], "name": "", "done": False}
            continue
        assert event["output_index"] == len(output)
        assert event.get("item_id", parts["item"]["id"]) == parts["item"]["id"]
        if kind == "content_part.added":
            assert event["part"]["text"] == "" and event["content_index"] == 0
        elif kind.endswith(".delta"):
            assert event["delta"] and not parts["done"]
            parts["text"] += event["delta"]
            parts["logprobs"] += event.get("logprobs", [])
            parts["name"] = kind.removesuffix(".delta")
        elif kind == "content_part.done":
            assert parts["done"] and event["part"]["text"] == parts["text"]
        elif kind == "output_item.done":
            item = event["item"]
            assert parts["done"] and item["id"] == parts["item"]["id"]
            shown = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
            assert shown == parts["text"]
            output.append(item)
            parts = {}
        else:
            assert kind == parts["name"] + ".done"
            assert event.get("text", event.get("arguments")) == parts["text"]
            assert event.get("logprobs", []) == parts["logprobs"]
            parts["done"] = True
    assert not parts
    return output
