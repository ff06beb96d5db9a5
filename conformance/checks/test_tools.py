"""Tools of chat: what is forced here does not depend on how clever the model is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ..capabilities import NAMED, TOOL_TOKENS, WEATHER
from ..client import Api, Exchange, Json, Stream, choice_of
from ..requirement import Violation, group, must, needs, not_able, should
from ..schema import is_valid, validate

pytestmark = group("tools", "chat", "tools")
GUIDE = "guides/function-calling"
TOOLS = "api-reference/chat/create#chat-create-tools"
OBJECT = "api-reference/chat/object"
CHOICE = "api-reference/chat/create#chat-create-tool_choice"
TIME: Json = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time in a zone.",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "enum": ["CET", "UTC"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
NESTED: Json = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Book a table.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "who": {
                    "type": "object",
                    "properties": {"name": {"type": "string", "enum": ["Ada\nLovelace", 'Zoë "Z" 東京 🎉']}},
                    "required": ["name"],
                    "additionalProperties": False,
                },
                "seats": {
                    "type": "array",
                    "items": {"type": "integer", "enum": [1, 2]},
                    "minItems": 1,
                    "maxItems": 2,
                },
            },
            "required": ["who", "seats"],
            "additionalProperties": False,
        },
    },
}
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (WEATHER, TIME, NESTED)}


def fields_for(api: Api, *tools: Json, choice: Any = "required", **fields: Any) -> Json:
    """Of a request with tools."""
    return {"tools": list(tools), "tool_choice": choice, api.limit: TOOL_TOKENS, **fields}


def calls_of(found: Exchange, strict: bool = False) -> list[Json]:
    """The calls of a whole answer, checked in all that holds for every call."""
    body = found.ok()
    validate("chat", body, strict=False)
    choice = choice_of(body)
    calls: list[Json] = choice["message"].get("tool_calls") or []
    if choice["finish_reason"] == "length":
        not_able("its call is longer than the limit")
    for call in calls:
        check_call(call, strict)
    return calls


def check_call(call: Json, strict: bool = False) -> None:
    """An id, a type, the name of a tool, and arguments that are a JSON object in a string."""
    assert isinstance(call.get("id"), str) and call["id"], f"expected an id, got {call.get('id')!r}"
    assert call.get("type") == "function", f"expected type function, got {call.get('type')!r}"
    function = call["function"]
    assert function["name"] in SCHEMAS, f"expected the name of a tool, got {function['name']!r}"
    assert isinstance(function["arguments"], str), f"expected arguments as a string, got {function['arguments']!r}"
    try:
        arguments = json.loads(function["arguments"])
    except ValueError as error:
        raise Violation(f"expected arguments in JSON, got {function['arguments']!r} ({error})") from error
    assert isinstance(arguments, dict), f"expected an object, got {function['arguments']!r}"
    if strict and not is_valid(SCHEMAS[function["name"]], arguments):
        raise Violation(f"expected arguments that fit the schema, got {function['arguments']!r}")


def joined_calls(found: Stream) -> list[Json]:
    """Calls put together from deltas, checked on the way as clients rely on it."""
    calls: dict[int, Json] = {}
    for chunk in found.payloads():
        validate("chat chunk", chunk, strict=False)
    for choice in found.choices():
        for delta in choice["delta"].get("tool_calls") or []:
            index, function = delta["index"], delta.get("function") or {}
            if index not in calls:
                assert index == len(calls), f"expected indexes in order from 0, got {index}"
                assert delta.get("id") and function.get("name"), (
                    f"expected id and name in a call's first delta: {delta}"
                )
                calls[index] = {"id": delta["id"], "type": delta.get("type"), "function": {**function}}
                calls[index]["function"].setdefault("arguments", "")
            else:
                repeated = delta.get("id") or function.get("name")
                assert not repeated, f"expected id and name once, got {delta}"
                calls[index]["function"]["arguments"] += function.get("arguments") or ""
    return list(calls.values())


@must("tool_choice required gives at least one call of a tool that was offered", CHOICE)
def test_required(api: Api) -> None:
    """Whatever the question."""
    calls = calls_of(api.chat(**fields_for(api, WEATHER, TIME)))
    assert calls, "expected a tool call"


@must("an answer with calls has no null that the schema lacks, whole and streamed", OBJECT)
def test_shape(api: Api) -> None:
    """Strictly typed."""
    validate("chat", api.chat(**fields_for(api, WEATHER)).ok())
    for chunk in api.chat_stream(**fields_for(api, WEATHER)).payloads():
        validate("chat chunk", chunk)


@must("a named tool_choice calls that function", CHOICE)
@pytest.mark.parametrize("name", ["get_weather", "get_time"])
def test_named(api: Api, name: str) -> None:
    """And no other."""
    choice = {"type": "function", "function": {"name": name}}
    names = {call["function"]["name"] for call in calls_of(api.chat(**fields_for(api, WEATHER, TIME, choice=choice)))}
    assert names == {name}, f"expected a call of {name}, got {sorted(names)}"


@must("tool_choice none calls nothing", CHOICE)
def test_none(api: Api) -> None:
    """Content, as if there were no tools."""
    found = api.chat("What is the weather in Paris?", **fields_for(api, WEATHER, choice="none"))
    message = choice_of(found.ok())["message"]
    assert not message.get("tool_calls"), f"expected no tool call, got {message['tool_calls']}"
    assert isinstance(message.get("content"), str), f"expected content, got {message.get('content')!r}"


@must("auto is the default, and is accepted whatever the model does with it", CHOICE)
@pytest.mark.parametrize("choice", ["auto", None])
def test_auto_is_accepted(api: Api, choice: Any) -> None:
    """Calls, if there are any, are well-formed."""
    calls_of(api.chat("Say hello.", **fields_for(api, WEATHER, choice=choice)))


@must("with auto a model that can calls the tool, and finish_reason is tool_calls", GUIDE)
@needs("auto_tools")
def test_auto(api: Api) -> None:
    """The question that the probe asked."""
    found = api.chat("What is the weather in Paris?", **fields_for(api, WEATHER, choice="auto"))
    assert calls_of(found), "expected a tool call, as before"
    reason = choice_of(found.ok())["finish_reason"]
    assert reason == "tool_calls", f"expected finish_reason tool_calls, got {reason!r}"


@must("arguments fit the schema where strict is true", GUIDE + "#strict-mode")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_strict(api: Api, seed: int) -> None:
    """A nested schema whose strings hold newlines, quotes and characters beyond ASCII; sampled, so that it varies."""
    fields = fields_for(api, NESTED, choice={"type": "function", "function": {"name": "book"}})
    fields |= {"temperature": 1, "seed": seed, api.limit: 160}
    calls = calls_of(api.chat("Book a table for two.", **fields).offered("strict"), strict=True)
    assert calls, "expected a tool call"


@must("arguments are a JSON object for a function without parameters", TOOLS)
def test_no_parameters(api: Api) -> None:
    """Omitting parameters defines a function with an empty list of them."""
    tool = {"type": "function", "function": {"name": "get_time"}}
    calls = calls_of(api.chat(**fields_for(api, tool)))
    assert calls, "expected a tool call"


@must("finish_reason is tool_calls after a call that was required", "api-reference/chat/object#chat-object-choices")
def test_finish_required(api: Api) -> None:
    """The reason says that calls are to be answered."""
    found = api.chat(**fields_for(api, WEATHER))
    calls_of(found)
    reason = choice_of(found.ok())["finish_reason"]
    assert reason == "tool_calls", f"expected finish_reason tool_calls, got {reason!r}"


@should("finish_reason is stop after a call that was named, as OpenAI does it (tool_calls is seen too)", GUIDE)
def test_finish_named(api: Api) -> None:
    """Nothing but these two."""
    reason = choice_of(api.chat(**fields_for(api, WEATHER, choice=NAMED)).ok())["finish_reason"]
    assert reason in ("stop", "tool_calls"), f"expected stop or tool_calls, got {reason!r}"


@must(
    "parallel_tool_calls: false gives one call at most", "api-reference/chat/create#chat-create-parallel_tool_calls"
)
def test_not_parallel(api: Api) -> None:
    """Of two tools, with a question for both."""
    fields = fields_for(api, WEATHER, TIME, parallel_tool_calls=False)
    found = api.chat("What is the weather in Paris and the time in UTC?", **fields).offered("parallel_tool_calls")
    calls = calls_of(found)
    assert len(calls) == 1, f"expected one call, got {len(calls)}"


@must("parallel calls have ids of their own", GUIDE)
def test_parallel_ids(api: Api) -> None:
    """However many there are."""
    question = "What is the weather in Paris, the weather in Rome, and the time in UTC?"
    calls = calls_of(api.chat(question, **fields_for(api, WEATHER, TIME, parallel_tool_calls=True)))
    ids = [call["id"] for call in calls]
    assert len(ids) == len(set(ids)), f"expected different ids, got {ids}"


@must("calls of two requests have different ids", GUIDE)
def test_ids_differ(api: Api) -> None:
    """They are matched with results by it, in one conversation."""
    first, second = (calls_of(api.chat(**fields_for(api, WEATHER, choice=NAMED)))[0]["id"] for _ in range(2))
    assert first != second, f"expected different ids, got {first!r} twice"


@must("a streamed call names id and function once and its arguments join to what the whole answer has", GUIDE)
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@needs("streaming")
def test_stream(api: Api, choice: Any) -> None:
    """Greedy, so that both are the same call."""
    fields = fields_for(api, WEATHER, choice=choice)
    whole = calls_of(api.chat(**fields))
    streamed = joined_calls(api.chat_stream(**fields))
    for call in streamed:
        check_call(call)
    functions = [call["function"] for call in streamed]
    expected = [call["function"] for call in whole]
    assert functions == expected, f"expected {expected}, got {functions}"


@must("a stream of calls ends with the whole answer's finish_reason", GUIDE)
@needs("streaming")
def test_stream_finish(api: Api) -> None:
    """Once, at the end."""
    fields = fields_for(api, WEATHER)
    whole = choice_of(api.chat(**fields).ok())["finish_reason"]
    reasons = [choice.get("finish_reason") for choice in api.chat_stream(**fields).choices()]
    assert reasons[-1] == whole and not any(reasons[:-1]), f"expected {whole!r} at the end, got {reasons}"


@must("newlines and characters beyond ASCII in arguments survive the stream", GUIDE)
@needs("streaming")
def test_stream_unicode(api: Api) -> None:
    """The schema allows no others."""
    fields = fields_for(api, NESTED, choice={"type": "function", "function": {"name": "book"}})
    fields[api.limit] = 160
    found = api.chat_stream("Book a table.", **fields).offered("strict")
    calls = joined_calls(found)
    if found.choices()[-1].get("finish_reason") == "length":
        not_able("its call is longer than the limit")
    assert calls, "expected a tool call"
    for call in calls:
        check_call(call, strict=True)


@must("a call and its result can be sent back, and are answered", GUIDE)
def test_round_trip(api: Api) -> None:
    """The message as it came."""
    question = {"role": "user", "content": "What is the weather in Paris?"}
    found = api.chat(messages=[question], **fields_for(api, WEATHER, choice=NAMED))
    calls = calls_of(found)
    message = choice_of(found.ok())["message"]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "Sunny."} for call in calls]
    api.chat(messages=[question, message, *results], tools=[WEATHER], tool_choice="none").ok()


@must("a tool_choice that names no tool is refused", CHOICE)
def test_unknown_name(api: Api) -> None:
    """It could not be honoured."""
    api.chat(**fields_for(api, WEATHER, choice={"type": "function", "function": {"name": "nothing"}})).refused(
        400, 422
    )


@must("tool_choice required without tools is refused", CHOICE)
def test_required_without_tools(api: Api) -> None:
    """There is nothing to call."""
    api.chat(tool_choice="required").refused(400, 422)


@should("two tools of one name are refused", TOOLS)
def test_same_name_twice(api: Api) -> None:
    """A call could mean either."""
    api.chat(**fields_for(api, WEATHER, WEATHER)).refused(400, 422)


@should("a function's name has letters, digits, _ and -, at most 64", TOOLS)
@pytest.mark.parametrize("name", ["", "has space", "x" * 65, "a.b", "é"])
def test_bad_name(api: Api, name: str) -> None:
    """Others are refused; never a failure of the server."""
    tool = {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    api.chat(**fields_for(api, tool, choice="auto")).refused(400, 422)


@must("usage counts the tokens of a call", "api-reference/chat/object#chat-object-usage")
def test_usage(api: Api) -> None:
    """Some, and the tools make the prompt longer."""
    plain = api.chat().ok()["usage"]
    usage = api.chat(**fields_for(api, WEATHER)).ok()["usage"]
    assert usage["completion_tokens"] > 0, f"expected completion tokens, got {usage}"
    assert usage["prompt_tokens"] >= plain["prompt_tokens"], (
        f"expected at least {plain['prompt_tokens']}, got {usage}"
    )
