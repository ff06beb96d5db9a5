"""Anthropic's Messages API: the official client, its types, and what requests mean in terms of chat."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import anthropic
import pydantic
import pytest
from anthropic.types import (
    Message,
    MessageTokensCount,
)
from hypothesis import given
from hypothesis import strategies as st

from server.dialects.dialect import Answer
from server.dialects.messages import Blocks, MessagesDialect, added_up
from server.routes.vendors.messages import COUNT_PARSER, FAMILY, PARSER
from tandem.events import ChoiceEnded, ReasoningDelta, TextDelta, ToolCallArguments, ToolCallBegun, ToolCallEnded
from tests.server.conftest import MODEL
from tests.server.messages import (
    COUNT,
    DEMO,
    GREEDY,
    OSLO,
    PATH,
    RESULT,
    SUM,
    TIMER,
    USED,
    WEATHER,
    checked,
    meant,
    put_together,
    same,
    stream_of,
    strictly,
)
from tests.server.process import ServerProcess


@pytest.fixture(scope="module")
def demo() -> Iterator[ServerProcess]:
    """The bundled model, which calls tools and thinks."""
    with ServerProcess("") as running:
        yield running


@pytest.fixture(scope="module")
def client(demo: ServerProcess) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=demo.url, api_key="none", max_retries=0)


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
