"""Tokens of texts, and texts of tokens."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.conformance.stub.choices import prompt_of
from tests.conformance.stub.state import CONTEXT, Json, wrong


async def tokenize(request: Request, body: Json) -> Response:
    """POST /tokenize."""
    text = prompt_of(body) if "messages" in body else body["prompt"]
    if wrong("tokens lose characters"):
        text = text.strip()
    tokens = [ord(c) for c in text]
    return JSONResponse({"tokens": tokens, "count": len(tokens) + wrong("count off"), "max_model_len": CONTEXT})


async def detokenize(request: Request, body: Json) -> Response:
    """POST /detokenize."""
    return JSONResponse({"prompt": "".join(map(chr, body["tokens"]))})


async def count_tokens(request: Request, body: Json) -> Response:
    """POST /v1/messages/count_tokens."""
    return JSONResponse({"input_tokens": len(prompt_of(body)) + wrong("count off")})
