"""OpenAI's official client and its helpers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from asked import ADA, BASE, EXPECTED, KEY, MODEL, SUM, WEATHER, WEATHERS, Person, Weather, user, wait_until_idle
from pydantic import BaseModel

CLIENT = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0)
FIELDS: Any = {"model": MODEL, "messages": [user(SUM)], "temperature": 0}


class GetWeather(BaseModel):
    """Get the current weather in a city"""

    city: str


def test_a_stream_puts_together_what_a_whole_answer_says() -> None:
    whole = CLIENT.chat.completions.create(**FIELDS)
    assert "42" in whole.choices[0].message.content
    with CLIENT.chat.completions.stream(**FIELDS, stream_options={"include_usage": True}) as stream:
        events = [event for event in stream if event.type in ("content.delta", "content.done")]
        final = stream.get_final_completion()
    assert "".join(event.delta for event in events[:-1]) == whole.choices[0].message.content
    assert events[-1].type == "content.done" and events[-1].content == whole.choices[0].message.content
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason
    assert final.usage.total_tokens == whole.usage.total_tokens


def test_parse_gives_an_object_of_the_type() -> None:
    fields = FIELDS | {"messages": [user(ADA)], "response_format": Person}
    assert CLIENT.chat.completions.parse(**fields).choices[0].message.parsed == EXPECTED
    with CLIENT.chat.completions.stream(**fields) as stream:
        seen = [event.parsed for event in stream if event.type == "content.delta"]
        assert stream.get_final_completion().choices[0].message.parsed == EXPECTED
    assert seen[-1] == EXPECTED.model_dump()


def test_parse_gives_the_arguments_of_a_strict_function() -> None:
    tools = [openai.pydantic_function_tool(GetWeather, name="get_weather")]
    fields = FIELDS | {"messages": [user(WEATHERS)], "tools": tools}
    whole = CLIENT.chat.completions.parse(**fields).choices[0]
    calls = [call.function.parsed_arguments for call in whole.message.tool_calls]
    assert calls == [GetWeather(city="Paris"), GetWeather(city="Rome")] and whole.finish_reason == "tool_calls"
    with CLIENT.chat.completions.stream(**fields) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion().choices[0]
    assert [event.parsed_arguments for event in done] == calls
    assert [call.function.arguments for call in final.message.tool_calls] == [
        call.function.arguments for call in whole.message.tool_calls
    ]


def test_a_result_goes_back_to_the_model() -> None:
    weather = Weather()
    messages: list[Any] = [user(WEATHER)]
    tools = [openai.pydantic_function_tool(GetWeather, name="get_weather")]
    answer = CLIENT.chat.completions.parse(**FIELDS | {"messages": messages, "tools": tools}).choices[0].message
    messages.append(answer)
    for call in answer.tool_calls:
        result = weather.get_weather(call.function.parsed_arguments.city)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    final = CLIENT.chat.completions.create(**FIELDS | {"messages": messages, "tools": tools}).choices[0].message
    assert weather.cities == ["Paris"] and "21" in final.content


def test_responses_stream_what_they_say_whole() -> None:
    fields: Any = {"model": MODEL, "input": SUM, "temperature": 0}
    whole = CLIENT.responses.create(**fields)
    assert "42" in whole.output_text
    with CLIENT.responses.stream(**fields) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == whole.output_text
    assert final.usage.total_tokens == whole.usage.total_tokens


def test_a_streamed_response_is_resumed() -> None:
    with CLIENT.responses.create(model=MODEL, input=SUM, temperature=0, background=True, stream=True) as begun:
        first = next(iter(begun))
    with CLIENT.responses.stream(response_id=first.response.id, starting_after=first.sequence_number) as stream:
        numbers = [event.sequence_number for event in stream]
        assert "42" in stream.get_final_response().output_text
    assert numbers == list(range(first.sequence_number + 1, first.sequence_number + 1 + len(numbers)))


def test_responses_parse_an_object_of_the_type() -> None:
    fields: Any = {"model": MODEL, "input": ADA, "temperature": 0, "text_format": Person}
    assert CLIENT.responses.parse(**fields).output_parsed == EXPECTED
    with CLIENT.responses.stream(**fields) as stream:
        assert stream.get_final_response().output_parsed == EXPECTED


def test_responses_call_a_function_and_go_on_from_its_output() -> None:
    tools = [openai.pydantic_function_tool(GetWeather, name="get_weather")["function"] | {"type": "function"}]
    fields: Any = {"model": MODEL, "tools": tools, "temperature": 0}
    first = CLIENT.responses.parse(input=WEATHER, **fields)
    [call] = [item for item in first.output if item.type == "function_call"]
    weather = Weather()
    output = weather.get_weather(**json.loads(call.arguments))
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": output}]
    second = CLIENT.responses.create(input=result, previous_response_id=first.id, **fields)
    assert weather.cities == ["Paris"] and "21" in second.output_text


def test_the_async_client_answers_many_at_once() -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0) as client:

            async def one() -> str:
                async with client.chat.completions.stream(**FIELDS) as stream:
                    return (await stream.get_final_completion()).choices[0].message.content

            return await asyncio.gather(*(one() for _ in range(8)))

    assert set(asyncio.run(ask())) == {CLIENT.chat.completions.create(**FIELDS).choices[0].message.content}


def test_a_stream_that_is_left_ends_the_computation() -> None:
    extra = {"ignore_eos": True}
    with CLIENT.chat.completions.create(**FIELDS, stream=True, max_tokens=1900, extra_body=extra) as stream:
        next(iter(stream))
    wait_until_idle()


def test_an_answer_cut_off_is_no_object() -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        CLIENT.chat.completions.parse(**FIELDS | {"messages": [user(ADA)]}, response_format=Person, max_tokens=3)
