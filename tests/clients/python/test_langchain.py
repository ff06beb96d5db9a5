"""LangChain over chat completions and over responses."""

from __future__ import annotations

from typing import Any

import pytest
from asked import ADA, BASE, EXPECTED, KEY, MODEL, SUM, WEATHER, WEATHERS, Person, Weather
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

pytestmark = pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])


def model(responses: bool, **options: Any) -> ChatOpenAI:
    """A chat model at the server."""
    fields: Any = {"model": MODEL, "base_url": BASE, "api_key": KEY, "temperature": 0, "max_retries": 0}
    return ChatOpenAI(**fields, use_responses_api=responses, **options)


def tools(weather: Weather) -> list[Any]:
    """Its function as LangChain's tool."""
    return [tool(weather.get_weather)]


def test_a_stream_says_what_invoke_says(responses: bool) -> None:
    whole = model(responses).invoke(SUM)
    assert "42" in whole.text
    chunks = list(model(responses, stream_usage=True).stream(SUM))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.text == whole.text
    assert total.usage_metadata["total_tokens"] == whole.usage_metadata["total_tokens"]


def test_a_batch_says_what_each_says(responses: bool) -> None:
    answers = model(responses).batch([SUM] * 4)
    assert {answer.text for answer in answers} == {model(responses).invoke(SUM).text}


def test_bound_tools_are_called(responses: bool) -> None:
    bound = model(responses).bind_tools(tools(Weather()))
    whole = bound.invoke(WEATHERS)
    assert [call["args"] for call in whole.tool_calls] == [{"city": "Paris"}, {"city": "Rome"}]
    total: Any = None
    for chunk in bound.stream(WEATHERS):
        total = chunk if total is None else total + chunk
    assert [call["args"] for call in total.tool_calls] == [{"city": "Paris"}, {"city": "Rome"}]


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output(responses: bool, method: str) -> None:
    if method == "function_calling":
        found = model(responses).with_structured_output(Person, method=method).invoke("Ada is 36 years old.")
        assert isinstance(found, Person)
    else:
        assert model(responses).with_structured_output(Person, method=method).invoke(ADA) == EXPECTED


def test_an_agent_uses_the_result_of_its_tool(responses: bool) -> None:
    weather = Weather()
    agent = create_agent(model(responses), tools=tools(weather))
    state = agent.invoke({"messages": [("user", WEATHER)]})
    assert weather.cities == ["Paris"] and "21" in state["messages"][-1].text
