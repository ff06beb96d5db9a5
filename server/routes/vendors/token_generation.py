"""``POST /inference/v1/generate``: token ids in, token ids out."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.dialects.generate import TokensDialect
from server.intake.tokens import tokens_job
from server.openapi import describe
from server.routes.generation import Family, in_dialect
from server.schemas.parse import BodyParser
from server.schemas.vendors.generate import GENERATE_REFUSALS, TokensRequest

PARSER = BodyParser(TokensRequest, GENERATE_REFUSALS)
router = APIRouter(tags=["generate"])


@router.post("/inference/v1/generate", **describe(TokensRequest, "Go on with token ids, whole or streamed."))
async def generate_tokens(request: Request) -> Response:
    """One prompt, any number of choices."""
    return await FAMILY.respond(request)


FAMILY = Family(
    PARSER,
    count=lambda request: request.sampling.n or 1,
    prepare=lambda arrival, request: tokens_job(arrival.model, request, arrival.time),
    deliver=in_dialect(TokensDialect),
    id_prefix="generate-tokens-",
    kinds=("generate", "generate"),
    prompt_field="token_ids",
    count_field="sampling_params.n",
)
