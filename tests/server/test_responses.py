"""The Responses API: the official client, every event against the published types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

from tests.server.conftest import MODEL
from tests.server.process import ServerProcess
from tests.server.responses import (
    BODY,
    LOGPROBS,
    PATH,
    WEATHER,
    plain,
    rebuilt,
    sdk,
    streamed,
    whole,
)


@pytest.fixture(scope="module")
def bundled() -> Iterator[ServerProcess]:
    with ServerProcess("") as running:
        yield running


@pytest.fixture
def demo(bundled: ServerProcess) -> openai.OpenAI:
    return sdk(bundled)


# ---------------------------------------------------------------------- whole and streamed


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"instructions": "Be brief.", "metadata": {"a": "b"}, "user": "me", "store": False},
        {"include": [LOGPROBS], "top_logprobs": 3},
        {"temperature": 0, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "stop": "e", "ignore_eos": True},
        {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 60},
        {
            "input": [
                {"role": "developer", "content": "Be lazy."},
                {"role": "user", "content": [{"type": "input_text", "text": "naïve 🎉"}]},
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a fox"}]},
                {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "fox"}'},
                {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "dog"}]},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
                {"role": "user", "content": "well?"},
            ]
        },
    ],
)
def test_a_stream_says_what_a_whole_response_says(server: ServerProcess, options: dict[str, Any]) -> None:
    body = BODY | options
    response, stream = whole(server, body), streamed(server, body)
    assert stream[-1]["type"] == f"response.{response['status']}"
    assert plain(stream[-1]["response"]) == plain(response)
    assert stream[-1]["response"]["output"] == rebuilt(stream)
    assert len({event["response"]["id"] for event in stream if "response" in event}) == 1
    assert stream[0]["response"]["output"] == [] and stream[0]["response"]["usage"] is None


def test_thoughts_and_calls_are_items(bundled: ServerProcess) -> None:
    asked = {"input": "What is 48 + 37?", "reasoning": {"effort": "low"}, "temperature": 0, "include": [LOGPROBS]}
    response, stream = whole(bundled, asked), streamed(bundled, asked)
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
    assert plain(stream[-1]["response"]["output"]) == plain(response["output"])
    assert rebuilt(stream) == stream[-1]["response"]["output"]
    assert 0 < response["usage"]["output_tokens_details"]["reasoning_tokens"] < response["usage"]["output_tokens"]
    (part,) = response["output"][1]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode().strip() == part["text"].strip()

    asked = {"input": "How is the weather in Oslo?", "tools": [WEATHER], "temperature": 0}
    response, stream = whole(bundled, asked), streamed(bundled, asked)
    (call,) = response["output"]
    assert call["type"] == "function_call" and json.loads(call["arguments"]) == {"city": "Oslo"}
    assert plain(rebuilt(stream)) == plain(response["output"])
    assert response["tools"] == [WEATHER] and response["tool_choice"] == "auto"


def test_logprobs_rebuild_the_text(server: ServerProcess) -> None:
    response = whole(server, BODY | {"include": [LOGPROBS], "top_logprobs": 2})
    (part,) = response["output"][0]["content"]
    joined = b"".join(bytes(entry["bytes"]) for entry in part["logprobs"])
    assert joined.decode(errors="replace") == part["text"]
    assert len(part["logprobs"]) == response["usage"]["output_tokens"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
    assert whole(server, BODY)["output"][0]["content"][0]["logprobs"] == []


def test_an_answer_that_is_too_long_is_incomplete(server: ServerProcess) -> None:
    for stream in (False, True):
        body = BODY | {"max_output_tokens": 3, "ignore_eos": True}
        response = streamed(server, body)[-1]["response"] if stream else whole(server, body)
        assert response["status"] == "incomplete" and response["completed_at"] is None
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["output"][-1]["status"] == "incomplete"
        assert response["usage"]["output_tokens"] == 3


def test_usage_is_that_of_chat(server: ServerProcess) -> None:
    chat = server.post(
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": BODY["input"]}], "max_tokens": 24, "seed": 7},
    ).json()
    response = whole(server, BODY)
    assert response["output"][0]["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert response["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert response["usage"]["output_tokens"] == chat["usage"]["completion_tokens"]
    assert response["usage"]["input_tokens_details"]["cached_tokens"] > 0


# ---------------------------------------------------------------------- the official client


def test_the_official_client_creates_and_streams(demo: openai.OpenAI) -> None:
    options: Any = {"model": "tandem-demo", "input": "What is 17 plus 25?", "temperature": 0}
    response = demo.responses.create(**options)
    assert response.output_text and response.id.startswith("resp_")
    with demo.responses.stream(**options) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == response.output_text
    listed = list(demo.responses.create(**options, stream=True))
    assert listed[-1].type == "response.completed" and listed[-1].response.output_text == text


def test_the_async_client(server: ServerProcess) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none") as client:

            async def one(seed: int) -> str:
                stream = await client.responses.create(
                    model=MODEL, input="hi", max_output_tokens=8, stream=True, extra_body={"seed": seed}
                )
                deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
                return "".join(deltas)

            return await asyncio.gather(*(one(seed) for seed in (1, 2, 1)))

    first, second, again = asyncio.run(ask())
    assert first == again != second


def test_answers_are_parsed(client: openai.OpenAI) -> None:
    class Fox(pydantic.BaseModel):
        quick: bool
        legs: int

    parsed = client.responses.parse(
        model=MODEL, input="a fox", text_format=Fox, max_output_tokens=200, extra_body={"seed": 3}
    )
    assert isinstance(parsed.output_parsed, Fox)
    assert parsed.text.format.type == "json_schema" and parsed.text.format.name == "Fox"


def test_a_function_is_called_and_its_result_spoken_of(demo: openai.OpenAI) -> None:
    options: Any = {"model": "tandem-demo", "tools": [WEATHER], "temperature": 0}
    items: Any = [{"role": "user", "content": "How is the weather in Oslo?"}]
    first = demo.responses.create(**options, input=items)
    (call,) = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"temperature": 21}'}
    by_hand = demo.responses.create(**options, input=[*items, *first.output, result])
    by_id = demo.responses.create(**options, input=[result], previous_response_id=first.id)
    assert "21" in by_hand.output_text and by_id.output_text == by_hand.output_text
    forced = demo.responses.create(**options, input="hello", tool_choice={"type": "function", "name": "get_weather"})
    assert forced.output[0].type == "function_call"
    allowed: Any = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "get_weather"}],
    }
    assert demo.responses.create(**options, input="hello", tool_choice=allowed).output[0].type == "function_call"
    none = demo.responses.create(**options, input="How is the weather in Oslo?", tool_choice="none")
    assert all(item.type != "function_call" for item in none.output)


# ---------------------------------------------------------------------- truncation and counting


def test_the_oldest_items_are_left_out(server: ServerProcess) -> None:
    items = [{"role": "user", "content": f"{number} " + "0 1 2 3 4 " * 20} for number in range(55)]
    body = {"input": items, "max_output_tokens": 50, "instructions": "Be brief."}
    refused = server.post(PATH, body)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"
    assert refused.json()["error"]["param"] in ("input", "max_output_tokens")
    response = whole(server, body | {"truncation": "auto"})
    one = whole(server, body | {"input": items[-1:]})["usage"]["input_tokens"]
    used = response["usage"]["input_tokens"]
    assert 4096 - 50 - one < used <= 4096 - 50  # no more than had to go
    assert server.post(PATH, {"input": "0 1 2 " * 5000, "truncation": "auto"}).status_code == 400


def test_a_call_and_its_output_are_left_out_together(server: ServerProcess) -> None:
    items: Any = [
        {"role": "assistant", "content": "0 1 2 3 4 " * 700},  # one message with the call
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
        {"role": "user", "content": "hi"},
    ]
    response = whole(server, {"input": items, "max_output_tokens": 8, "truncation": "auto"})
    assert response["usage"]["input_tokens"] == whole(server, BODY | {"input": "hi"})["usage"]["input_tokens"]


def test_tokens_are_counted(client: openai.OpenAI, server: ServerProcess) -> None:
    for options in ({"input": "hi"}, {"input": "hi", "instructions": "Be brief.", "tools": [WEATHER]}):
        count = client.responses.input_tokens.count(model=MODEL, **options)
        bare = {name: value for name, value in options.items() if name != "tools"}
        assert count.object == "response.input_tokens"
        assert count.input_tokens == whole(server, BODY | bare)["usage"]["input_tokens"]  # its template has no tools
    response = whole(server, BODY)
    count = client.responses.input_tokens.count(input="more", previous_response_id=response["id"]).input_tokens
    assert (
        count
        == whole(server, BODY | {"input": "more", "previous_response_id": response["id"]})["usage"]["input_tokens"]
    )


# ---------------------------------------------------------------------- both engines


def test_both_engines_answer_alike(model_dir: Path) -> None:
    options = ("--served-model-name", MODEL, "--dtype", "float32")
    bodies: list[dict[str, Any]] = [
        BODY,
        BODY | {"temperature": 0, "instructions": "Be brief."},
        BODY | {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 40},
        BODY | {"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "stop": "e"},
        BODY | {"max_output_tokens": 100_000},
    ]
    answers = []
    for backend in ("reference", "optimized"):
        with ServerProcess(model_dir, *options, "--backend", backend) as server:
            wholes = [plain(server.post(PATH, body).json()) for body in bodies]
            streams = [plain(streamed(server, body)[-1]["response"]) for body in bodies[:-1]]
            answers.append((wholes, streams))
    assert answers[0] == answers[1]
