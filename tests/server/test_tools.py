"""Tool calls and reasoning, as the bundled model writes them and as grammars make any model write them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.conftest import MODEL
from tests.server.process import ServerProcess, events

CHAT = "/v1/chat/completions"
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
# as clients write it that make schemas from types, such as zod's
WITH_DIALECT: dict[str, Any] = {
    "type": "function",
    "function": WEATHER["function"]
    | {"parameters": {"$schema": "http://json-schema.org/draft-07/schema#", **WEATHER["function"]["parameters"]}},
}
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
CITY = {"type": "string", "pattern": "^[xyz]{4}$"}
KEYS = {"get_weather": {"city"}, "add": {"a", "b"}}


def ask(server: ServerProcess, content: str, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 200, "temperature": 0} | fields
    answer = server.post(CHAT, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(server: ServerProcess, content: str, **fields: Any) -> tuple[dict[str, Any], str]:
    """A stream put together by the rules of OpenAI's clients: calls by index, an id and a name once each."""
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 200, "temperature": 0, "stream": True}
    *chunks, done = events(server.post(CHAT, body | fields).text)
    assert done == "[DONE]"
    message: dict[str, Any] = {"content": "", "reasoning": "", "calls": []}
    reason = None
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        delta = choice["delta"]
        message["content"] += delta.get("content", "")
        assert delta.get("reasoning") == delta.get("reasoning_content")
        message["reasoning"] += delta.get("reasoning", "")
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(message["calls"]):
                assert call["id"] and call["type"] == "function" and call["function"]["name"]
                message["calls"].append([call["function"]["name"], call["function"]["arguments"]])
            else:
                assert set(call) == {"index", "function"} and set(call["function"]) == {"arguments"}
                message["calls"][call["index"]][1] += call["function"]["arguments"]
        reason = choice["finish_reason"] or reason
    return message, str(reason)


def calls_of(message: dict[str, Any]) -> list[list[str]]:
    return [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", ())]


@pytest.mark.parametrize(
    ("content", "fields", "count"),
    [
        ("What is the weather in Paris?", {"tools": [WEATHER]}, 1),
        ("What is the weather in Paris and in Rome?", {"tools": [WEATHER]}, 2),
        ("What is the weather in Paris?", {"tools": [WITH_DIALECT]}, 1),
        ("What is the weather in Paris?", {"tools": [WEATHER], "tool_choice": "required"}, 1),
        ("Hello!", {"tools": [WEATHER, ADD], "tool_choice": "required", "parallel_tool_calls": False}, 1),
        ("Hello!", {"tools": [WEATHER, ADD], "tool_choice": {"type": "function", "function": {"name": "add"}}}, 1),
        ("Weather in Rome?", {"tools": [WEATHER], "reasoning_effort": "high", "tool_choice": "required"}, 1),
        ("What is the weather in Paris?", {"tools": [WEATHER], "tool_choice": "none"}, 0),
        ("What is 17 + 25?", {"tools": []}, 0),
    ],
)  # fmt: skip
def test_the_bundled_model_calls_functions(
    bundled: ServerProcess, content: str, fields: dict[str, Any], count: int
) -> None:
    answer = ask(bundled, content, **fields)
    [choice] = answer["choices"]
    message = choice["message"]
    calls = calls_of(message)
    assert len(calls) == count
    for name, arguments in calls:
        assert set(json.loads(arguments)) == KEYS[name]
    ids = [call["id"] for call in message.get("tool_calls", ())]
    assert len(set(ids)) == count and all(re.fullmatch("call_[0-9a-f]{24}", call_id) for call_id in ids)
    named = isinstance(fields.get("tool_choice"), dict)
    assert choice["finish_reason"] == ("tool_calls" if count and not named else "stop")
    assert (message["content"] is None) == bool(count)
    together, reason = streamed(bundled, content, **fields)
    assert together["calls"] == calls and reason == choice["finish_reason"]
    assert (together["content"] or None) == message["content"]
    assert together["reasoning"] == message.get("reasoning", "")


def test_a_result_goes_back_to_the_model(bundled: ServerProcess) -> None:
    with openai.OpenAI(base_url=bundled.url + "/v1", api_key="none") as client:
        messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
        first = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], temperature=0)
        call = first.choices[0].message.tool_calls[0]
        result = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "sky": "sunny"}'}
        messages += [first.choices[0].message, result]
        second = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], temperature=0)
        assert second.choices[0].finish_reason == "stop" and "21" in second.choices[0].message.content


def test_one_call_at_most_is_one_call_whoever_decides(bundled: ServerProcess) -> None:
    fields = {"tools": [WEATHER], "parallel_tool_calls": False}
    [choice] = ask(bundled, "What is the weather in Paris and in Rome?", **fields)["choices"]
    assert len(calls_of(choice["message"])) == 1 and choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("strict", [True, False])
def test_strict_arguments_follow_their_schema_whoever_decides_to_call(bundled: ServerProcess, strict: bool) -> None:
    """The schema has nothing that this model would write by itself."""
    parameters = WEATHER["function"]["parameters"] | {"properties": {"city": CITY}}
    tool = {"type": "function", "function": WEATHER["function"] | {"strict": strict, "parameters": parameters}}
    [choice] = ask(bundled, "What is the weather in Paris?", tools=[tool, ADD])["choices"]
    [[_, arguments]] = calls_of(choice["message"])
    assert bool(re.fullmatch("[xyz]{4}", json.loads(arguments)["city"])) == strict
    [choice] = ask(bundled, "Hello!", tools=[tool])["choices"]
    assert choice["finish_reason"] == "stop" and choice["message"]["content"]


@pytest.mark.parametrize("effort", ["high", "none", None])
def test_thoughts_are_told_apart(bundled: ServerProcess, effort: str | None) -> None:
    fields = {} if effort is None else {"reasoning_effort": effort}
    answer = ask(bundled, "What is 17 + 25?", **fields)
    message = answer["choices"][0]["message"]
    details = answer["usage"]["completion_tokens_details"]
    if effort == "high":
        assert message["reasoning"] == message["reasoning_content"] and "42" in message["reasoning"]
        assert 0 < details["reasoning_tokens"] < answer["usage"]["completion_tokens"]
    else:
        assert "reasoning" not in message and details["reasoning_tokens"] == 0
    assert "<think>" not in message["content"] and "42" in message["content"]
    together, _ = streamed(bundled, "What is 17 + 25?", **fields)
    assert (together["content"], together["reasoning"]) == (message["content"], message.get("reasoning", ""))
    hidden = ask(bundled, "What is 17 + 25?", include_reasoning=False, **fields)["choices"][0]["message"]
    assert hidden["content"] == message["content"] and "reasoning" not in hidden


@pytest.mark.parametrize("budget", [0, 3, 8])
def test_a_budget_ends_the_thoughts_and_not_the_answer(bundled: ServerProcess, budget: int) -> None:
    answer = ask(bundled, "What is 17 + 25?", reasoning_effort="high", thinking_token_budget=budget)
    [choice] = answer["choices"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] <= budget + 3, "and the markers"
    assert choice["finish_reason"] == "stop" and choice["message"]["content"]


def test_stop_strings_and_forms_begin_after_the_thoughts(bundled: ServerProcess) -> None:
    fields = {"reasoning_effort": "high"}
    [choice] = ask(bundled, "What is 17 + 25?", stop="37", **fields)["choices"]
    assert "37" in choice["message"]["reasoning"] and choice["message"]["content"]
    [choice] = ask(bundled, "What is 17 + 25?", guided_regex="[0-9]{2}", **fields)["choices"]
    assert "=" in choice["message"]["reasoning"] and re.fullmatch("[0-9]{2}", choice["message"]["content"])


@pytest.fixture(scope="module", params=["hermes", "llama3_json", "mistral", "pythonic", "qwen3_coder", "deepseek_v3"])
def random_model(request: pytest.FixtureRequest, model_dir: Path) -> Iterator[ServerProcess]:
    with ServerProcess(model_dir, "--tool-call-parser", request.param) as running:
        yield running


@pytest.mark.parametrize("temperature", [0, 1.3])
def test_any_model_can_be_made_to_call(random_model: ServerProcess, temperature: float) -> None:
    """Random weights write calls of any format where a grammar leaves them nothing else."""
    fields = {"tools": [WEATHER, ADD], "parallel_tool_calls": False, "max_tokens": 400, "seed": 3}
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        body = fields | {"tool_choice": choice, "temperature": temperature}
        [answer] = ask(random_model, "hi", **body)["choices"]
        if answer["finish_reason"] == "length":
            continue
        [[name, arguments]] = calls_of(answer["message"])
        assert set(json.loads(arguments)) == KEYS[name]
        together, _ = streamed(random_model, "hi", **body)
        assert together["calls"] == [[name, arguments]]


def test_without_a_format_tools_are_refused_by_name(server: ServerProcess) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    for fields, param in (({"tools": [ADD]}, "tools"), ({"thinking_token_budget": 3}, "thinking_token_budget")):
        answer = server.post(CHAT, body | fields)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_a_plugin_brings_a_format(tmp_path: Path, model_dir: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from tandem.text.parsers.registry import register_tool_format, tool_format\n"
        "class Mine(type(tool_format('hermes'))):\n"
        "    pass\n"
        "mine = Mine.__new__(Mine)\n"
        "mine.__dict__.update(vars(tool_format('hermes')) | {'name': 'mine'})\n"
        "register_tool_format(mine)\n"
    )
    options = ("--tool-parser-plugin", str(plugin), "--tool-call-parser", "mine", "--enable-auto-tool-choice")
    with ServerProcess(model_dir, *options) as running:
        body = {"tools": [ADD], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 300}
        [choice] = ask(running, "hi", **body)["choices"]
        assert calls_of(choice["message"])[0][0] == "add"
