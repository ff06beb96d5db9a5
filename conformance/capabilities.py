"""What a server offers, found out by one probe a capability before anything is checked.

What is absent is no fault: its checks read "not offered". A feature counts as offered when the server accepts it and
visibly does something about it, however wrong; silently ignored ones count as not offered here, and are a fault of
their own (``checks/test_errors.py``). Some checks need more than random weights can do; where a probe shows that the
model cannot, they read "model not able".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from .client import Api, Exchange
from .requirement import NOT_ABLE, NOT_OFFERED, Violation

ABSENT = (404, 405, 410, 501)
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
TOOL_TOKENS = 96
COLOUR: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "colour",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"colour": {"type": "string", "enum": ["red", "green"]}},
            "required": ["colour"],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True)
class Finding:
    """What a probe found. ``state`` is "offered", "not offered" or "model not able"."""

    state: str
    why: str = ""


OFFERED = Finding("offered")


class Capabilities:
    """Probes on demand, each once."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.findings: dict[str, Finding] = {}

    def __getitem__(self, name: str) -> Finding:
        if name not in self.findings:
            probe = PROBES[name]
            blocked = [needed for needed in REQUIRES.get(name, ()) if self[needed].state != "offered"]
            self.findings[name] = Finding(NOT_OFFERED, f"it needs {blocked[0]}") if blocked else probe(self.api)
        return self.findings[name]

    def has(self, name: str) -> bool:
        """Whether it is offered."""
        return self[name].state == "offered"

    def demand(self, name: str) -> None:
        """End the check that runs unless it is offered."""
        finding = self[name]
        if finding.state != "offered":
            pytest.skip(f"{finding.state}: {name}: {finding.why}")


def _route(answer: Exchange) -> Finding:
    """Of a route of its own: anything but "there is no such thing" is to be checked, no answer too."""
    if answer.status in ABSENT:
        return Finding(NOT_OFFERED, f"{answer.method} {answer.url} answers {answer.status}")
    if 400 <= answer.status < 500 and "not support" in answer.text.lower():
        return Finding(NOT_OFFERED, f"refused with {answer.status}: {answer.text[:120]}")
    return OFFERED


def _feature(answer: Exchange, shows: Callable[[Any], bool], what: str) -> Finding:
    """Of a parameter: refused or without effect means not offered."""
    if 400 <= answer.status < 500 or answer.status == 501:
        return Finding(NOT_OFFERED, f"refused with {answer.status}: {_message(answer)}")
    if answer.status == 200:
        try:
            if not shows(answer.json()):
                return Finding(NOT_OFFERED, f"accepted, but {what}")
        except (Violation, KeyError, IndexError, TypeError, ValueError):
            return OFFERED  # a wrong answer is an answer: the checks will say what is wrong
    return OFFERED


def _message(answer: Exchange) -> str:
    try:
        return str(answer.json()["error"]["message"])[:120]
    except (Violation, KeyError, TypeError):
        return answer.text[:120]


def _models(api: Api) -> Finding:
    return _route(api.client.get("/models"))


def _chat(api: Api) -> Finding:
    answer = api.chat()
    if answer.status == 400 and answer.error_param() == "max_tokens":
        api.limit = "max_completion_tokens"
        answer = api.chat()
    return _route(answer)


def _streaming(api: Api) -> Finding:
    answer = api.chat_stream()
    if answer.status == 200 and answer.media_type == "application/json":
        return Finding(NOT_OFFERED, "stream: true is answered with one JSON object")
    return _feature_stream(answer)


def _feature_stream(answer: Exchange) -> Finding:
    if 400 <= answer.status < 500:
        return Finding(NOT_OFFERED, f"refused with {answer.status}: {_message(answer)}")
    return OFFERED


def _tools(api: Api) -> Finding:
    answer = api.chat(tools=[WEATHER], tool_choice=NAMED, **{api.limit: TOOL_TOKENS})
    return _feature(answer, lambda b: bool(b["choices"][0]["message"].get("tool_calls")), "without a tool call")


def _auto_tools(api: Api) -> Finding:
    text = "What is the weather in Paris?"
    answer = api.chat(text, tools=[WEATHER], tool_choice="auto", **{api.limit: TOOL_TOKENS})
    if answer.status == 200 and not answer.json()["choices"][0]["message"].get("tool_calls"):
        return Finding(NOT_ABLE, f"asked {text!r}, it did not call the tool")
    return _feature(answer, lambda b: True, "")


def _structured(api: Api) -> Finding:
    answer = api.chat(response_format=COLOUR, **{api.limit: 48})
    return _feature(answer, lambda b: _is_object(b["choices"][0]["message"]["content"]), "the answer is not JSON")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return text.lstrip().startswith("{")


def _logprobs(api: Api) -> Finding:
    answer = api.chat(logprobs=True, top_logprobs=2)
    return _feature(answer, lambda b: b["choices"][0].get("logprobs") is not None, "without logprobs")


def _text_logprobs(api: Api) -> Finding:
    answer = api.complete(logprobs=2)
    return _feature(answer, lambda b: b["choices"][0].get("logprobs") is not None, "without logprobs")


def _reasoning(api: Api) -> Finding:
    fields = {api.limit: 64}
    api.thinking = {"reasoning_effort": "low"}
    answer = api.chat("What is 3 plus 4?", **api.thinking, **fields)
    if 400 <= answer.status < 500:
        api.thinking = {}
        answer = api.chat("What is 3 plus 4?", **fields)
    if answer.status == 200 and not reasoning_of(answer.json()["choices"][0]["message"]):
        return Finding(NOT_OFFERED, "no reasoning_content in an answer")
    return _feature(answer, lambda b: True, "")


def reasoning_of(message: dict[str, Any]) -> str:
    """What a message, or a delta, carries of reasoning, under either name."""
    return message.get("reasoning_content") or message.get("reasoning") or ""


def _guarded(api: Api) -> Finding:
    if not api.client.key:
        return Finding(NOT_OFFERED, "no --api-key was given")
    answer = api.client.get("/models", headers={"authorization": None})
    return Finding(NOT_OFFERED, "requests without a key are answered") if answer.status == 200 else OFFERED


def _body(api: Api, path: str) -> dict[str, Any]:
    return {"model": api.model, "prompt": "a"} if path == "root:/tokenize" else {"model": api.model, "tokens": [1]}


PROBES: dict[str, Callable[[Api], Finding]] = {
    "models": _models,
    "chat": _chat,
    "streaming": _streaming,
    "tools": _tools,
    "auto_tools": _auto_tools,
    "structured": _structured,
    "logprobs": _logprobs,
    "reasoning": _reasoning,
    "completions": lambda api: _route(api.complete()),
    "text_logprobs": _text_logprobs,
    "embeddings": lambda api: _route(api.client.post("/embeddings", {"model": api.model, "input": "hello"})),
    "decisions": lambda api: _route(
        api.decide([{"type": "predicate", "instructions": "The text is about the weather."}])
    ),
    "responses": lambda api: _route(api.respond()),
    "response_tools": lambda api: _feature(
        api.respond(tools=[flat(WEATHER)], tool_choice="required", max_output_tokens=TOOL_TOKENS),
        lambda b: any(item["type"] == "function_call" for item in b["output"]),
        "without a function call",
    ),
    "messages": lambda api: _route(api.message()),
    "message_tools": lambda api: _feature(
        api.message(tools=[anthropic_tool(WEATHER)], tool_choice={"type": "any"}, max_tokens=TOOL_TOKENS),
        lambda b: any(block["type"] == "tool_use" for block in b["content"]),
        "without a tool use",
    ),
    "count_tokens": lambda api: _route(
        api.client.post(
            "/messages/count_tokens", {"model": api.model, "messages": [{"role": "user", "content": "a"}]}
        )
    ),
    "files": lambda api: _route(api.client.get("/files?limit=1")),
    "batches": lambda api: _route(api.client.get("/batches?limit=1")),
    "tokenize": lambda api: _route(api.client.post("root:/tokenize", _body(api, "root:/tokenize"))),
    "detokenize": lambda api: _route(api.client.post("root:/detokenize", _body(api, "root:/detokenize"))),
    "metrics": lambda api: _route(api.client.get("root:/metrics")),
    "load": lambda api: _route(api.client.get("root:/load")),
    "health": lambda api: _route(api.client.get("root:/health")),
    "keys": _guarded,
}
REQUIRES: dict[str, tuple[str, ...]] = {
    "streaming": ("chat",),
    "tools": ("chat",),
    "auto_tools": ("chat", "tools"),
    "structured": ("chat",),
    "logprobs": ("chat",),
    "reasoning": ("chat",),
    "text_logprobs": ("completions",),
    "response_tools": ("responses",),
    "message_tools": ("messages",),
    "count_tokens": ("messages",),
    "batches": ("files", "chat"),
    "detokenize": ("tokenize",),
}


def flat(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as /responses has it."""
    return {"type": "function", "strict": True, **tool["function"]}


def anthropic_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as /messages has it."""
    function = tool["function"]
    return {
        "name": function["name"],
        "description": function["description"],
        "input_schema": function["parameters"],
    }
