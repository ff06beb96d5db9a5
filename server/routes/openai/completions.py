"""``POST /v1/completions``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.dialects.completions import CompletionDialect
from server.intake.job import Job
from server.intake.prompts import completion_prompts
from server.intake.sampling import check_prompt_logprobs, completion_sampling
from server.openapi import describe
from server.routes.generation import Arrival, Family, in_dialect
from server.schemas.openai.completions import CompletionRequest
from server.schemas.parse import BodyParser

PARSER = BodyParser(CompletionRequest)
router = APIRouter(tags=["generate"])


@router.post("/v1/completions", **describe(CompletionRequest, "Go on with a text, whole or as a stream of events."))
async def create_completion(request: Request) -> Response:
    """Any number of prompts and choices."""
    return await FAMILY.respond(request)


def _prepare(arrival: Arrival, request: CompletionRequest) -> Job:
    sampling = completion_sampling(request, arrival.model)
    prompts = completion_prompts(arrival.model, request)
    # each choice reports its prompt
    num_positions = sampling.n * sum(len(prompt.token_ids) for prompt in prompts)
    check_prompt_logprobs(sampling, num_positions, "echo" if request.echo else "prompt_logprobs")
    return Job.of(request, arrival.model, sampling, prompts, arrival.time)


FAMILY = Family(
    PARSER,
    count=lambda request: len(request.prompts) * (request.n or 1),
    prepare=_prepare,
    deliver=in_dialect(CompletionDialect),
    id_prefix="cmpl-",
    kinds=("text_completion", "text_completion"),
)
