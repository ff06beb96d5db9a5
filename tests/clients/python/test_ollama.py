"""Ollama's client at the routes of ``--enable-ollama-api``."""

from __future__ import annotations

from typing import Any

import ollama
import pytest
from asked import ADA, EXPECTED, MODEL, SUM, URL, WEATHER, Person, Weather, user

CLIENT = ollama.Client(host=URL)
FIELDS: Any = {"model": MODEL, "messages": [user(SUM)], "options": {"temperature": 0}}


def test_a_stream_says_what_the_whole_answer_says() -> None:
    whole = CLIENT.chat(**FIELDS)
    assert "42" in whole.message.content and whole.done_reason == "stop"
    parts = list(CLIENT.chat(**FIELDS, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert parts[-1].eval_count == whole.eval_count


def test_generate_says_the_same() -> None:
    found = CLIENT.generate(model=MODEL, prompt=SUM, options={"temperature": 0})
    assert found.response == CLIENT.chat(**FIELDS).message.content


def test_thoughts_are_told_apart() -> None:
    found = CLIENT.chat(**FIELDS, think=True).message
    assert found.thinking and "42" in found.content


def test_a_format_is_followed() -> None:
    found = CLIENT.chat(**FIELDS | {"messages": [user(ADA)]}, format=Person.model_json_schema())
    assert Person.model_validate_json(found.message.content) == EXPECTED


def test_a_function_is_called_and_its_result_used() -> None:
    weather = Weather()
    messages: list[Any] = [user(WEATHER)]
    answer = CLIENT.chat(**FIELDS | {"messages": messages}, tools=[weather.get_weather]).message
    messages.append(answer)
    for call in answer.tool_calls:
        result = weather.get_weather(**call.function.arguments)
        messages.append({"role": "tool", "tool_name": call.function.name, "content": result})
    final = CLIENT.chat(**FIELDS | {"messages": messages}, tools=[weather.get_weather]).message
    assert weather.cities == ["Paris"] and "21" in final.content


def test_models_are_listed_and_shown() -> None:
    assert [model.model for model in CLIENT.list().models] == [MODEL]
    assert "tools" in CLIENT.show(MODEL).capabilities
    with pytest.raises(ollama.ResponseError):
        CLIENT.show("no-such-model")
