"""What requests for responses get wrong."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.process import ServerProcess
from tests.server.responses import (
    BODY,
    LOGPROBS,
    PATH,
    WEATHER,
)

CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
SCHEMA = {"type": "json_schema", "name": "a"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": 5}, "input"),
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [5]}, "input[0]"),
    ({"input": ["x"]}, "input[0]"),
    ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": 1}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": "x", "made_up": 1}]}, "input[0].made_up"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]}, "input[0].content[0].type"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type"),
    ({"input": [{"type": "item_reference", "id": "none"}]}, "input[0].id"),
    ({"input": [CALL | {"name": "a b"}]}, "input[0].name"),
    ({"input": ["x", CALL][1:] + [CALL | {"call_id": 1}]}, "input[1].call_id"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
    ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input[0].encrypted_content"),
    ({"input": [{"role": "user", "content": "x"}] * 4097}, "input"),
    ({"instructions": 1}, "instructions"),
    ({"model": 1}, "model"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": "x"}, "max_output_tokens"),
    ({"max_output_tokens": 100_000}, "max_output_tokens"),
    ({"max_tool_calls": -1}, "max_tool_calls"),
    ({"temperature": 3}, "temperature"),
    ({"top_p": -1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"seed": "x"}, "seed"),
    ({"stop": list("abcde")}, "stop"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ({"stop_token_ids": [999_999]}, "stop_token_ids"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"ignore_eos": True, "text": {"format": {"type": "json_object"}}}, "ignore_eos"),
    ({"thinking_token_budget": 5}, "thinking_token_budget"),
    ({"priority": 1}, "priority"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"request_id": "a/b"}, "request_id"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"tools": [WEATHER]}, "tools"),  # nobody knows how this model writes calls
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].function"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
    ({"tools": [WEATHER | {"made_up": 1}]}, "tools[0].made_up"),
    ({"tool_choice": "perhaps"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "f"}, "tools": [WEATHER]}, "tool_choice"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
    ({"text": {"format": SCHEMA}}, "text.format.schema"),
    ({"text": {"format": SCHEMA | {"schema": {"type": "frog"}}}}, "text.format"),
    ({"text": {"verbosity": "high"}}, "text.verbosity"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    ({"reasoning": {"effort": 1}}, "reasoning.effort"),
    ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"top_logprobs": 21, "include": [LOGPROBS]}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage"),
    ({"store": "no"}, "store"),
    ({"background": True, "store": False}, "background"),
    ({"metadata": {"a": 1}}, "metadata[...]"),
    ({"user": 1}, "user"),
    ({"safety_identifier": 1}, "safety_identifier"),
    ({"prompt_cache_key": 1}, "prompt_cache_key"),
    ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"truncation": "middle"}, "truncation"),
    ({"previous_response_id": 1}, "previous_response_id"),
    ({"previous_response_id": "a", "conversation": "b"}, "conversation"),
    ({"conversation": {"name": "x"}}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"response_format": {"type": "text"}}, "response_format"),
    ({"n": 2}, "n"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "param"), WRONG, ids=lambda value: str(value)[:60])
def test_mistakes_name_the_field(server: ServerProcess, options: dict[str, Any], param: str) -> None:
    answer = server.post(PATH, {"input": "hi", "max_output_tokens": 1} | options)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and set(error) == {"message", "type", "param", "code"}
    param = param.replace("[...]", "")
    assert error["param"] == param or error["param"].startswith(param + ".") and "conversation" in param
    assert "messages[" not in error["message"] and "response_format:" not in error["message"]


def test_every_field_has_a_wrong_value() -> None:
    from server.schemas.openai.responses import ResponsesRequest

    assert set(ResponsesRequest.__struct_fields__) <= {name for options, _ in WRONG for name in options}


def test_other_mistakes(server: ServerProcess) -> None:
    assert server.post(PATH, BODY | {"model": "other"}).status_code == 404
    assert httpx.post(server.url + PATH, content="{", headers={"content-type": "application/json"}).status_code == 400
    for query, param in (
        ("stream=perhaps", "stream"),
        ("starting_after=1", "starting_after"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("stream=true&include_obfuscation=true", "include_obfuscation"),
    ):
        answer = httpx.get(f"{server.url}{PATH}/resp_x?{query}")
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    taken = server.post(PATH, BODY | {"request_id": "one"})
    assert taken.status_code == 200 and taken.json()["id"] == "resp_one"
    again = server.post(PATH, BODY | {"request_id": "one"})
    assert again.status_code == 400 and again.json()["error"]["param"] == "request_id"
    for body, param in (
        ({"items": 1}, "items"),
        ({"items": [{"role": "user", "content": "x"}] * 21}, "items"),
        ({"items": [{"type": "computer_call"}]}, "items[0].type"),
        ({"metadata": "x"}, "metadata"),
    ):
        answer = server.post("/v1/conversations", body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param
