"""Anthropic's Messages API: the official client, its types, and the laws that all routes keep."""

from __future__ import annotations

import asyncio
import inspect
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx
import pydantic
import pytest
from anthropic.types import (
    ErrorResponse,
    Message,
    MessageTokensCount,
    RawMessageStreamEvent,
    ThreadUnsupportedRequestErrorDetails,
)
from hypothesis import given
from hypothesis import strategies as st

from server.app import create_app
from server.config import ServerConfig
from server.dialects.dialect import Answer
from server.dialects.messages import Blocks, MessagesDialect, added_up
from server.intake.messages import chat_request
from server.routes.messages import COUNT_PARSER, FAMILY, PARSER
from server.schemas.messages import REFUSALS
from server.state import ServerState
from tandem.errors import RequestError
from tandem.events import ChoiceEnded, ReasoningDelta, TextDelta, ToolCallArguments, ToolCallBegun, ToolCallEnded
from tests.server.conftest import MODEL
from tests.server.process import ServerProcess, connect, eventually

DEMO = "tandem-demo"
PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
JSON = {"content-type": "application/json"}
WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TIMER: Any = {
    "name": "set_timer",
    "description": "Set a timer.",
    "input_schema": {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]},
}
OSLO: Any = [{"role": "user", "content": "How is the weather in Oslo?"}]
SUM: Any = [{"role": "user", "content": "What is 17 plus 25?"}]
USED: Any = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}}
RESULT: Any = {"type": "tool_result", "tool_use_id": "toolu_1", "content": '{"temperature": 21}'}
GREEDY: Any = {"extra_body": {"temperature": 0}}
NULLABLE = {"stop_reason", "stop_sequence", "stop_details"}


@pytest.fixture(scope="module")
def demo() -> Iterator[ServerProcess]:
    """The bundled model, which calls tools and thinks."""
    with ServerProcess("") as running:
        yield running


@pytest.fixture(scope="module")
def client(demo: ServerProcess) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=demo.url, api_key="none", max_retries=0)


def strictly(kind: Any, data: Any) -> Any:
    """``data`` as the published type, with nothing converted, nothing unknown and no stray null."""
    value = pydantic.TypeAdapter(kind).validate_python(data, strict=True)
    _no_extras(value)
    return value


def _no_extras(value: Any) -> None:
    if isinstance(value, pydantic.BaseModel):
        assert not value.model_extra, value
        for name in value.model_fields_set:
            assert getattr(value, name) is not None or name in NULLABLE, name
            _no_extras(getattr(value, name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _no_extras(item)


def stream_of(text: str) -> list[Any]:
    """The events of a stream, each named as its type says, in the order that the API promises."""
    assert text.endswith("\n\n")
    found = []
    for block in text[:-2].split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def checked(events: list[Any]) -> list[Any]:
    """The same without pings, every event valid, blocks numbered and one after the other."""
    assert events[1] == {"type": "ping"}
    events = [event for event in events if event != {"type": "ping"}]
    for event in events:
        strictly(RawMessageStreamEvent, event)
    assert events[0]["type"] == "message_start" and events[0]["message"]["content"] == []
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    index, is_open = -1, False
    for event, following in zip(events[1:-2], events[2:], strict=False):
        if event.get("delta", {}).get("type") == "thinking_delta":
            assert following["delta"]["type"] in ("thinking_delta", "signature_delta")
        if event["type"] == "content_block_start":
            assert not is_open
            index, is_open = index + 1, True
        assert is_open and event["index"] == index
        is_open = event["type"] != "content_block_stop"
    assert not is_open
    return events


def put_together(events: list[Any]) -> dict[str, Any]:
    """The message that a stream tells of."""
    delta = events[-2]
    return events[0]["message"] | {"content": added_up(events[1:-2]), **delta["delta"], "usage": delta["usage"]}


def same(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what differs between two answers to one request."""
    content = [{k: v for k, v in block.items() if k != "id"} for block in message["content"]]
    return {k: v for k, v in message.items() if k != "id"} | {"content": content}


VARIANTS: dict[str, dict[str, Any]] = {
    "text": {"messages": SUM},
    "system": {"messages": SUM, "system": [{"type": "text", "text": "Answer in upper case."}]},
    "seeded": {"messages": SUM, "temperature": 1, "seed": 5, "top_p": 0.9, "top_k": 40},
    "max_tokens": {"messages": SUM, "max_tokens": 5},
    "stopped": {"messages": SUM, "stop_sequences": ["never", "="]},
    "tool": {"messages": OSLO, "tools": [WEATHER, TIMER]},
    "any tool": {"messages": SUM, "tools": [WEATHER, TIMER], "tool_choice": {"type": "any"}},
    "one tool": {"messages": SUM, "tools": [WEATHER, TIMER], "tool_choice": {"type": "tool", "name": "set_timer"}},
    "no tool": {"messages": OSLO, "tools": [WEATHER], "tool_choice": {"type": "none"}},
    "cut call": {"messages": OSLO, "tools": [WEATHER], "max_tokens": 17},
    "result": {
        "messages": [*OSLO, {"role": "assistant", "content": [USED]}, {"role": "user", "content": [RESULT]}],
        "tools": [WEATHER],
    },
    "thinking": {
        "messages": SUM, "max_tokens": 1100, "thinking": {"type": "enabled", "budget_tokens": 1024},
    },
    "adaptive": {"messages": SUM, "thinking": {"type": "adaptive", "display": "omitted"}},
    "not thinking": {"messages": SUM, "thinking": {"type": "disabled"}},
    "prefill": {"messages": [*SUM, {"role": "assistant", "content": "17 + 25 ="}]},
    "schema": {
        "messages": SUM,
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object", "properties": {
            "sum": {"type": "integer"}}, "required": ["sum"], "additionalProperties": False}}},
    },
}  # fmt: skip


def body_of(variant: str) -> dict[str, Any]:
    return {"model": DEMO, "max_tokens": 64, "temperature": 0} | VARIANTS[variant]


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_are_of_the_published_types_and_streams_say_the_same(demo: ServerProcess, variant: str) -> None:
    body = body_of(variant)
    answer = demo.post(PATH, body)
    assert answer.status_code == 200, answer.text
    whole = answer.json()
    strictly(Message, whole)
    assert whole["id"].startswith("msg_") and answer.headers["request-id"].startswith("req_")
    streamed = demo.post(PATH, body | {"stream": True})
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert streamed.headers["request-id"].startswith("req_")
    events = checked(stream_of(streamed.text))
    assert same(put_together(events)) == same(whole)
    assert events[0]["message"]["usage"]["input_tokens"] == whole["usage"]["input_tokens"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_counted_tokens_are_those_of_the_prompt(demo: ServerProcess, variant: str) -> None:
    body = body_of(variant)
    names = COUNT_PARSER.struct.__struct_fields__
    counted = demo.post(COUNT, {name: value for name, value in body.items() if name in names})
    strictly(MessageTokensCount, counted.json())
    assert counted.headers["request-id"].startswith("req_")
    assert counted.json() == {"input_tokens": demo.post(PATH, body).json()["usage"]["input_tokens"]}


def test_variants_do_what_their_names_say(demo: ServerProcess) -> None:
    answers = {variant: demo.post(PATH, body_of(variant)).json() for variant in VARIANTS}
    reasons = {variant: answer["stop_reason"] for variant, answer in answers.items()}
    calling = {"tool", "any tool", "one tool"}
    assert {variant for variant, reason in reasons.items() if reason == "tool_use"} == calling
    assert reasons["max_tokens"] == reasons["cut call"] == "max_tokens" and reasons["text"] == "end_turn"
    assert reasons["stopped"] == "stop_sequence" and answers["stopped"]["stop_sequence"] == "="
    text = answers["text"]["content"][0]["text"]
    assert answers["stopped"]["content"] == [{"type": "text", "text": text[: text.index("=")]}]
    assert answers["max_tokens"]["usage"]["output_tokens"] == 5
    assert answers["system"]["content"] != answers["text"]["content"]
    assert answers["one tool"]["content"][0]["name"] == "set_timer"
    assert all(block["type"] == "text" for block in answers["no tool"]["content"])
    assert "21" in answers["result"]["content"][0]["text"]
    assert [block["type"] for block in answers["thinking"]["content"]] == ["thinking", "text"]
    assert answers["thinking"]["content"][0]["thinking"] and answers["thinking"]["content"][0]["signature"] == ""
    assert answers["adaptive"]["content"][0] == {"type": "thinking", "thinking": "", "signature": ""}
    assert answers["thinking"]["usage"]["output_tokens_details"]["thinking_tokens"] > 0
    assert [block["type"] for block in answers["not thinking"]["content"]] == ["text"]
    assert "42" in answers["prefill"]["content"][0]["text"] and "17 +" not in answers["prefill"]["content"][0]["text"]
    assert isinstance(json.loads(answers["schema"]["content"][0]["text"])["sum"], int)


def test_the_official_client_streams(client: anthropic.Anthropic) -> None:
    options: Any = {"model": DEMO, "max_tokens": 64, "messages": SUM, **GREEDY}
    whole = client.messages.create(**options)
    with client.messages.stream(**options) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
        assert stream.request_id is not None and stream.request_id.startswith("req_")
    assert text == whole.content[0].text  # type: ignore[union-attr]
    left, right = ({**m.to_dict(), "id": "", "content": [b.to_dict() for b in m.content]} for m in (whole, final))
    for block in right["content"]:
        block.pop("parsed_output", None)
    assert left == right
    assert client.messages.count_tokens(model=DEMO, messages=SUM).input_tokens == whole.usage.input_tokens


def test_the_official_client_calls_a_tool(client: anthropic.Anthropic) -> None:
    options: Any = {"model": DEMO, "max_tokens": 64, "tools": [WEATHER], **GREEDY}
    with client.messages.stream(messages=OSLO, **options) as stream:
        asked = stream.get_final_message()
    (call,) = [block for block in asked.content if block.type == "tool_use"]
    assert asked.stop_reason == "tool_use" and call.input == {"city": "Oslo"} and call.id.startswith("toolu_")
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": '{"temperature": 21}'}
    turns: Any = [*OSLO, asked.to_param(), {"role": "user", "content": [result]}]
    told = client.messages.create(messages=turns, **options)
    assert told.stop_reason == "end_turn" and "21" in told.content[0].text  # type: ignore[union-attr]


def test_thoughts_come_back(client: anthropic.Anthropic) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    options: Any = {"model": DEMO, "max_tokens": 1100, "thinking": thinking, **GREEDY}
    with client.messages.stream(messages=SUM, **options) as stream:
        first = stream.get_final_message()
    assert [block.type for block in first.content] == ["thinking", "text"]
    redacted: Any = {"type": "redacted_thinking", "data": "opaque"}
    turns: Any = [*SUM, {"role": "assistant", "content": [redacted, *first.content]}, *SUM]
    assert client.messages.create(messages=turns, **options).content


def test_the_official_client_parses_schemas(client: anthropic.Anthropic) -> None:
    class Sum(pydantic.BaseModel):
        total: int

    answer = client.messages.parse(model=DEMO, max_tokens=64, messages=SUM, output_format=Sum)
    assert isinstance(answer.parsed_output, Sum)


def test_the_async_client(demo: ServerProcess) -> None:
    async def ask() -> tuple[str, str]:
        async with anthropic.AsyncAnthropic(base_url=demo.url, api_key="none") as client:
            options: Any = {"model": DEMO, "max_tokens": 64, "messages": SUM, **GREEDY}
            whole = await client.messages.create(**options)
            async with client.messages.stream(**options) as stream:
                return whole.content[0].text, "".join([text async for text in stream.text_stream])  # type: ignore

    whole, streamed = asyncio.run(ask())
    assert whole == streamed


def test_a_seed_repeats(server: ServerProcess) -> None:
    def ask(seed: int) -> Any:
        body = {"model": MODEL, "max_tokens": 20, "messages": SUM, "temperature": 1, "seed": seed}
        return server.post(PATH, body).json()["content"]

    assert ask(1) == ask(1) and len({json.dumps(ask(seed)) for seed in range(6)}) > 1


def test_what_was_cached_is_told_where_it_is_marked(demo: ServerProcess) -> None:
    text = {"type": "text", "text": "Say something about the weather in Oslo. " * 9}
    marked = {**text, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    usages = []
    for block in (text, text, marked):
        body = {"model": DEMO, "max_tokens": 1, "system": [block], "messages": SUM}
        usages.append(demo.post(PATH, body).json()["usage"])
    assert usages[0] == usages[1] and "cache_read_input_tokens" not in usages[0]
    read = usages[2]["cache_read_input_tokens"]
    assert read > 16 and usages[2]["cache_creation_input_tokens"] == 0
    assert usages[2]["input_tokens"] + read == usages[0]["input_tokens"]
    strictly(Message, demo.post(PATH, body).json())


@pytest.fixture(scope="module")
def reference() -> Iterator[ServerProcess]:
    with ServerProcess("", "--backend", "reference") as running:
        yield running


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_backends_say_the_same(demo: ServerProcess, reference: ServerProcess, variant: str) -> None:
    body = body_of(variant)
    assert same(demo.post(PATH, body).json()) == same(reference.post(PATH, body).json())
    assert (
        demo.post(PATH, body | {"max_tokens": 9999}).json()["error"]
        == (reference.post(PATH, body | {"max_tokens": 9999}).json()["error"])
    )


# ---------------------------------------------------------------------- blocks

EVENTS = [
    ReasoningDelta(0, "\nwell\n"), TextDelta(0, "\n\n"), ToolCallBegun(0, 0, "call_a", "f"),
    ToolCallArguments(0, 0, '{"a": 1}'), ToolCallEnded(0, 0), TextDelta(0, "\n"), ToolCallBegun(0, 1, "call_b", "g"),
    ToolCallEnded(0, 1), TextDelta(0, "  so it is \n"),
]  # fmt: skip


def blocks_of(events: Any, single: bool = False, omits: bool = False) -> list[Any]:
    blocks = Blocks(single, omits)
    return added_up([wire for event in events for wire in blocks.push(event)] + list(blocks.end()))


@given(st.lists(st.integers(0, 12), max_size=12))
def test_blocks_do_not_depend_on_how_events_are_cut(cuts: list[int]) -> None:
    pieces: list[Any] = []
    for event in EVENTS:
        text = getattr(event, "text", "")
        points = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
        if not text:
            pieces.append(event)
            continue
        for start, end in zip(points, points[1:], strict=False):
            fields = {name: getattr(event, name) for name in event.__struct_fields__}
            pieces.append(type(event)(**fields | {"text": text[start:end]}))
    assert blocks_of(pieces) == [
        {"type": "thinking", "thinking": "\nwell\n", "signature": ""},
        {"type": "tool_use", "id": "toolu_a", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "toolu_b", "name": "g", "input": {}},
        {"type": "text", "text": "  so it is \n"},
    ]


def test_one_call_at_most_where_that_is_asked() -> None:
    assert [block["type"] for block in blocks_of(EVENTS, single=True)] == ["thinking", "tool_use", "text"]


def test_thoughts_may_be_left_out() -> None:
    assert blocks_of(EVENTS, omits=True)[0] == {"type": "thinking", "thinking": "", "signature": ""}


@pytest.mark.parametrize("kind", ["auto", "any"])
def test_a_request_asks_for_one_call_at_most(kind: str) -> None:
    choice = {"type": kind, "disable_parallel_tool_use": True}
    for fields, count in (({}, 2), ({"tool_choice": choice}, 1), ({"tool_choice": {"type": kind}}, 2)):
        body = {"model": "m", "max_tokens": 9, "messages": SUM, "tools": [WEATHER]} | fields
        request, _ = PARSER.parse(json.dumps(body).encode())
        counts = SimpleNamespace(
            num_prompt_tokens=1, num_output_tokens=9, num_cached_tokens=0, num_reasoning_tokens=0
        )
        context: Any = SimpleNamespace(common={"id": "msg_1", "model": "m"}, counts=counts)
        answer = Answer(1)
        answer.add([*EVENTS, ChoiceEnded(0, "stop")])
        whole = json.loads(MessagesDialect(context, request).whole(answer))
        assert [block["type"] for block in whole["content"]].count("tool_use") == count
        assert whole["stop_reason"] == "tool_use"


def test_silence_is_a_ping() -> None:
    form = inspect.getclosurevars(FAMILY.deliver).nonlocals["form"]
    assert form.silence == b'event: ping\ndata: {"type":"ping"}\n\n'


# ---------------------------------------------------------------------- what a request means


def meant(**fields: Any) -> Any:
    body = {"model": "m", "max_tokens": 2000, "messages": SUM} | fields
    return chat_request(PARSER.parse(json.dumps(body).encode())[0])


def test_turns_become_messages() -> None:
    chat = meant(
        system="Be brief.",
        messages=[
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "c"},
                    USED,
                ],
            },
            {
                "role": "user",
                "content": [
                    {**RESULT, "is_error": True, "content": [{"type": "text", "text": "no"}]},
                    {"type": "text", "text": "d"},
                ],
            },
            {"role": "system", "content": "e"},
            {"role": "assistant", "content": ""},
        ],
    )
    assert [message.role for message in chat.messages] == ["system", "user", "assistant", "tool", "user", "system"]
    _, user, assistant, tool, last, _ = chat.messages
    assert [part.text for part in user.content] == ["a", "b"]
    assert (assistant.reasoning_content, assistant.content) == ("hm", "c")
    (call,) = assistant.tool_calls
    assert (call.id, call.function.name, call.function.arguments) == ("toolu_1", "get_weather", {"city": "Oslo"})
    assert (tool.tool_call_id, tool.content, last.content) == ("toolu_1", "Error: no", "d")
    assert not chat.continue_final_message


def test_parameters_become_those_of_chat() -> None:
    chat = meant(
        temperature=0.5, top_p=0.4, top_k=3, stop_sequences=["x"], metadata={"user_id": "me"}, seed=1,
        tools=[{**WEATHER, "strict": True}], tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 1500}, output_config={"effort": "low"},
    )  # fmt: skip
    assert (chat.temperature, chat.top_p, chat.top_k, chat.stop, chat.user, chat.seed) == (
        0.5, 0.4, 3, ["x"], "me", 1,
    )  # fmt: skip
    assert (chat.max_tokens, chat.thinking_token_budget) == (2000, 1500)
    assert (chat.tool_choice, chat.parallel_tool_calls, chat.tools[0].function.strict) == ("required", False, True)
    assert chat.chat_template_kwargs == {"reasoning_effort": "low", "enable_thinking": True, "thinking": True}
    assert meant(thinking={"type": "disabled"}).chat_template_kwargs == {"enable_thinking": False, "thinking": False}
    assert meant().chat_template_kwargs is None and meant().thinking_token_budget is None
    assert meant(messages=[*SUM, {"role": "assistant", "content": "The"}]).continue_final_message


# ---------------------------------------------------------------------- errors


def refused(answer: httpx.Response, status: int, kind: str, named: str = "") -> str:
    """The message of an error, which must be of the API's shape."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"type", "error", "request_id"} and set(body["error"]) - {"details"} == {"type", "message"}
    assert body["request_id"] == answer.headers["request-id"] and body["request_id"].startswith("req_")
    if details := body["error"].pop("details", None):  # which the types of errors leave out
        strictly(ThreadUnsupportedRequestErrorDetails, details)
    if kind != "request_too_large":  # of which the published types know nothing
        strictly(ErrorResponse, body)
    message: str = body["error"]["message"]
    assert body["error"]["type"] == kind and named in message, message
    assert message and "\n" not in message and len(message) < 5000 and "Traceback" not in message
    return message


LONG = "x" * 100_000
BIG = 10**30
NESTED = json.loads('{"a": ' * 100 + "1" + "}" * 100)
DEEP = '{"a": ' * 5000 + "1" + "}" * 5000
WRONG: dict[str, list[Any]] = {
    "model": [None, 1, [], LONG],
    "max_tokens": [None, 0, -1, "x", 1.5, True, 100_000, BIG],
    "messages": [
        None, "hi", [], {}, [1], [{"role": "user"}], [{"role": "king", "content": "a"}], [{"content": "a"}],
        [{"role": "user", "content": ""}], [{"role": "user", "content": []}], [{"role": "user", "content": 1}],
        [{"role": "user", "content": None}], [{"role": "user", "content": "a", "name": "b"}],
        [{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": [{"text": "a"}]}],
        [{"role": "user", "content": [{"type": "text", "text": ""}]}],
        [{"role": "user", "content": [{"type": "text", "text": "a", "made_up": 1}]}],
        [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "made_up"}}]}],
        [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}],
        [{"role": "user", "content": [{"type": "document", "source": {}}]}],
        [{"role": "user", "content": [{"type": "search_result"}]}],
        [{"role": "user", "content": [{"type": "container_upload", "file_id": "x"}]}],
        [{"role": "user", "content": [{"type": "thinking", "thinking": "a", "signature": ""}]}],
        [{"role": "user", "content": [USED]}], [{"role": "user", "content": [RESULT]}],
        [*OSLO, {"role": "assistant", "content": [USED]}],
        [*OSLO, {"role": "assistant", "content": [USED]}, {"role": "user", "content": "well?"}],
        [*OSLO, {"role": "assistant", "content": [USED, USED]}, {"role": "user", "content": [RESULT]}],
        [*OSLO, {"role": "assistant", "content": [USED]}, {"role": "user", "content": [RESULT, RESULT]}],
        [*OSLO, {"role": "assistant", "content": [{**USED, "input": "a"}]}, {"role": "user", "content": [RESULT]}],
        [*OSLO, {"role": "assistant", "content": [USED]},
         {"role": "user", "content": [{**RESULT, "content": [{"type": "image"}]}]}],
        [*OSLO, {"role": "assistant", "content": [RESULT]}],
        [*OSLO, {"role": "assistant", "content": "ends in space "}],
        [*OSLO, {"role": "assistant", "content": [{"type": "thinking", "thinking": "a", "signature": ""}]}],
        [{"role": "user", "content": "word " * 3000}], [{"role": "user", "content": "\ud800"}],
        [{"role": "assistant", "content": ""}],
    ],
    "system": [1, {}, [1], [{"type": "image"}], [{"type": "text", "text": ""}]],
    "tools": [
        "x", {}, [1], [{"name": "f"}], [{"input_schema": {"type": "object"}}], [{**WEATHER, "name": "a b"}],
        [{**WEATHER, "name": ""}], [{**WEATHER, "name": LONG}], [WEATHER, WEATHER], [{**WEATHER, "input_schema": {}}],
        [{**WEATHER, "input_schema": {"type": "string"}}], [{**WEATHER, "input_schema": []}],
        [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}],
        [{"type": "bash_20250124", "name": "bash"}], [{**WEATHER, "defer_loading": True}],
        [{**WEATHER, "allowed_callers": ["code_execution_20250825"]}], [{**WEATHER, "input_examples": [{}]}],
        [{**WEATHER, "eager_input_streaming": False}], [{**WEATHER, "strict": "yes"}], [WEATHER] * 2000,
    ],
    "tool_choice": [
        "auto", 1, {"type": "auto"}, {"type": "any"}, {"type": "made_up"}, {"type": "tool", "name": "f"},
        {"type": "tool"}, {"type": "auto", "disable_parallel_tool_use": "yes"},
    ],
    "thinking": [
        1, "enabled", {"type": "enabled"}, {"type": "enabled", "budget_tokens": 1023},
        {"type": "enabled", "budget_tokens": 5000}, {"type": "enabled", "budget_tokens": "x"},
        {"type": "between_tools"}, {"type": "adaptive", "display": "loud"}, {"type": "disabled", "budget_tokens": 1},
    ],
    "output_config": [
        1, {"effort": "little"}, {"format": {}}, {"format": {"type": "json_schema"}}, {"made_up": 1},
        {"format": {"type": "json_schema", "schema": {"type": "made_up"}}}, {"format": {"type": "text"}},
        {"format": {"type": "json_schema", "schema": {"$ref": "http://x"}}},
    ],
    "cache_control": [1, {"type": "made_up"}, {"type": "ephemeral", "ttl": "1d"}],
    "stream": ["yes", 1],
    "temperature": ["warm", -0.1, 1.1, BIG, True],
    "top_p": ["x", -0.1, 1.1],
    "top_k": ["x", -1, 1.5, BIG],
    "stop_sequences": ["x", [1], [""], [" \n"], [LONG], ["x"] * 65],
    "metadata": [1, {"user_id": 1}, {"user_id": LONG}, {"made_up": 1}],
    "service_tier": [1, "priority"],
    "seed": ["x", 1.5, BIG],
}  # fmt: skip
CASES = [
    pytest.param(path, field, value, id=f"{path}-{field}-{str(value)[:40]}")
    for path, parser in ((PATH, PARSER), (COUNT, COUNT_PARSER))
    for field in parser.struct.__struct_fields__
    for value in WRONG[field]
]


@pytest.mark.parametrize(("path", "field", "value"), CASES)
def test_a_wrong_value_is_refused_by_name(demo: ServerProcess, path: str, field: str, value: Any) -> None:
    body = {"model": DEMO, "messages": SUM} | ({"max_tokens": 4} if path == PATH else {})
    answer = httpx.post(demo.url + path, content=json.dumps(body | {field: value}), headers=JSON, timeout=30)
    if path == COUNT and (
        value == [{"role": "user", "content": "word " * 3000}]
        or field == "output_config"
        and "json_schema" in str(value)
        and "schema" in value["format"]
        or field == "thinking"
        and value == {"type": "enabled", "budget_tokens": 5000}
    ):
        assert answer.status_code == 200, "it is no more than counted"
        return
    named = "body is not valid JSON" if "\ud800" in json.dumps(value, ensure_ascii=False) else field
    message = refused(answer, 400, "invalid_request_error", "")
    assert named in message, message


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_honoured_is_refused_by_name(demo: ServerProcess, name: str) -> None:
    body = {"model": DEMO, "messages": SUM, "max_tokens": 1}
    refused(demo.post(PATH, body | {name: {"id": "x"}}), 400, "invalid_request_error", name)
    for value in (None, *REFUSALS[name][1]):
        assert demo.post(PATH, body | {name: value}).status_code == 200


def test_a_refused_thread_says_so_to_tool_runners(demo: ServerProcess) -> None:
    """They then send the whole conversation; a thread that is ignored loses all of it but the last turn."""
    body = {"model": DEMO, "messages": SUM, "max_tokens": 1}
    for thread in ({"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}):
        answer = demo.post(PATH, body | {"thread": thread})
        refused(answer, 400, "invalid_request_error", "thread")
        assert answer.json()["error"]["details"] == {"error_code": "thread_unsupported_request"}
    assert "details" not in demo.post(PATH, body | {"container": "x"}).json()["error"]


def test_refusals_say_what_is_meant(demo: ServerProcess) -> None:
    body = {"model": DEMO, "messages": SUM, "max_tokens": 1}

    def message(**fields: Any) -> str:
        return refused(demo.post(PATH, body | fields), 400, "invalid_request_error")

    image = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]
    assert message(messages=image) == "messages[0].content[1]: this model reads text, no image"
    search = [WEATHER, {"type": "web_search_20250305", "name": "web_search"}]
    assert message(tools=search).startswith("tools[1].type: 'web_search_20250305'")
    assert "thinking.budget_tokens" in message(thinking={"type": "enabled", "budget_tokens": 2000})
    unknown = {**WEATHER, "input_schema": {"type": "object", "properties": {"a": {"type": "made_up"}}}}
    choice = {"type": "any"}
    assert "tools" in message(tools=[unknown], tool_choice=choice)


def test_unknown_fields_are_ignored_and_named(demo: ServerProcess) -> None:
    for path in (PATH, COUNT):
        body = {"model": DEMO, "messages": SUM, "max_tokens": 1, "made_up": 1}
        names = demo.post(path, body).headers["x-tandem-ignored-fields"]
        assert names == ("made_up" if path == PATH else "max_tokens, made_up")


def test_null_means_not_given(demo: ServerProcess) -> None:
    body = dict.fromkeys(PARSER.struct.__struct_fields__) | {"model": DEMO, "messages": SUM, "max_tokens": 1}
    assert demo.post(PATH, body).status_code == 200


@pytest.mark.parametrize("path", [PATH, COUNT])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"[]", b"null", b'{"a": NaN}', b'{"model": "\xff"}', b"[" * 100_000, DEEP.encode()],
)
def test_broken_json(demo: ServerProcess, path: str, body: bytes) -> None:
    answer = httpx.post(demo.url + path, content=body, headers=JSON)
    refused(answer, 400, "invalid_request_error")


@pytest.mark.parametrize("depth", [100, 900, 5000])
def test_deep_inputs_do_no_harm(demo: ServerProcess, depth: int) -> None:
    nested = '{"a": ' * depth + "1" + "}" * depth
    turns = json.dumps([*OSLO, {"role": "assistant", "content": [{**USED, "input": {"x": 0}}]},
                        {"role": "user", "content": [RESULT]}]).replace('{"x": 0}', nested)  # fmt: skip
    tools = json.dumps([{**WEATHER, "input_schema": {"type": "object", "default": {"x": 0}}}])
    for field, text in (("messages", turns), ("tools", tools.replace('{"x": 0}', nested))):
        rest = f'"messages": {json.dumps(SUM)}, ' if field == "tools" else ""
        data = f'{{"model": "{DEMO}", "max_tokens": 1, {rest}"{field}": {text}}}'
        answer = httpx.post(demo.url + PATH, content=data, headers=JSON, timeout=60)
        assert answer.status_code in (200, 400), answer.text
    assert demo.health()[0] == 200


def test_many_turns_and_blocks_are_bounded(demo: ServerProcess) -> None:
    body = {"model": DEMO, "max_tokens": 1}
    for turns in (
        [{"role": "user", "content": "a"}] * 70_000,
        [{"role": "user", "content": [{"type": "text", "text": "a"}] * 100_000}],
        [{"role": role, "content": "a"} for role in ("user", "assistant") * 30_000],
    ):
        refused(demo.post(PATH, body | {"messages": turns}), 400, "invalid_request_error", "")
    assert demo.post(PATH, body | {"messages": SUM}).status_code == 200


def test_errors_have_their_classes(client: anthropic.Anthropic, demo: ServerProcess, guarded: ServerProcess) -> None:
    options: Any = {"model": DEMO, "max_tokens": 4, "messages": SUM}
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(**options | {"model": "claude"})
    assert unknown.value.request_id is not None
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(**options | {"max_tokens": 9000})
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=guarded.url, api_key="wrong", max_retries=0).messages.create(**options)
    known = anthropic.Anthropic(base_url=guarded.url, api_key="second-key", max_retries=0)
    assert known.messages.create(**options | {"model": MODEL}).usage.output_tokens
    token = anthropic.Anthropic(base_url=guarded.url, auth_token="first-key", max_retries=0)
    assert token.messages.create(**options | {"model": MODEL}).usage.output_tokens


def test_errors_before_the_route_are_of_the_same_shape(demo: ServerProcess, guarded: ServerProcess) -> None:
    url = demo.url
    refused(httpx.get(url + PATH), 405, "invalid_request_error", "GET")
    refused(httpx.post(url + "/v1/messages/batches", json={}), 404, "not_found_error", "/v1/messages/batches")
    refused(httpx.post(url + "/v1/messages/", json={}), 404, "not_found_error")
    refused(
        httpx.post(url + PATH, content="{}", headers={"content-type": "text/plain"}), 415, "invalid_request_error"
    )
    refused(httpx.post(guarded.url + PATH, json={}), 401, "authentication_error")
    refused(httpx.post(guarded.url + COUNT, json={}, headers={"x-api-key": "no"}), 401, "authentication_error")
    large = b'{"model": "' + b"x" * 2**25 + b'"}'
    refused(httpx.post(url + PATH, content=large, headers=JSON), 413, "request_too_large")
    assert (
        "error" in httpx.post(url + "/v1/messagesx", json={}).json() and "type" not in httpx.get(url + "/v1").json()
    )


def test_a_full_server_says_when_to_come_back(model_dir: Path) -> None:
    options = ("--served-model-name", MODEL, "--max-num-queued-reqs", "1", "--root-path", "/root")
    with ServerProcess(model_dir, *options) as small:
        body = {"model": MODEL, "messages": SUM, "max_tokens": 3900, "output_config": ENDLESS, "stream": True}
        with connect(small, PATH, body):
            eventually(lambda: small.load()["num_requests_running"] == 1)
            for prefix in ("", "/root"):
                answer = small.post(prefix + PATH, body)
                refused(answer, 429, "rate_limit_error")
                assert int(answer.headers["retry-after"]) > 0
        eventually(small.is_idle)
        assert small.post("/root" + PATH, body | {"max_tokens": 1}).status_code == 200
    with ServerProcess(model_dir, "--served-model-name", MODEL, wait=False) as loading:
        answer = loading.post(PATH, body)
        if answer.status_code != 200:  # it may be quick
            refused(answer, 503, "overloaded_error")
            assert int(answer.headers["retry-after"]) > 0


ENDLESS = {"format": {"type": "json_schema", "schema": {"type": "string", "minLength": 3500}}}


def test_an_error_in_mid_stream_is_an_event(model_dir: Path) -> None:
    with ServerProcess(model_dir, "--served-model-name", MODEL) as server:
        client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
        options: Any = {"model": MODEL, "max_tokens": 3900, "messages": SUM, "output_config": ENDLESS}
        with pytest.raises(anthropic.APIStatusError, match="SIGKILL"):
            for i, _ in enumerate(client.messages.create(**options, stream=True)):
                if i == 3:
                    server.worker.send_signal(signal.SIGKILL)
        body = options | {"stream": True}
        server.wait_healthy()
        with httpx.stream("POST", server.url + PATH, json=body, timeout=60) as answer:
            parts = answer.iter_text()
            text = next(parts)
            server.worker.send_signal(signal.SIGKILL)
            text += "".join(parts)
        *before, last = stream_of(text)
        assert before[0]["type"] == "message_start" and last["type"] == "error"
        assert last["error"]["type"] == "overloaded_error" and "SIGKILL" in last["error"]["message"]


def test_an_unforeseen_error_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> None:
        raise ValueError("a secret of ours")

    monkeypatch.setattr(type(FAMILY), "respond", broken)
    app = create_app(ServerState(ServerConfig()))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post(PATH, json={})

    assert refused(asyncio.run(ask()), 500, "api_error") == "internal error"


def test_a_client_that_leaves_frees_everything(server: ServerProcess) -> None:
    body = {"model": MODEL, "max_tokens": 3900, "messages": SUM, "output_config": ENDLESS}
    for stream in (False, True):
        with connect(server, PATH, body | {"stream": stream}):
            eventually(lambda: server.load()["num_requests_running"] == 1)
        eventually(server.is_idle)


def test_budgets_need_a_known_format_of_thoughts(server: ServerProcess) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    body = {"model": MODEL, "max_tokens": 1100, "messages": SUM}
    answer = server.post(PATH, body | {"thinking": thinking})
    refused(answer, 400, "invalid_request_error", "thinking.budget_tokens")
    refused(server.post(PATH, body | {"tools": [WEATHER]}), 400, "invalid_request_error", "tools")


def test_many_turns_of_one_role_are_joined_in_linear_time() -> None:
    began = time.monotonic()
    (message,) = meant(messages=[{"role": "user", "content": "a"}] * 60_000).messages
    assert len(message.content) == 60_000 and time.monotonic() - began < 3


def test_errors_of_chat_are_told_in_own_terms() -> None:
    with pytest.raises(RequestError) as error:
        meant(messages=[{"role": "assistant", "content": ""}])
    assert error.value.param == "messages"
