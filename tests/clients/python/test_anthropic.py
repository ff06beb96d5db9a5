"""Anthropic's official client and its helpers."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from asked import ADA, EXPECTED, KEY, MODEL, SUM, URL, WEATHER, Person, Weather, user, wait_until_idle

CLIENT = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
FIELDS: Any = {"model": MODEL, "max_tokens": 300, "messages": [user(SUM)], "extra_body": {"temperature": 0}}


def test_a_stream_puts_together_what_a_whole_answer_says() -> None:
    whole = CLIENT.messages.create(**FIELDS)
    assert "42" in whole.content[0].text
    with CLIENT.messages.stream(**FIELDS) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text and len(final.content) == 1
    assert final.stop_reason == whole.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_thoughts_come_as_a_block_of_their_own() -> None:
    fields = FIELDS | {"max_tokens": 1500, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    with CLIENT.messages.stream(**fields) as stream:
        thoughts = "".join(event.thinking for event in stream if event.type == "thinking")
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[0].thinking == thoughts != ""


@pytest.mark.parametrize("stream", [False, True])
def test_the_tool_runner_calls_the_function_and_answers_with_its_result(stream: bool) -> None:
    weather = Weather()

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Get the current weather in a city"""
        return weather.get_weather(city)

    fields = FIELDS | {"messages": [user(WEATHER)], "tools": [get_weather], "stream": stream}
    final = CLIENT.beta.messages.tool_runner(**fields).until_done()
    assert weather.cities == ["Paris"] and "21" in final.content[0].text and final.stop_reason == "end_turn"


def test_parse_gives_an_object_of_the_type() -> None:
    fields = FIELDS | {"messages": [user(ADA)]}
    assert CLIENT.messages.parse(**fields, output_format=Person).parsed_output == EXPECTED
    with CLIENT.messages.stream(**fields, output_format=Person) as stream:
        assert stream.get_final_message().parsed_output == EXPECTED


def test_tokens_are_counted_as_they_are_billed() -> None:
    counted = CLIENT.messages.count_tokens(model=MODEL, messages=FIELDS["messages"])
    assert counted.input_tokens == CLIENT.messages.create(**FIELDS).usage.input_tokens


def test_a_stream_that_is_left_ends_the_computation() -> None:
    fields = FIELDS | {"max_tokens": 1900, "messages": [user("Count to a thousand.")]}
    with CLIENT.messages.stream(**fields) as stream:
        next(iter(stream))
    wait_until_idle()


def test_errors_have_their_classes() -> None:
    with pytest.raises(anthropic.BadRequestError):
        CLIENT.messages.create(**FIELDS | {"messages": []})
    with pytest.raises(anthropic.NotFoundError):
        CLIENT.messages.create(**FIELDS | {"model": "no-such-model"})
