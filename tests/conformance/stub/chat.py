"""Chat completions."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.conformance.stub import fields
from tests.conformance.stub.choices import answers, fit, prompt_of, usage_of
from tests.conformance.stub.events import stream, work
from tests.conformance.stub.fields import BadField
from tests.conformance.stub.language import Answer
from tests.conformance.stub.state import Json, state, wrong


async def chat(request: Request, body: Json) -> Response:
    """POST /v1/chat/completions."""
    if wrong("accepts anything"):
        for name, check in fields.CHAT.items():
            if (
                name in body
                and name not in ("messages", "model")
                and body[name] is not None
                and not check(body[name])
            ):
                del body[name]
    if wrong("empty messages accepted") and body.get("messages") == []:
        body["messages"] = [{"role": "user", "content": ""}]
    if wrong("fifth stop accepted") and isinstance(body.get("stop"), list):
        body["stop"] = body["stop"][:4]
    if wrong("null refused") and None in body.values():
        raise BadField(None, "null")
    if wrong("parts fail") and any(isinstance(m.get("content"), list) for m in body.get("messages", [])):
        raise BadField("messages", "text only", 500)
    if wrong("calls in history refused") and any(m.get("tool_calls") for m in body.get("messages", [])):
        raise BadField("messages", "text only")
    table = dict(fields.CHAT)
    if wrong("any tool"):
        table["tools"] = lambda v: isinstance(v, list)
    if wrong("auto refused") and body.get("tool_choice") == "auto":
        raise BadField("tool_choice", "not auto")
    if wrong("one turn") and len(body.get("messages", [])) > 2:
        raise BadField("messages", "one turn only")
    if wrong("no developer") and body.get("messages", [{}])[0].get("role") == "developer":
        raise BadField("messages", "no such role")
    if wrong("one stop") and len(body.get("stop") or "") > 1:
        raise BadField(None, "one stop string only")
    given = fields.check(body, table, "messages", "model")
    if wrong("huge limit fails") and given.get("max_tokens", 0) > 10**6:
        raise BadField("max_tokens", "too much", 500)
    names = [tool["function"]["name"] for tool in given.get("tools", [])]
    choice = given.get("tool_choice", "auto")
    if choice == "required" and not names and not wrong("required without tools"):
        raise BadField("tool_choice", "there are no tools")
    if isinstance(choice, dict) and choice["function"]["name"] not in names:
        if not wrong("unknown tool accepted"):
            raise BadField("tool_choice", "no such tool")
        given["tool_choice"] = "auto"
    if "top_logprobs" in given and not given.get("logprobs") and not wrong("top alone"):
        raise BadField("top_logprobs", "it needs logprobs")
    prompt = prompt_of(given)
    fit(prompt)
    limits = [given[name] for name in ("max_completion_tokens", "max_tokens") if name in given]
    if wrong("newer limit ignored"):
        limits = [given[name] for name in ("max_tokens",) if name in given]
    limit = (limits[-1] if wrong("older limit wins") else limits[0]) if limits else 2**31
    if wrong("limit ignored"):
        limit = 20
    found = answers(prompt, given, limit)
    if wrong("overload") and state.running > 20:
        raise BadField(None, "too busy", 500)
    if wrong("no retry after") and state.running > 20:
        raise BadField(None, "too busy", 429)
    usage = usage_of(len(prompt), found)
    if (thought := thought_of(prompt)) and not wrong("reasoning not counted"):
        usage["completion_tokens_details"] = {"reasoning_tokens": min(len(thought), usage["completion_tokens"])}
    head = {
        "id": "chatcmpl-1" if wrong("same id") else f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time() * (1000 if wrong("created in ms") else 1)),
        "model": "" if wrong("no model name") else given["model"],
        "system_fingerprint": "stub",
    }
    if given.get("stream") or ("stream_options" in given and wrong("streams unasked")):
        return stream(request, chat_chunks(head, given, found, usage, thought))
    choices = []
    for index, answer in enumerate(found):
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.calls:
            message |= {"content": None, "tool_calls": [tool_call(c) for c in answer.calls]}
        if thought:
            message["reasoning_content"] = thought
            if wrong("reasoning in content"):
                message["content"] = f"<think>{thought}</think>{answer.text}"
        if wrong("stray null"):
            message["tool_calls"] = None
        if wrong("no role"):
            del message["role"]
        if wrong("null content") and not answer.calls:
            message["content"] = None
        finish = None if wrong("null finish") else answer.finish
        logprobs = chat_logprobs(answer, given) if given.get("logprobs") or wrong("logprobs unasked") else None
        if wrong("first choice only") and index:
            logprobs = None
        place = 0 if wrong("all indexes 0") else index
        choices.append({"index": place, "message": message, "logprobs": logprobs, "finish_reason": finish})
    await work(request, len(found[0].tokens))
    return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": usage})


def thought_of(prompt: str) -> str:
    """Reasoning before the answer to one question."""
    return "3 and 4 more" if prompt.endswith("What is 3 plus 4?\n") and not wrong("no reasoning") else ""


def tool_call(function: dict[str, str]) -> Json:
    """As it is in a message."""
    name = "call_1" if wrong("same call id") else f"call_{uuid.uuid4().hex}"
    made: Json = {"id": name, "type": "function", "function": dict(function)}
    if wrong("arguments as object"):
        made["function"]["arguments"] = json.loads(function["arguments"])
    return made


def chat_logprobs(answer: Answer, given: Json, first: int = 0, last: int = 10**9) -> Json:
    """Of some tokens."""
    number = given.get("top_logprobs", 0) + wrong("one more top")
    content = []
    for token in answer.tokens[first:last]:
        top = [{"token": c, "logprob": p, "bytes": list(c.encode())} for c, p in token.top[:number]]
        if wrong("unsorted"):
            top.reverse()
        entry = {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode())}
        if wrong("wrong bytes"):
            entry["bytes"] = [32]
        if wrong("positive"):
            entry["logprob"] = 0.5
        if wrong("after temperature") and given.get("temperature", 1) > 0:
            for item in top:
                item["logprob"] -= 0.5
        content.append(entry | {"top_logprobs": top})
    if wrong("one logprob less"):
        content = content[:-1]
    if wrong("one logprob more"):
        content += content[-1:] * 2
    return {"content": content, "refusal": None}


def chat_chunks(head: Json, given: Json, found: list[Answer], usage: Json, thought: str) -> Iterator[Json]:
    """The chunks of a stream."""
    head = {**head, "object": "chat.completion" if wrong("chunk object") else "chat.completion.chunk"}
    asked = given.get("stream_options", {}).get("include_usage") and not wrong("no usage")
    extra: Json = {"usage": None} if asked and not wrong("usage left out") else {}

    def chunk(index: int, delta: Json, finish: str | None = None, logprobs: Json | None = None) -> Json:
        if wrong("role in every chunk"):
            delta = {"role": "assistant", **delta}
        if wrong("stray null in delta"):
            delta = {**delta, "tool_calls": None}
        own = {**head, "id": uuid.uuid4().hex} if wrong("id changes") else head
        choice = {
            "index": 0 if wrong("all indexes 0") else index,
            "delta": delta,
            "finish_reason": finish,
            "logprobs": logprobs,
        }
        return {**own, "choices": [choice], **extra}

    for index, _ in enumerate(found):
        if not wrong("no role in stream"):
            yield chunk(index, {"role": "assistant", "content": ""})
    if thought and not wrong("reasoning after content"):
        yield chunk(0, {"reasoning_content": thought[: 5 if wrong("reasoning cut") else None]})
    texts = [answer.text for answer in found]
    if wrong("stream differs"):
        texts = [text.upper() + "!" for text in texts]
    if wrong("characters broken"):
        texts = [text.encode().decode("ascii", "replace") for text in texts]
    if wrong("stop leaks") and given.get("stop"):
        texts = [text + str(given["stop"])[:1] for text in texts]
    steps = [(i, position) for position in range(max(map(len, texts))) for i in range(len(texts))]
    if wrong("one after another"):
        steps.sort()
    for index, position in steps:
        if position < len(texts[index]) and not found[index].calls:
            logprobs = chat_logprobs(found[index], given, position, position + 1) if given.get("logprobs") else None
            if wrong("no logprobs in stream"):
                logprobs = None
            yield chunk(index, {"content": texts[index][position]}, None, logprobs)
    if thought and wrong("reasoning after content"):
        yield chunk(0, {"reasoning_content": thought})
    for index, answer in enumerate(found):
        for number, function in enumerate(answer.calls):
            yield from call_chunks(chunk, index, number, function)
        finish = "content_filter" if wrong("finish differs") else answer.finish
        if not wrong("no finish"):
            yield chunk(index, {}, finish)
        if wrong("two finishes"):
            yield chunk(index, {}, finish)
    if asked or wrong("usage unasked"):
        counts = (
            {**usage, "completion_tokens": usage["completion_tokens"] + 1} if wrong("stream usage off") else usage
        )
        choices = [{"index": 0, "delta": {}, "finish_reason": None}] if wrong("usage with choices") else []
        yield {**head, "choices": choices, "usage": counts}


def call_chunks(chunk: Any, index: int, number: int, function: dict[str, str]) -> Iterator[Json]:
    """A call in pieces."""
    made = tool_call({**function, "arguments": ""})
    yield chunk(index, {"tool_calls": [{"index": number, **made}]})
    text = function["arguments"]
    for i in range(0, len(text), 7):
        piece: Json = {"index": number, "function": {"arguments": text[i : i + 7]}}
        if wrong("name in every delta"):
            piece["function"]["name"] = function["name"]
        if wrong("arguments of a stream differ") and i == 0:
            piece["function"]["arguments"] += " "
        yield chunk(index, {"tool_calls": [piece]})
