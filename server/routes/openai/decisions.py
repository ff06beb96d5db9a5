"""``POST /generative_scoring``, ``/v1/systemone`` and ``/v1/decisions``: probabilities instead of text."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.decisions.decisions import DecisionsWriter, decisions_job
from server.decisions.scoring import ScoringWriter, scoring_job
from server.decisions.systemone import SystemOneWriter, systemone_job
from server.openapi import describe
from server.routes.generation import Family, as_whole
from server.schemas.openai.decisions import (
    DECISIONS_REFUSALS,
    NO_STREAM,
    SYSTEM_ONE_REFUSALS,
    DecisionsRequest,
    SystemOneRequest,
)
from server.schemas.parse import BodyParser
from server.schemas.vendors.scoring import ScoringRequest

SCORING_PARSER = BodyParser(ScoringRequest, NO_STREAM)
SYSTEM_ONE_PARSER = BodyParser(SystemOneRequest, SYSTEM_ONE_REFUSALS)
DECISIONS_PARSER = BodyParser(DecisionsRequest, DECISIONS_REFUSALS)
router = APIRouter(tags=["decisions"])


@router.post(
    "/generative_scoring", **describe(ScoringRequest, "How likely the first of some tokens is to follow each item.")
)
async def create_scores(request: Request) -> Response:
    """A prompt an item, and the same labels for all."""
    return await SCORING.respond(request)


@router.post("/v1/systemone", **describe(SystemOneRequest, "Typed questions about a state, in vLLM's format."))
async def create_structured_decision(request: Request) -> Response:
    """A prompt a question."""
    return await SYSTEM_ONE.respond(request)


@router.post("/v1/decisions", **describe(DecisionsRequest, "Typed questions about an input, in OpenAI's format."))
async def create_decision(request: Request) -> Response:
    """A prompt a question."""
    return await DECISIONS.respond(request)


SCORING = Family(
    SCORING_PARSER,
    count=lambda request: len(request.items),
    prepare=lambda arrival, request: scoring_job(arrival.model, request, arrival.time),
    deliver=as_whole(ScoringWriter),
    id_prefix="generative-scoring-",
    kinds=("list", "list"),
    prompt_field="items",
    count_field="items",
)
SYSTEM_ONE = Family(
    SYSTEM_ONE_PARSER,
    count=lambda request: len(request.questions),
    prepare=lambda arrival, request: systemone_job(arrival.state, arrival.model, request, arrival.time),
    deliver=as_whole(SystemOneWriter),
    id_prefix="decision-",
    kinds=("structured_decision", "structured_decision"),
    prompt_field="state",
    count_field="questions",
    runs_templates=True,
    repeats_body=True,
)
DECISIONS = Family(
    DECISIONS_PARSER,
    count=lambda request: len(request.questions),
    prepare=lambda arrival, request: decisions_job(arrival.state, arrival.model, request, arrival.time),
    deliver=as_whole(DecisionsWriter),
    id_prefix="decision-",
    kinds=("decision", "decision"),
    prompt_field="input",
    count_field="questions",
    runs_templates=True,
    repeats_body=True,
)
