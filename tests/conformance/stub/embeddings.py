"""Embeddings."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.conformance.stub import fields
from tests.conformance.stub.fields import BadField
from tests.conformance.stub.state import CONTEXT, Json, wrong


async def embed(request: Request, body: Json) -> Response:
    """POST /v1/embeddings."""
    given = body.get("input")
    is_good = given != "" and fields.prompt(given)
    if not is_good and not (wrong("any input") and given == []):
        raise BadField("input", "input has a wrong value")
    form = body.get("encoding_format", "float")
    if form not in ("float", "base64") and not wrong("any format"):
        raise BadField("encoding_format", "no such format")
    if "dimensions" in body and not wrong("dimensions ignored"):
        raise BadField("dimensions", "this model has 16")
    inputs = given if isinstance(given, list) else [given]
    if inputs and isinstance(inputs[0], int):
        inputs = [[i] for i in inputs] if wrong("ids are inputs") else [inputs]
    texts = [p if isinstance(p, str) else "".join(map(chr, p)) for p in inputs]
    if sum(map(len, texts)) > CONTEXT and not wrong("no limit of length"):
        raise BadField("input", "too long", 400, "context_length_exceeded")
    data = []
    for index, text in enumerate(reversed(texts) if wrong("embeddings reversed") else texts):
        seed = "" if wrong("one vector") else text
        raw = struct.unpack("<16b", hashlib.md5(seed.encode()).digest())
        length = 1.0 if wrong("not normal") else math.hypot(*raw)
        vector: Any = [value / length for value in raw]
        if form == "base64":
            order = ">" if wrong("big endian") else "<"
            vector = base64.b64encode(struct.pack(f"{order}16f", *vector)).decode()
        data.append({"object": "embedding", "index": 0 if wrong("embedding indexes") else index, "embedding": vector})
    spent = len(texts[0]) if wrong("usage of first input") else sum(map(len, texts))
    usage = {"prompt_tokens": spent, "total_tokens": spent + wrong("usage off by one")}
    return JSONResponse({"object": "list", "data": data, "model": body["model"], "usage": usage})
