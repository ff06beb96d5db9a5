"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``. Wire format: Anthropic's Messages API."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.dialects.dialect import encode_json
from server.dialects.messages import PINGED, MessagesDialect
from server.http.failures import REQUEST_ID, request_id_of
from server.intake.job import Job
from server.intake.messages import count_tokens, messages_job
from server.openapi import describe
from server.routes.direct import respond
from server.routes.generation import Arrival, Family, in_dialect
from server.schemas.parse import BodyParser
from server.schemas.vendors.messages import REFUSALS, CountRequest, MessagesRequest
from server.state import LoadedModel, ServerState

PARSER = BodyParser(MessagesRequest, REFUSALS)
COUNT_PARSER = BodyParser(CountRequest, REFUSALS)
router = APIRouter(tags=["generate"])


@router.post(
    "/v1/messages",
    **describe(MessagesRequest, "Answer a conversation in Anthropic's format, whole or streamed."),
)
async def create_message(request: Request) -> Response:
    """One prompt, one answer."""
    return _named(request, await FAMILY.respond(request))


@router.post(
    "/v1/messages/count_tokens",
    **describe(CountRequest, "How many tokens a conversation in Anthropic's format has."),
)
async def count_message_tokens(request: Request) -> Response:
    """Answers ``{"input_tokens"}``."""
    return _named(request, await respond(request, COUNT_PARSER, _count, runs_templates=True))


def _prepare(arrival: Arrival, request: MessagesRequest) -> Job:
    return messages_job(arrival.model, arrival.state.config, request, arrival.time)


def _count(state: ServerState, model: LoadedModel, request: CountRequest) -> bytes:
    return encode_json({"input_tokens": count_tokens(model, request)})


def _named(request: Request, response: Response) -> Response:
    """Answers have the id by which errors are reported, too."""
    response.headers[REQUEST_ID] = request_id_of(request.scope)
    return response


FAMILY = Family(
    PARSER,
    count=lambda request: 1,
    prepare=_prepare,
    deliver=in_dialect(MessagesDialect, PINGED),
    id_prefix="msg_",
    kinds=("message", "message"),
    runs_templates=True,
)
