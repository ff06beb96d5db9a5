"""Responses."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.conformance.stub import fields
from tests.conformance.stub.choices import answers, prompt_of
from tests.conformance.stub.events import named_events
from tests.conformance.stub.fields import BadField
from tests.conformance.stub.language import Answer
from tests.conformance.stub.state import Json, state, wrong


def conversation(given: Any) -> list[Json]:
    """Input items as messages."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [item if "role" in item else {"role": "tool", "content": str(item.get("output", ""))} for item in given]


async def response(request: Request, body: Json) -> Response:
    """A response, whole or streamed."""
    given = fields.check(body, fields.RESPONSE, "input", "model")
    messages = conversation(given["input"])
    if wrong("one turn") and len(messages) > 2:
        raise BadField("messages", "one turn only")
    if wrong("results refused") and messages[-1]["role"] == "tool":
        raise BadField("messages", "no results")
    if before := given.get("previous_response_id"):
        if before not in state.stored and not wrong("previous ignored"):
            raise BadField("previous_response_id", "no such response", 404)
        if not wrong("previous ignored"):
            messages = [*state.stored[before]["x_messages"], *messages]
    if given.get("instructions") and not wrong("instructions ignored"):
        messages.insert(0, {"role": "system", "content": given["instructions"]})
    options: Json = {"temperature": given.get("temperature", 1)}
    choice = given.get("tool_choice", "auto")
    if given.get("tools") and choice not in ("none", "auto"):
        options |= {"tools": [{"function": tool} for tool in given["tools"]], "tool_choice": choice}
    if (form := given.get("text", {}).get("format", {})).get("type") == "json_schema":
        options["response_format"] = {"type": "json_schema", "json_schema": form}
    limit = given.get("max_output_tokens", 100)
    prompt = prompt_of({"messages": messages})
    answer = answers(prompt, options, limit)[0]
    final = finished(given, prompt, answer)
    if given.get("store", True) or wrong("stored anyway"):
        state.stored[final["id"]] = {**final, "x_messages": messages}
    if given.get("stream", wrong("responses streamed unasked")):
        if wrong("stream differs"):
            final["status"] = "failed"
        return named_events(numbered(events_of(final, answer)))
    return JSONResponse(final)


def finished(given: Json, prompt: str, answer: Answer) -> Json:
    """The response object."""
    is_cut = answer.finish == "length"
    output: list[Json] = [
        {
            "type": "function_call",
            "id": f"fc_{uuid.uuid4().hex}",
            "call_id": f"call_{uuid.uuid4().hex}",
            "status": "completed",
            **call,
        }
        for call in answer.calls
    ]
    if not output:
        part = {"type": "output_text", "text": answer.text, "annotations": []}
        name = "msg_1" if wrong("same item id") else f"msg_{uuid.uuid4().hex}"
        output = [{"type": "message", "id": name, "role": "assistant", "status": "completed", "content": [part]}]
        if wrong("item without status"):
            del output[0]["status"]
    spent = {"input_tokens": len(prompt), "output_tokens": len(answer.tokens)}
    is_incomplete = is_cut and not wrong("cut off as completed")
    usage: Json = {
        **spent,
        "total_tokens": sum(spent.values()) + wrong("usage off by one"),
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    if wrong("no usage details"):
        del usage["output_tokens_details"]
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": 1700000000,
        "status": "incomplete" if is_incomplete else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_incomplete else None,
        "instructions": given.get("instructions"),
        "metadata": {} if wrong("parameters not echoed") else given.get("metadata", {}),
        "model": given["model"],
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": given.get("previous_response_id"),
        "temperature": given.get("temperature", 1),
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": given.get("tools", []),
        "top_p": given.get("top_p", 1),
        "usage": usage,
    }


def events_of(final: Json, answer: Answer) -> Iterator[Json]:
    """The events of a response's life."""
    begun = {**final, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield {"type": "response.created", "response": begun}
    if not wrong("no in_progress"):
        yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(final["output"]):
        place = {"output_index": index, "item_id": "other" if wrong("item ids differ") else item["id"]}
        if item["type"] == "function_call":
            opened = {**item, "arguments": "", "status": "in_progress"}
            yield {"type": "response.output_item.added", "output_index": index, "item": opened}
            text = item["arguments"] + " " * wrong("argument deltas differ")
            for i in range(0, len(text), 7):
                yield {"type": "response.function_call_arguments.delta", **place, "delta": text[i : i + 7]}
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield {"type": "response.function_call_arguments.done", **place, **done}
        else:
            place["content_index"] = 0
            opened = {**item, "content": [], "status": "in_progress"}
            yield {"type": "response.output_item.added", "output_index": index, "item": opened}
            part = item["content"][0]
            yield {"type": "response.content_part.added", **place, "part": {**part, "text": ""}}
            for character in part["text"] + "!" * wrong("deltas differ"):
                yield {"type": "response.output_text.delta", **place, "delta": character, "logprobs": []}
            if not wrong("no text done"):
                yield {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": []}
            yield {"type": "response.content_part.done", **place, "part": part}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": f"response.{final['status']}", "response": final}


def numbered(events: Iterator[Json]) -> Iterator[Json]:
    """With sequence numbers."""
    for number, event in enumerate(events, start=wrong("sequence from 1")):
        yield {**event, "sequence_number": number}
