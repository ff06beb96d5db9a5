"""Completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.conformance.stub import fields
from tests.conformance.stub.choices import answers, usage_of
from tests.conformance.stub.events import stream, work
from tests.conformance.stub.language import Answer
from tests.conformance.stub.state import Json, wrong


async def complete(request: Request, body: Json) -> Response:
    """POST /v1/completions."""
    if wrong("mixed prompts accepted") and isinstance(body.get("prompt"), list):
        body["prompt"] = [str(p) for p in body["prompt"]] or [""]
    if wrong("ids fold") and isinstance(body.get("prompt"), list):
        body["prompt"] = [p % 100 if isinstance(p, int) else p for p in body["prompt"]]
    if wrong("suffix ignored"):
        body.pop("suffix", None)
    given = fields.check(body, fields.COMPLETION, "prompt", "model")
    prompts = given["prompt"] if isinstance(given["prompt"], list) else [given["prompt"]]
    if isinstance(prompts[0], int):
        prompts = [prompts]
    texts = [p if isinstance(p, str) else "".join(map(chr, p)) for p in prompts]
    if wrong("ids as text"):
        texts = [str(p) for p in prompts]
    limit = given.get("max_tokens", 99 if wrong("no default limit") else 16)
    found = [answer for text in texts for answer in answers(text, given, limit)]
    owners = [text for text in texts for _ in range(given.get("n", 1))]
    if wrong("batch reversed"):
        found.reverse()
    usage = usage_of(sum(map(len, texts)), found)
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": given["model"],
    }
    choices = []
    for index, (text, answer) in enumerate(zip(owners, found, strict=True)):
        echo = text if given.get("echo") and not wrong("echo ignored") else ""
        logprobs = text_logprobs(echo, answer, given["logprobs"]) if "logprobs" in given else None
        shown = answer.text
        if wrong("completion stream differs") and given.get("stream"):
            shown += "!"
        choices.append({"index": index, "text": echo + shown, "logprobs": logprobs, "finish_reason": answer.finish})
    if not given.get("stream"):
        await work(request, limit if limit < 50 else 1)
        if wrong("completion object"):
            head["object"] = "completion"
        return JSONResponse({**head, "choices": choices, "usage": usage})

    def chunks() -> Iterator[Json]:
        for choice in choices:
            for character in choice["text"]:
                yield {**head, "choices": [{**choice, "text": character, "logprobs": None, "finish_reason": None}]}
            yield {**head, "choices": [{**choice, "text": "", "logprobs": None}]}
        if given.get("stream_options", {}).get("include_usage"):
            counts = {**usage, "total_tokens": 0} if wrong("stream usage off") else usage
            yield {**head, "choices": [], "usage": counts}

    return stream(request, chunks())


def text_logprobs(echo: str, answer: Answer, number: int) -> Json:
    """The columns of the older API."""
    tokens = [*echo, *(token.text for token in answer.tokens)]
    values = [None if i == 0 and not wrong("first echoed has a value") else -1.0 for i in range(len(echo))]
    tops: list[Any] = [None if value is None else {"a": value} for value in values]
    values += [token.logprob for token in answer.tokens]
    tops += [dict(token.top[:number]) for token in answer.tokens]
    offsets = list(range(len(tokens)))
    if wrong("offsets fall"):
        offsets.reverse()
    if wrong("columns differ"):
        offsets.append(0)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
