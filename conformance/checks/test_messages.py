"""``POST /messages``, Anthropic's API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ..capabilities import TOOL_TOKENS, WEATHER, anthropic_tool
from ..client import OMIT, Api, Exchange, Json, Stream, middle_of
from ..requirement import ANTHROPIC, group, must, needs, not_able, should
from ..schema import is_valid, validate

pytestmark = group("messages", "messages")
CREATE = ANTHROPIC + "api/messages"
STREAMING = ANTHROPIC + "build-with-claude/streaming"
ERRORS = ANTHROPIC + "api/errors"
TOOL_USE = ANTHROPIC + "agents-and-tools/tool-use/overview"


def message(found: Exchange, *params: str) -> Json:
    """A whole message that clients can read."""
    body = found.offered(*params).ok()
    validate("message", body, strict=False)
    return body


def text_of(body: Json) -> str:
    """The joined text blocks."""
    return "".join(block["text"] for block in body["content"] if block["type"] == "text")


def streamed(api: Api, memory: dict[str, Any]) -> Stream:
    """One stream that several checks look at."""
    if "messages stream" not in memory:
        memory["messages stream"] = api.message_stream()
    found: Stream = memory["messages stream"]
    api.client.exchanges.append(found)
    return found


def payloads(found: Stream) -> list[Json]:
    """Its events without pings, which may come at any time."""
    return [payload for payload in found.payloads() if payload.get("type") != "ping"]


def refused(found: Exchange, *statuses: int) -> Json:
    """An error in Anthropic's shape."""
    found.refused(*statuses)
    error, body = found.error_object(), found.json()
    assert body.get("type") == "error", f"expected type: error beside the error, got {body.get('type')!r}"
    assert isinstance(error.get("type"), str) and isinstance(error.get("message"), str), f"expected both, got {error}"
    return error


@must("the answer is a message: id, type, role, content, model, stop_reason, stop_sequence, usage", CREATE)
def test_minimal(api: Api) -> None:
    """Strictly typed."""
    body = message(api.message())
    validate("message", body)
    assert body["role"] == "assistant" and body["content"], f"expected content of the assistant, got {body}"


@must("an answer that is cut off has stop_reason max_tokens", CREATE)
def test_cut_off(api: Api) -> None:
    """One token that is not the end of the answer."""
    for question in ("Say hello.", "Count from one to ten."):
        body = message(api.message(question, max_tokens=1))
        assert body["usage"]["output_tokens"] <= 1, f"expected one output token, got {body['usage']}"
        if body["stop_reason"] == "max_tokens":
            return
    assert body["stop_reason"] == "end_turn" and not text_of(body), (
        f"expected max_tokens, got {body['stop_reason']!r}"
    )


@must("a stop sequence ends the answer before it and is named", CREATE)
def test_stop(api: Api) -> None:
    """stop_reason stop_sequence."""
    for question in ("Say hello.", "Count from one to ten."):
        whole = text_of(message(api.message(question, max_tokens=24)))
        if stop := middle_of([whole])[1]:
            body = message(api.message(question, max_tokens=24, stop_sequences=[stop]))
            found = (body["stop_reason"], body["stop_sequence"], text_of(body))
            expected = ("stop_sequence", stop, whole[: whole.find(stop)])
            assert found == expected, f"expected {expected}, got {found}"
            return
    not_able("its answers are too short to stop inside them")


@must("system may be a string or a list of text blocks", CREATE)
@pytest.mark.parametrize("system", ["Be brief.", [{"type": "text", "text": "Be brief."}]], ids=["string", "blocks"])
def test_system(api: Api, system: Any) -> None:
    """It makes the prompt longer."""
    plain = message(api.message())["usage"]["input_tokens"]
    longer = message(api.message(system=system))["usage"]["input_tokens"]
    assert longer > plain, f"expected more input tokens than {plain}, got {longer}"


@must("content may be a list of text blocks", CREATE)
def test_blocks(api: Api) -> None:
    """The same answer as to the plain string."""
    plain, found = (
        text_of(message(api.message(c))) for c in ("Say hello.", [{"type": "text", "text": "Say hello."}])
    )
    assert found == plain, f"expected {plain!r}, got {found!r}"


@must("a conversation of several turns is accepted", CREATE)
def test_turns(api: Api) -> None:
    """User and assistant in turns."""
    turns = [("user", "I am Ada."), ("assistant", "Hello Ada."), ("user", "My name?")]
    message(api.message(messages=[{"role": role, "content": content} for role, content in turns]))


@must("max_tokens and messages are required", CREATE)
@pytest.mark.parametrize("name", ["max_tokens", "messages"])
def test_required(api: Api, name: str) -> None:
    """Unlike OpenAI's."""
    api.message(**{name: OMIT}).refused(400)


@must("an error is Anthropic's: type error, and error with type and message", ERRORS)
def test_error_object(api: Api) -> None:
    """The type of a bad request is invalid_request_error."""
    error = refused(api.message(max_tokens=OMIT), 400)
    assert error["type"] == "invalid_request_error", f"expected invalid_request_error, got {error['type']!r}"


BAD_FIELDS: list[tuple[str, Any]] = [
    ("max_tokens", 0),
    ("max_tokens", "many"),
    ("temperature", "hot"),
    ("temperature", -1),
    ("messages", []),
    ("messages", [{"role": "nobody", "content": "a"}]),
    ("stop_sequences", 5),
    ("system", 5),
    ("tools", "all"),
]


@must("bad fields are refused with 400", ERRORS)
@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=str)
def test_bad_field(api: Api, name: str, value: Any) -> None:
    """Its shape is another check's business."""
    api.message(**{name: value}).refused(400)


@should("the refusal of a bad field names it in its message", ERRORS)
@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=str)
def test_bad_field_names(api: Api, name: str, value: Any) -> None:
    """There is no other place for it."""
    error = api.message(**{name: value}).refused(400)
    assert name in str(error.get("message")), f"expected {name} in the message, got {error.get('message')!r}"


@should("stream: yes is refused: it is no boolean", ERRORS)
def test_stream_is_boolean(api: Api) -> None:
    """Servers that take it for true hide a client's fault."""
    api.message(stream="yes").refused(400)


@must("each event is typed strictly, and its SSE name is its type", STREAMING)
def test_events(api: Api, memory: dict[str, Any]) -> None:
    """There is no [DONE]."""
    for event in streamed(api, memory).events():
        assert event.data != "[DONE]", "expected no [DONE]"
        payload = json.loads(event.data)
        assert event.name == payload.get("type"), f"expected event: {payload.get('type')}, got {event.name!r}"
        if event.name != "ping":
            validate("message event", payload)


@must("events come in order: message_start, blocks, message_delta, message_stop", STREAMING)
def test_order(api: Api, memory: dict[str, Any]) -> None:
    """Each block starts, gets its deltas and stops."""
    types = [payload["type"] for payload in payloads(streamed(api, memory))]
    assert types[0] == "message_start", f"expected message_start first, got {types[0]}"
    assert types[-2:] == ["message_delta", "message_stop"], f"expected message_delta, message_stop, got {types[-2:]}"
    inner = types[1:-2]
    assert inner[0] == "content_block_start" and inner[-1] == "content_block_stop", f"expected a block, got {inner}"


@must("a stream says what the whole message says", STREAMING)
def test_equals_whole(api: Api, memory: dict[str, Any]) -> None:
    """Text, stop_reason and usage; greedy."""
    whole = message(api.message())
    events = payloads(streamed(api, memory))
    text = "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta")
    assert text == text_of(whole), f"expected {text_of(whole)!r}, got {text!r}"
    end = next(event for event in events if event["type"] == "message_delta")
    reason = end["delta"]["stop_reason"]
    assert reason == whole["stop_reason"], f"expected {whole['stop_reason']!r}, got {reason!r}"
    spent = end["usage"]["output_tokens"]
    assert spent == whole["usage"]["output_tokens"], f"expected {whole['usage']}, got {end['usage']}"
    start = events[0]["message"]["usage"]["input_tokens"]
    assert start == whole["usage"]["input_tokens"], f"expected {whole['usage']}, got {start} input tokens"


@must("tool_choice any gives a tool_use block whose input is an object", TOOL_USE)
@needs("message_tools")
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}], ids=["any", "tool"])
def test_tool_use(api: Api, choice: Json) -> None:
    """And stop_reason tool_use."""
    fields: Json = {"tools": [anthropic_tool(WEATHER)], "tool_choice": choice, "max_tokens": TOOL_TOKENS}
    body = message(api.message(**fields))
    blocks = [block for block in body["content"] if block["type"] == "tool_use"]
    assert blocks and blocks[0]["id"] and blocks[0]["name"] == "get_weather", (
        f"expected a call, got {body['content']}"
    )
    assert isinstance(blocks[0]["input"], dict), f"expected an object, got {blocks[0]['input']}"
    assert body["stop_reason"] == "tool_use", f"expected stop_reason tool_use, got {body['stop_reason']!r}"


@must("the input for a tool with strict: true fits its schema", TOOL_USE)
@needs("message_tools")
def test_strict_tool_use(api: Api) -> None:
    """Without it the reference promises nothing of the kind."""
    fields: Json = {"tools": [anthropic_tool(WEATHER) | {"strict": True}], "tool_choice": {"type": "any"}}
    body = message(api.message(**fields, max_tokens=TOOL_TOKENS), "tools")
    inputs = [block["input"] for block in body["content"] if block["type"] == "tool_use"]
    assert inputs and is_valid(WEATHER["function"]["parameters"], inputs[0]), f"expected a city, got {inputs}"


@must("a streamed tool_use has empty input first, and its input_json_deltas join to the input", STREAMING)
@needs("message_tools")
def test_tool_use_stream(api: Api) -> None:
    """Greedy."""
    fields: Json = {
        "tools": [anthropic_tool(WEATHER)],
        "tool_choice": {"type": "any"},
        "max_tokens": TOOL_TOKENS,
    }
    whole = next(block for block in message(api.message(**fields))["content"] if block["type"] == "tool_use")
    events = payloads(api.message_stream(**fields))
    starts = [event for event in events if event["type"] == "content_block_start"]
    use = next(event for event in starts if event["content_block"]["type"] == "tool_use")
    assert use["content_block"]["input"] == {}, f"expected empty input first, got {use['content_block']['input']}"
    parts = [e["delta"] for e in events if e["type"] == "content_block_delta" and e["index"] == use["index"]]
    joined = "".join(delta["partial_json"] for delta in parts if delta["type"] == "input_json_delta")
    assert json.loads(joined) == whole["input"], f"expected {whole['input']}, got {joined!r}"


@must("a tool_use and its tool_result can be sent back", TOOL_USE)
@needs("message_tools")
def test_tool_result(api: Api) -> None:
    """As blocks of the assistant's and the user's messages."""
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Sunny."}
    turns = [
        {"role": "user", "content": "The weather in Paris?"},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    message(api.message(messages=turns, tools=[anthropic_tool(WEATHER)]))


@must("count_tokens says what a message would cost", ANTHROPIC + "api/messages-count-tokens")
@needs("count_tokens")
def test_count(api: Api) -> None:
    """As the usage of the same message says."""
    spent = message(api.message())["usage"]
    body = {"model": api.model, "messages": [{"role": "user", "content": "Say hello."}]}
    counted = api.client.post("/messages/count_tokens", body).ok()
    total = spent["input_tokens"] + (spent.get("cache_read_input_tokens") or 0)
    total += spent.get("cache_creation_input_tokens") or 0
    assert counted.get("input_tokens") == total, f"expected {total}, got {counted}"


@should("an unknown model gets 404 and not_found_error", ERRORS)
def test_unknown_model(api: Api) -> None:
    """In Anthropic's shape."""
    error = api.message(model="no-such-model").refused(404)
    assert error.get("type") == "not_found_error", f"expected not_found_error, got {error.get('type')!r}"


@must("a body that is no JSON gets 400", ERRORS)
def test_bad_json(api: Api) -> None:
    """As in chat."""
    api.client.post("/messages", b'{"model": ').refused(400)
