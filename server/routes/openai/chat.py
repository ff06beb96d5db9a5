"""``POST /v1/chat/completions``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.dialects.chat import ChatDialect
from server.intake.conversation import chat_job
from server.intake.job import Job
from server.openapi import describe
from server.routes.generation import Arrival, Family, in_dialect
from server.schemas.openai.chat import ChatRequest
from server.schemas.parse import BodyParser
from tandem.errors import RequestError

PARSER = BodyParser(ChatRequest)
router = APIRouter(tags=["generate"])


@router.post(
    "/v1/chat/completions", **describe(ChatRequest, "Answer a conversation, whole or as a stream of events.")
)
async def create_chat_completion(request: Request) -> Response:
    """One prompt, any number of choices."""
    return await FAMILY.respond(request)


def _prepare(arrival: Arrival, request: ChatRequest) -> Job:
    try:
        return chat_job(arrival.model, arrival.state.config, request, arrival.time)
    except RequestError as error:
        names = {"prompt": "messages", "max_tokens": request.output_limit[0], "logprobs": "top_logprobs"}
        raise RequestError(str(error), names.get(error.param or "", error.param), error.code) from error


FAMILY = Family(
    PARSER,
    count=lambda request: request.n or 1,
    prepare=_prepare,
    deliver=in_dialect(ChatDialect),
    id_prefix="chatcmpl-",
    kinds=("chat.completion", "chat.completion.chunk"),
    runs_templates=True,
)
