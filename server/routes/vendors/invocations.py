"""``POST /invocations``, which SageMaker calls: the body says which route is meant."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.openapi import describe
from server.routes.generation import Arrival, arrive
from server.routes.openai import chat, completions, responses
from server.schemas.openai.chat import ChatRequest
from server.schemas.openai.completions import CompletionRequest
from server.schemas.openai.responses import ResponsesRequest
from tandem.errors import RequestError

# The first field that a body has decides.
ROUTES: dict[str, Callable[[Arrival], Coroutine[Any, Any, Response]]] = {
    "messages": chat.FAMILY.answer,
    "prompt": completions.FAMILY.answer,
    "input": responses.FAMILY.answer,
}
_fields_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
router = APIRouter(tags=["generate"])


@router.post(
    "/invocations",
    **describe(
        ChatRequest | CompletionRequest | ResponsesRequest, "The same as the route of chat, completions or responses."
    ),
)
async def invoke(request: Request) -> Response:
    """Whole, streamed, or refused: as that route does."""
    return await arrive(request, _answer)


async def _answer(arrival: Arrival) -> Response:
    field = await arrival.state.pool.run(len(arrival.body), _deciding_field, arrival.body)
    return await ROUTES[field](arrival)


def _deciding_field(body: bytearray) -> str:
    """What is no JSON object is left to a route to refuse."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fields = _fields_of(body)
        if not fields.keys() & ROUTES.keys():
            message = f"the body must have one of the fields {', '.join(ROUTES)}"
            raise RequestError(message, next(iter(ROUTES)), "missing_required_parameter")
        return next(name for name in ROUTES if name in fields)
    return next(iter(ROUTES))
