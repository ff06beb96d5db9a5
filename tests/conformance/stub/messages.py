"""Anthropic's messages."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.conformance.stub import fields
from tests.conformance.stub.choices import answers, prompt_of
from tests.conformance.stub.events import named_events
from tests.conformance.stub.fields import BadField
from tests.conformance.stub.state import Json, wrong


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
