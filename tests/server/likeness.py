"""What two servers' answers must have in common: everything but ids, times, cache hits and how a stream is cut.

Streams are joined: OpenAI's chunks into one object, typed events (Responses, Messages) with neighbours of one kind
merged, Ollama's lines into one object. Numbers with a fraction may differ within the tolerance of log-probabilities.
"""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.equivalence.tolerances import LOGPROBS
from tests.server.process import ServerProcess

VOLATILE = {
    "id", "item_id", "call_id", "response_id", "request_id", "tool_use_id", "previous_response_id", "created",
    "created_at", "completed_at", "expires_at", "system_fingerprint", "signature", "total_duration", "load_duration",
    "prompt_eval_duration", "eval_duration", "cached_tokens",
}  # fmt: skip
TEXTS = {"text", "content", "reasoning", "reasoning_content", "arguments", "response", "thinking"}
PLACE = ("type", "output_index", "content_index", "summary_index", "index")


def compare(servers: tuple[ServerProcess, ServerProcess], path: str, body: dict[str, Any]) -> None:
    """Send to both; all that must be the same, is."""
    ours, theirs = (server.post(path, body) for server in servers)
    assert ours.status_code == theirs.status_code, (ours.text, theirs.text)
    for name in ("content-type", "x-tandem-ignored-fields"):
        assert ours.headers.get(name) == theirs.headers.get(name)
    assert_same(essence(ours), essence(theirs), "")


def essence(answer: httpx.Response) -> Any:
    """The answer, a stream joined, without what may differ."""
    match answer.headers["content-type"].partition(";")[0]:
        case "application/json":
            whole: Any = answer.json()
        case "application/x-ndjson":
            whole = {}
            for line in answer.text.splitlines():
                append(whole, json.loads(line))
        case "text/event-stream" if answer.text.startswith("event:"):
            whole = merged(typed_events(answer.text))
        case kind:
            assert kind == "text/event-stream", kind
            whole = joined(events(answer.text))
    return without(whole)


def without(value: Any) -> Any:
    """A copy that lacks what may differ, at any depth."""
    if isinstance(value, dict):
        if "cache_read_input_tokens" in value:  # Anthropic counts what was found in the cache by itself
            found = value.pop("cache_read_input_tokens") + value.pop("cache_creation_input_tokens")
            value["input_tokens"] += found
        return {name: without(part) for name, part in value.items() if name not in VOLATILE}
    return [without(part) for part in value] if isinstance(value, list) else value


def events(text: str) -> list[Any]:
    """The data of server-sent events without types; ``[DONE]`` stays text."""
    assert text.endswith("\n\n"), text[-200:]
    data = [block.removeprefix("data: ") for block in text[:-2].split("\n\n")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


def typed_events(text: str) -> list[dict[str, Any]]:
    """The data of server-sent events with types, which are in the data, too."""
    assert text.endswith("\n\n"), text[-200:]
    parsed = []
    for block in text[:-2].split("\n\n"):
        kind, data = block.split("\n")
        parsed.append(json.loads(data.removeprefix("data: ")))
        assert parsed[-1]["type"] == kind.removeprefix("event: ")
    return parsed


def merged(stream: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Typed events; those that add to the same thing, one after another, as one."""
    whole: list[dict[str, Any]] = []
    for event in stream:
        event.pop("sequence_number", None)
        delta = event.get("delta")
        last = whole[-1] if whole else {}
        if delta is None or any(last.get(name) != event.get(name) for name in PLACE):
            whole.append(event)
        elif isinstance(delta, str):
            last["delta"] += delta
            last["logprobs"] = last.get("logprobs", []) + event.get("logprobs", [])
        elif delta["type"] != last["delta"]["type"]:
            whole.append(event)
        else:
            last["delta"] |= {k: last["delta"][k] + part for k, part in delta.items() if k != "type"}
    return whole


def joined(stream: list[Any]) -> dict[str, Any]:
    """A stream's chunks as one object; ``done`` tells whether it was closed in order."""
    chunks = [chunk for chunk in stream if chunk != "[DONE]"]
    choices: dict[int, dict[str, Any]] = {}
    whole: dict[str, Any] = {"done": stream[-1] == "[DONE]", "choices": choices}
    for chunk in chunks:
        for choice in chunk.pop("choices", ()):
            append(choices.setdefault(choice["index"], {}), choice)
        append(whole, chunk)
    return whole


def append(whole: dict[str, Any], part: dict[str, Any]) -> None:
    """Texts and lists grow, of everything else the latest counts."""
    for name, value in part.items():
        old = whole.get(name)
        if isinstance(value, dict) and old:
            append(old, value)
        elif name == "tool_calls" and value and "index" in value[0]:
            calls = whole.setdefault(name, {})
            for call in value:
                append(calls.setdefault(call["index"], {}), call)
        elif isinstance(value, list) and old:
            old += value
        elif name in TEXTS and old:
            whole[name] = old + value
        elif value is not None or name not in whole:
            whole[name] = value


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    """Equal, numbers with a fraction within the tolerance of log-probabilities."""
    assert type(ours) is type(theirs), (where, ours, theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for name in ours:
            assert_same(ours[name], theirs[name], f"{where}.{name}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(ours, float):
        assert abs(ours - theirs) < LOGPROBS, (where, ours, theirs)
    else:
        assert ours == theirs, where
