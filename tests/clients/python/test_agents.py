"""Frameworks for agents: OpenAI's, Pydantic's, and smolagents."""

from __future__ import annotations

import asyncio
from typing import Any

import agents
import openai
import pydantic_ai
import pytest
import smolagents
from anthropic import AsyncAnthropic
from asked import ADA, BASE, EXPECTED, KEY, MODEL, SUM, URL, WEATHER, Person, Weather, user
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

agents.set_tracing_disabled(True)


def agent_of_openai(kind: type, **options: Any) -> agents.Agent:
    """An agent whose model speaks chat or responses."""
    client = openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0)
    settings = agents.ModelSettings(temperature=0)
    return agents.Agent(name="tandem", model=kind(MODEL, client), model_settings=settings, **options)


KINDS = [agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel]


@pytest.mark.parametrize("kind", KINDS)
def test_openai_agents_use_tools(kind: type) -> None:
    weather = Weather()

    @agents.function_tool
    def get_weather(city: str) -> str:
        """Get the current weather in a city"""
        return weather.get_weather(city)

    async def run() -> None:
        agent = agent_of_openai(kind, tools=[get_weather])
        whole = await agents.Runner.run(agent, WEATHER)
        assert "21" in whole.final_output and weather.cities == ["Paris"]
        streamed = agents.Runner.run_streamed(agent, WEATHER)
        async for _ in streamed.stream_events():
            pass
        assert streamed.final_output == whole.final_output and weather.cities == ["Paris"] * 2

    asyncio.run(run())


@pytest.mark.parametrize("kind", KINDS)
def test_openai_agents_give_objects(kind: type) -> None:
    agent = agent_of_openai(kind, output_type=Person)
    assert agents.Runner.run_sync(agent, ADA).final_output == EXPECTED


def model_of_pydantic(kind: str) -> Any:
    """A model that speaks one of the three APIs."""
    if kind == "anthropic":
        client = AsyncAnthropic(base_url=URL, api_key=KEY, max_retries=0)
        return AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client))
    provider = OpenAIProvider(base_url=BASE, api_key=KEY)
    return {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}[kind](MODEL, provider=provider)


@pytest.mark.parametrize("kind", ["chat", "responses", "anthropic"])
def test_pydantic_ai(kind: str) -> None:
    weather = Weather()
    settings: Any = {"temperature": 0, "max_tokens": 300}
    agent = pydantic_ai.Agent(model_of_pydantic(kind), tools=[weather.get_weather], model_settings=settings)

    async def run() -> None:
        result = await agent.run(WEATHER)
        assert "21" in result.output and weather.cities == ["Paris"]
        async with agent.run_stream(WEATHER) as stream:
            pieces = [piece async for piece in stream.stream_text(delta=True)]
        assert "".join(pieces) == result.output and weather.cities == ["Paris"] * 2
        if kind != "anthropic":  # which this library asks for none of models it does not know
            typed = pydantic_ai.Agent(model_of_pydantic(kind), output_type=pydantic_ai.NativeOutput(Person))
            assert (await typed.run(ADA, model_settings=settings)).output == EXPECTED

    asyncio.run(run())


def test_smolagents() -> None:
    weather = Weather()

    @smolagents.tool
    def get_weather(city: str) -> str:
        """Get the current weather in a city

        Args:
            city: name of the city
        """
        return weather.get_weather(city)

    model = smolagents.OpenAIModel(model_id=MODEL, api_base=BASE, api_key=KEY, temperature=0)
    whole = model.generate([user(SUM)])
    assert "42" in whole.content
    assert "".join(delta.content or "" for delta in model.generate_stream([user(SUM)])) == whole.content
    called = model.generate([user(WEATHER)], tools_to_call_from=[get_weather])
    [call] = called.tool_calls
    assert call.function.name == "get_weather" and call.function.arguments == '{"city": "Paris"}'
