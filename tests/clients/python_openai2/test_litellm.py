"""LiteLLM over chat completions, responses and Anthropic's Messages."""

from __future__ import annotations

import json
from typing import Any

import litellm
import pytest
from asked import ADA, BASE, EXPECTED, KEY, MODEL, SUM, URL, WEATHER, WEATHERS, Person, Weather, user

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PROVIDERS: Any = {
    "openai": {"model": f"openai/{MODEL}", "api_base": BASE},
    "hosted_vllm": {"model": f"hosted_vllm/{MODEL}", "api_base": BASE},
    "anthropic": {"model": f"anthropic/{MODEL}", "api_base": URL},
}


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> dict[str, Any]:
    """How LiteLLM is told of the server."""
    return PROVIDERS[request.param] | {"api_key": KEY, "temperature": 0, "max_tokens": 300, "num_retries": 0}


def test_a_stream_says_what_the_whole_answer_says(provider: dict[str, Any]) -> None:
    whole = litellm.completion(messages=[user(SUM)], **provider)
    assert "42" in whole.choices[0].message.content and whole.choices[0].finish_reason == "stop"
    options = {"stream_options": {"include_usage": True}}
    chunks = list(litellm.completion(messages=[user(SUM)], stream=True, **options, **provider))
    together = litellm.stream_chunk_builder(chunks, messages=[user(SUM)])
    assert together.choices[0].message.content == whole.choices[0].message.content
    assert together.usage.total_tokens == whole.usage.total_tokens


def test_tools_are_called_whole_and_streamed(provider: dict[str, Any]) -> None:
    whole = litellm.completion(messages=[user(WEATHERS)], tools=[TOOL], **provider)
    chunks = list(litellm.completion(messages=[user(WEATHERS)], tools=[TOOL], stream=True, **provider))
    for answer in (whole, litellm.stream_chunk_builder(chunks)):
        calls = [json.loads(call.function.arguments) for call in answer.choices[0].message.tool_calls]
        assert calls == [{"city": "Paris"}, {"city": "Rome"}] and answer.choices[0].finish_reason == "tool_calls"


def test_a_result_goes_back_to_the_model(provider: dict[str, Any]) -> None:
    weather = Weather()
    messages: list[Any] = [user(WEATHER)]
    answer = litellm.completion(messages=messages, tools=[TOOL], **provider).choices[0].message
    messages.append(answer)
    for call in answer.tool_calls:
        result = weather.get_weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    final = litellm.completion(messages=messages, tools=[TOOL], **provider).choices[0].message
    assert weather.cities == ["Paris"] and "21" in final.content


def test_an_object_of_a_type() -> None:
    fields = PROVIDERS["openai"] | {"api_key": KEY, "temperature": 0}
    found = litellm.completion(messages=[user(ADA)], response_format=Person, **fields).choices[0].message.content
    assert Person.model_validate_json(found) == EXPECTED


def test_responses() -> None:
    fields = PROVIDERS["openai"] | {"api_key": KEY, "temperature": 0, "input": SUM}
    whole = litellm.responses(**fields).output[0].content[0].text
    assert "42" in whole
    events = list(litellm.responses(stream=True, **fields))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole
    assert events[-1].type == "response.completed"


def test_errors_have_their_classes(provider: dict[str, Any]) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=[user("word " * 5000)], **provider | {"max_tokens": 10})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=[user(SUM)], **provider | {"model": provider["model"] + "-other"})
