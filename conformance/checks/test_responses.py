"""``POST /responses``, OpenAI's newer API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ..capabilities import TOOL_TOKENS, WEATHER, flat
from ..client import OMIT, Api, Exchange, Json, Stream
from ..requirement import group, must, needs, not_able, not_offered, should
from ..schema import is_valid, validate

pytestmark = group("responses", "responses")
CREATE = "api-reference/responses/create"
OBJECT = "api-reference/responses/object"
EVENTS = "api-reference/responses-streaming"
ENDS = ("response.completed", "response.incomplete", "response.failed")


def response(found: Exchange, *params: str) -> Json:
    """A whole response that clients can read."""
    body = found.offered(*params).ok()
    validate("response", body, strict=False)
    return body


def text_of(body: Json) -> str:
    """The joined output text."""
    parts = [part for item in body["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts if part["type"] == "output_text")


def streamed(api: Api, memory: dict[str, Any]) -> Stream:
    """One stream that several checks look at."""
    if "responses stream" not in memory:
        memory["responses stream"] = api.respond_stream()
    found: Stream = memory["responses stream"]
    api.client.exchanges.append(found)
    return found


@must(
    "the answer is a response: id, object, created_at, status, output, model, tools, and fields that may be null",
    OBJECT,
)
def test_minimal(api: Api) -> None:
    """Strictly typed."""
    body = response(api.respond())
    validate("response", body)
    assert body["object"] == "response", f"expected object: response, got {body['object']!r}"
    assert body["status"] in ("completed", "incomplete"), f"expected an end, got status {body['status']!r}"


@must("an answer is streamed only when that is asked for", CREATE + "#responses-create-stream")
@pytest.mark.parametrize("stream", [OMIT, None], ids=["missing", "null"])
def test_whole_unless_asked(api: Api, stream: Any) -> None:
    """stream is false unless given; all other checks give it."""
    response(api.respond(stream=stream))


@must("output holds a message of the assistant with output_text", OBJECT + "#responses-object-output")
def test_output(api: Api) -> None:
    """With an id of its own and a status."""
    messages = [item for item in response(api.respond())["output"] if item["type"] == "message"]
    assert len(messages) == 1, f"expected one message, got {len(messages)}"
    assert messages[0]["role"] == "assistant" and messages[0]["id"], f"expected role and id, got {messages[0]}"


@must("input may be a list of items, with text or with parts", CREATE + "#responses-create-input")
@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": "Say hello."},
        {"type": "message", "role": "user", "content": "Say hello."},
        {"role": "user", "content": [{"type": "input_text", "text": "Say hello."}]},
    ],
    ids=["short", "typed", "parts"],
)
def test_items(api: Api, item: Json) -> None:
    """All forms of one message give the answer of the plain string."""
    plain, found = text_of(response(api.respond())), text_of(response(api.respond([item])))
    assert found == plain, f"expected {plain!r}, got {found!r}"


@must("a conversation of several items is accepted", CREATE + "#responses-create-input")
def test_turns(api: Api) -> None:
    """The assistant's earlier text as a string, and as the item that it was."""
    text = {"type": "output_text", "text": "Hello Ada.", "annotations": []}
    item = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [text]}
    for answer in ({"role": "assistant", "content": "Hello Ada."}, item):
        first, last = {"role": "user", "content": "I am Ada."}, {"role": "user", "content": "My name?"}
        response(api.respond([first, answer, last]))


@must("instructions come before the input, and are given back", CREATE + "#responses-create-instructions")
def test_instructions(api: Api) -> None:
    """They make the prompt longer."""
    plain = response(api.respond())
    body = response(api.respond(instructions="Speak like a sailor who has been at sea for years."))
    assert body["instructions"] == "Speak like a sailor who has been at sea for years.", "expected them back"
    longer, before = body["usage"]["input_tokens"], plain["usage"]["input_tokens"]
    assert longer > before, f"expected more input tokens than {before}, got {longer}"


@must("usage has input, output and total tokens, and their details", OBJECT + "#responses-object-usage")
def test_usage(api: Api) -> None:
    """cached_tokens and reasoning_tokens."""
    usage = response(api.respond())["usage"]
    total = usage["input_tokens"] + usage["output_tokens"]
    assert usage["total_tokens"] == total, f"expected total_tokens {total}, got {usage['total_tokens']}"
    assert usage["input_tokens_details"]["cached_tokens"] >= 0, f"expected cached_tokens, got {usage}"
    assert usage["output_tokens_details"]["reasoning_tokens"] >= 0, f"expected reasoning_tokens, got {usage}"


@must(
    "an answer that is cut off is incomplete, for max_output_tokens", OBJECT + "#responses-object-incomplete_details"
)
def test_incomplete(api: Api) -> None:
    """16 is the least that OpenAI takes; an answer that ends before leaves nothing to see."""
    counts = []
    for question in ("Count from one to one hundred.", "Tell me a long story.", "Say hello."):
        body = response(api.respond(question))
        if body["status"] == "incomplete":
            reason = (body["incomplete_details"] or {}).get("reason")
            assert reason == "max_output_tokens", f"expected reason max_output_tokens, got {reason!r}"
            return
        spent = body["usage"]["output_tokens"]
        assert spent <= 16, f"expected 16 output tokens at most, got {spent}"
        counts.append(spent)
    assert min(counts) < 16, (
        "expected status incomplete, got three completed answers of just as many tokens as allowed"
    )
    not_able("its answers are shorter than the limit")


@must("parameters come back as they were given", OBJECT)
def test_echoed(api: Api) -> None:
    """Sampling, metadata, and what was not given as its default."""
    body = response(api.respond(temperature=0.5, top_p=0.9, metadata={"a": "b"}))
    found = {name: body[name] for name in ("temperature", "top_p", "metadata")}
    assert found == {"temperature": 0.5, "top_p": 0.9, "metadata": {"a": "b"}}, (
        f"expected what was given, got {found}"
    )


@must("ids of responses and items differ from request to request", OBJECT + "#responses-object-id")
def test_ids(api: Api) -> None:
    """They can be referred to."""
    first, second = response(api.respond()), response(api.respond())
    assert first["id"] != second["id"], "expected different ids of responses"
    assert first["output"][0]["id"] != second["output"][0]["id"], "expected different ids of items"


@must("each event is typed strictly, and its SSE name is its type", EVENTS)
def test_events(api: Api, memory: dict[str, Any]) -> None:
    """event: and data: agree."""
    found = streamed(api, memory)
    for event in found.events():
        if event.data == "[DONE]":
            continue
        payload = json.loads(event.data)
        validate("response event", payload)
        assert event.name == payload["type"], f"expected event: {payload['type']}, got {event.name!r}"


@must("sequence numbers rise by one from 0", EVENTS)
def test_sequence(api: Api, memory: dict[str, Any]) -> None:
    """None is missing."""
    numbers = [payload.get("sequence_number") for payload in streamed(api, memory).payloads()]
    assert numbers == list(range(len(numbers))), f"expected 0 to {len(numbers) - 1}, got {numbers}"


@must("events come in order: created, in_progress, item, part, deltas, done of each, and one end", EVENTS)
def test_order(api: Api, memory: dict[str, Any]) -> None:
    """Of the message's life."""
    types = [payload["type"] for payload in streamed(api, memory).payloads()]
    assert types[:2] == ["response.created", "response.in_progress"], (
        f"expected created, in_progress, got {types[:2]}"
    )
    assert types[-1] in ENDS and sum(kind in ENDS for kind in types) == 1, f"expected one end, got {types[-3:]}"
    life = [
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    message = next(
        i
        for i, payload in enumerate(streamed(api, memory).payloads())
        if payload["type"] == life[0] and payload["item"]["type"] == "message"
    )
    own = [kind for kind in types[message:] if kind in life]
    firsts = [kind for i, kind in enumerate(own) if kind not in own[:i]]
    assert firsts == life, f"expected {life}, got {firsts}"


@must("the joined deltas are the text of output_text.done and of the finished response", EVENTS)
def test_deltas(api: Api, memory: dict[str, Any]) -> None:
    """And of the part and the item that are done."""
    payloads = streamed(api, memory).payloads()
    joined = "".join(payload["delta"] for payload in payloads if payload["type"] == "response.output_text.delta")
    done = "".join(payload["text"] for payload in payloads if payload["type"] == "response.output_text.done")
    assert joined == done, f"expected {done!r}, got deltas {joined!r}"
    final = text_of(payloads[-1]["response"])
    assert joined == final, f"expected {final!r}, got deltas {joined!r}"


@must("a stream says what the whole response says", EVENTS)
def test_equals_whole(api: Api, memory: dict[str, Any]) -> None:
    """Text, status and usage; greedy."""
    whole = response(api.respond())
    final = streamed(api, memory).payloads()[-1]["response"]
    assert text_of(final) == text_of(whole), f"expected {text_of(whole)!r}, got {text_of(final)!r}"
    assert final["status"] == whole["status"], f"expected status {whole['status']!r}, got {final['status']!r}"
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        assert final["usage"][name] == whole["usage"][name], f"expected {whole['usage']}, got {final['usage']}"


@must("items and parts keep their ids and places through a stream", EVENTS)
def test_places(api: Api, memory: dict[str, Any]) -> None:
    """item_id and output_index of a delta are those of the item that was added."""
    items: dict[int, str] = {}
    for payload in streamed(api, memory).payloads():
        if payload["type"] == "response.output_item.added":
            items[payload["output_index"]] = payload["item"]["id"]
        elif "item_id" in payload:
            known = items.get(payload["output_index"])
            assert known == payload["item_id"], f"expected item {known!r}, got {payload['item_id']!r}"


@must("a required tool gives a function_call item with call_id, name and JSON arguments", "guides/function-calling")
@needs("response_tools")
def test_function_call(api: Api) -> None:
    """They fit the schema, as strict is the default there."""
    fields: Json = {"tools": [flat(WEATHER)], "tool_choice": "required", "max_output_tokens": TOOL_TOKENS}
    body = response(api.respond(**fields))
    calls = [item for item in body["output"] if item["type"] == "function_call"]
    assert calls and calls[0]["call_id"] and calls[0]["name"] == "get_weather", (
        f"expected a call, got {body['output']}"
    )
    arguments = json.loads(calls[0]["arguments"])
    assert is_valid(WEATHER["function"]["parameters"], arguments), f"expected a city, got {arguments}"


@must("a call is typed strictly, whole and in events", EVENTS)
@needs("response_tools")
def test_function_call_shape(api: Api) -> None:
    """And so are the tools that come back with it."""
    fields: Json = {"tools": [flat(WEATHER)], "tool_choice": "required", "max_output_tokens": TOOL_TOKENS}
    validate("response", api.respond(**fields).ok())
    for payload in api.respond_stream(**fields).payloads():
        validate("response event", payload)


@must("the deltas of a call's arguments join to its arguments", EVENTS)
@needs("response_tools")
def test_function_call_stream(api: Api) -> None:
    """And done has the whole of them."""
    fields: Json = {"tools": [flat(WEATHER)], "tool_choice": "required", "max_output_tokens": TOOL_TOKENS}
    payloads = api.respond_stream(**fields).payloads()
    kind = "response.function_call_arguments."
    joined = "".join(payload["delta"] for payload in payloads if payload["type"] == kind + "delta")
    done = "".join(payload["arguments"] for payload in payloads if payload["type"] == kind + "done")
    assert joined == done and done, f"expected {done!r}, got deltas {joined!r}"
    final = [item for item in payloads[-1]["response"]["output"] if item["type"] == "function_call"]
    assert "".join(item["arguments"] for item in final) == done, f"expected {done!r} at the end, got {final}"


@must("a call's output can be sent back", "guides/function-calling")
@needs("response_tools")
def test_function_call_output(api: Api) -> None:
    """As the items function_call and function_call_output."""
    fields: Json = {"tools": [flat(WEATHER)], "tool_choice": "required", "max_output_tokens": TOOL_TOKENS}
    first = response(api.respond("The weather in Paris?", **fields))
    call = next(item for item in first["output"] if item["type"] == "function_call")
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny."}
    items = [{"role": "user", "content": "The weather in Paris?"}, call, output]
    response(api.respond(items, tools=[flat(WEATHER)], tool_choice="none"))


@must("previous_response_id goes on from an earlier response, or is refused by name", CREATE)
def test_previous(api: Api) -> None:
    """The earlier turns are part of the prompt."""
    first = response(api.respond("My name is Ada.", store=True), "store")
    found = api.respond("What is my name?", previous_response_id=first["id"])
    if found.status in (400, 422) and found.error_param() == "previous_response_id":
        not_offered("previous_response_id is refused by name")
    second = response(found)
    alone = response(api.respond("What is my name?"))
    assert second["previous_response_id"] == first["id"], "expected previous_response_id back"
    longer, before = second["usage"]["input_tokens"], alone["usage"]["input_tokens"]
    assert longer > before, f"expected more input tokens than {before}, got {longer}"


@must("an unknown previous_response_id is refused", CREATE + "#responses-create-previous_response_id")
def test_unknown_previous(api: Api) -> None:
    """Not ignored: the answer would be to something else."""
    api.respond(previous_response_id="resp_0123456789abcdef").refused(400, 404, 422)


@must("a response with store: false cannot be retrieved", CREATE + "#responses-create-store")
def test_not_stored(api: Api) -> None:
    """Nor is it a failure to ask."""
    body = response(api.respond(store=False))
    api.client.get(f"/responses/{body['id']}").refused(404)


@should("a stored response can be retrieved, and deleted", "api-reference/responses/get")
def test_stored(api: Api) -> None:
    """Then it is gone."""
    body = response(api.respond(store=True), "store")
    path = f"/responses/{body['id']}"
    found = api.client.get(path)
    if found.status in (404, 405, 501):
        not_offered(f"GET /responses/{{id}} answers {found.status}")
    assert text_of(response(found)) == text_of(body), "expected the same text"
    api.client.send("DELETE", path).ok()
    api.client.get(path).refused(404)


@must("text.format json_schema gives JSON that fits", "guides/structured-outputs")
def test_structured(api: Api) -> None:
    """As response_format of chat."""
    schema: Json = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    schema["additionalProperties"] = False
    fields: Json = {"text": {"format": {"type": "json_schema", "name": "a", "strict": True, "schema": schema}}}
    body = response(api.respond(max_output_tokens=48, **fields), "text")
    if body["status"] == "incomplete":
        not_able("its answer is longer than the limit")
    assert is_valid(schema, json.loads(text_of(body))), f"expected an object, got {text_of(body)!r}"


BAD_FIELDS: list[tuple[str, Any]] = [
    ("input", 5),
    ("input", [{"role": "nobody", "content": "a"}]),
    ("temperature", "hot"),
    ("temperature", 3),
    ("top_p", 2),
    ("max_output_tokens", -1),
    ("max_output_tokens", "many"),
    ("tools", "all"),
    ("metadata", "a"),
    ("instructions", {"a": 1}),
]


@must("no wrong value of a field makes the server fail", CREATE)
@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=str)
def test_never_fails(api: Api, name: str, value: Any) -> None:
    """As in chat."""
    found = api.respond(**{name: value})
    found.demand_answer()
    assert found.status < 500, f"expected an answer below 500, got {found.status}: {found.text[:300]}"


@should("bad fields are refused with a 4xx", CREATE)
@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=str)
def test_bad_field(api: Api, name: str, value: Any) -> None:
    """As in chat."""
    api.respond(**{name: value}).refused(400, 422)


@should("the refusal of a bad field names it in error.param", CREATE)
@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=str)
def test_bad_field_names(api: Api, name: str, value: Any) -> None:
    """As in chat."""
    found = api.respond(**{name: value})
    found.refused(400, 422)
    assert found.error_param() == name, f"expected param {name}, got {found.error_param()!r}"


@should("stream: yes is refused: it is no boolean", CREATE)
def test_stream_is_boolean(api: Api) -> None:
    """Servers that take it for true hide a client's fault."""
    api.respond(stream="yes").refused(400, 422)
