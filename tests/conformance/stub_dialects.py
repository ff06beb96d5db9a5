"""The stub's Responses, Messages and Decisions."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tests.conformance import fields
from tests.conformance.fields import BadField
from tests.conformance.language import Answer
from tests.conformance.stub import STEP, _faults, answers, prompt_of, wrong

Json = dict[str, Any]


def named_events(payloads: Iterator[Json]) -> Response:
    """Events whose name is their type."""
    names = _faults.get()

    async def events() -> AsyncIterator[bytes]:
        _faults.set(names)
        for payload in payloads:
            await asyncio.sleep(STEP)
            name = "" if wrong("events without names") else f"event: {payload['type']}\n"
            yield f"{name}data: {json.dumps(payload)}\n\n".encode()
        if wrong("done in messages"):
            yield b"data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


def conversation(given: Any) -> list[Json]:
    """Input items as messages."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [item if "role" in item else {"role": "tool", "content": str(item.get("output", ""))} for item in given]


async def response(request: Request, body: Json, stored: dict[str, Json]) -> Response:
    """A response, whole or streamed."""
    given = fields.check(body, fields.RESPONSE, "input", "model")
    messages = conversation(given["input"])
    if wrong("one turn") and len(messages) > 2:
        raise BadField("messages", "one turn only")
    if wrong("results refused") and messages[-1]["role"] == "tool":
        raise BadField("messages", "no results")
    if before := given.get("previous_response_id"):
        if before not in stored and not wrong("previous ignored"):
            raise BadField("previous_response_id", "no such response", 404)
        if not wrong("previous ignored"):
            messages = [*stored[before]["x_messages"], *messages]
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
        stored[final["id"]] = {**final, "x_messages": messages}
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


async def anthropic_message(request: Request, body: Json) -> Response:
    """A message, whole or streamed."""
    given = fields.check(body, fields.MESSAGE, "messages", "model", *(() if wrong("no limit") else ("max_tokens",)))
    messages = list(given["messages"])
    if wrong("one turn") and len(messages) > 2:
        raise BadField("messages", "one turn only")
    if wrong("results refused") and "tool_result" in str(messages[-1]):
        raise BadField("messages", "no results")
    if given.get("system") and not wrong("instructions ignored"):
        messages.insert(0, {"role": "system", "content": given["system"]})
    options: Json = {"temperature": given.get("temperature", 1), "stop": given.get("stop_sequences", [])}
    choice = given.get("tool_choice", {"type": "auto"})
    if given.get("tools") and choice["type"] in ("any", "tool"):
        tools = [{"function": {"name": t["name"], "parameters": t["input_schema"]}} for t in given["tools"]]
        options |= {"tools": tools, "tool_choice": "required"}
    prompt = prompt_of({"messages": messages})
    answer = answers(prompt, options, given.get("max_tokens", 100))[0]
    content: list[Json] = [
        {
            "type": "tool_use",
            "id": f"toolu_{uuid.uuid4().hex}",
            "name": c["name"],
            "input": json.loads(c["arguments"]),
        }
        for c in answer.calls
    ] or [{"type": "text", "text": answer.text}]
    is_stopped = answer.finish == "stop" and len(answer.text) < len(answer.tokens)
    reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
    reason = "stop_sequence" if is_stopped else reasons[answer.finish]
    if wrong("openai reasons"):
        reason = answer.finish
    stopped = next((s for s in options["stop"] if s in "".join(t.text for t in answer.tokens)), None)
    usage = {"input_tokens": len(prompt), "output_tokens": len(answer.tokens)}
    final = {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": given["model"],
        "content": content,
        "stop_reason": reason,
        "stop_sequence": stopped if is_stopped and not wrong("stop not named") else None,
        "usage": usage,
    }
    if given.get("stream"):
        return named_events(message_events(final))
    return JSONResponse(final)


def message_events(final: Json) -> Iterator[Json]:
    """The events of a message's life."""
    begun = {**final, "content": [], "stop_reason": None, "stop_sequence": None}
    yield {"type": "message_start", "message": {**begun, "usage": {**final["usage"], "output_tokens": 0}}}
    yield {"type": "ping"}
    for index, block in enumerate(final["content"]):
        empty = {**block, "text": ""} if block["type"] == "text" else {**block, "input": {}}
        if wrong("whole input first"):
            empty = block
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        text = block["text"] if block["type"] == "text" else json.dumps(block["input"])
        text += "!" * wrong("deltas differ")
        make: Callable[[str], Json] = (
            (lambda piece: {"type": "text_delta", "text": piece})
            if block["type"] == "text"
            else (lambda piece: {"type": "input_json_delta", "partial_json": piece})
        )
        for i in range(0, len(text), 3):
            yield {"type": "content_block_delta", "index": index, "delta": make(text[i : i + 3])}
        if not wrong("block not stopped"):
            yield {"type": "content_block_stop", "index": index}
    end = {"stop_reason": final["stop_reason"], "stop_sequence": final["stop_sequence"]}
    yield {"type": "message_delta", "delta": end, "usage": {"output_tokens": final["usage"]["output_tokens"]}}
    yield {"type": "message_stop"}


async def decision(request: Request, body: Json) -> Response:
    """Probabilities of answers to questions, all the same."""
    if wrong("any questions") and not fields.questions(body.get("questions")):
        return JSONResponse({})
    given = fields.check(body, fields.DECISION, "input", "questions", "model")
    if wrong("no messages as input") and not isinstance(given["input"], str):
        raise BadField("questions", "text only", 400)
    if wrong("few choices") and any(len(question.get("choices", ())) > 26 for question in given["questions"]):
        raise BadField("questions", "too many choices", 500)
    found = [decided(question) for question in given["questions"]]
    if wrong("answers reversed"):
        found.reverse()
    spent = len(str(given["input"])) if not wrong("input not counted") else 1
    usage = {
        "input_tokens": spent,
        "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
        "output_tokens": 1,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": spent + 1,
    }
    return JSONResponse({"answers": found, "model": given["model"], "usage": usage})


def decided(question: Json) -> Json:
    """The answer to one question."""
    name = {"type": question["type"], "name": question.get("name", "none" if wrong("unnamed named") else None)}
    if question["type"] == "predicate":
        return {**name, "probability": 1.5 if wrong("more than certain") else 0.5}
    if question["type"] == "choice":
        values = [str(c["value"]) if wrong("booleans as text") else c["value"] for c in question["choices"]]
        share = 1 / len(values)
        rows = [{"value": value, "probability": share} for value in values]
        return {**name, "choice": values[0], "confidence": share, "probabilities": rows}
    labels = [level["label"] for level in question["levels"]]
    if wrong("levels reversed"):
        labels.reverse()
    share = 1 / len(labels)
    rows = [{"value": i, "label": label, "probability": share} for i, label in enumerate(labels)]
    return {**name, "score": (len(labels) - 1) / 2, "confidence": share, "probabilities": rows}
