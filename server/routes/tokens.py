"""``POST /tokenize`` and ``POST /detokenize``. Wire format: vLLM's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.dialects.dialect import encode_json
from server.http.streaming import unless_gone
from server.intake.body import ignored_headers, read_body, served_model, state_of
from server.intake.pool import SHORT_BYTES
from server.intake.prompts import detokenize, request_template, tokenize
from server.openapi import describe
from server.schemas.parse import BodyParser
from server.schemas.tokens import DetokenizeRequest, TokenizeRequest
from server.state import LoadedModel, ServerState
from tandem.errors import RequestError

TOKENIZE = BodyParser(TokenizeRequest, refuses=False)
DETOKENIZE = BodyParser(DetokenizeRequest, refuses=False)
R = TypeVar("R", TokenizeRequest, DetokenizeRequest)
router = APIRouter(tags=["tokens"])


@router.post(
    "/tokenize", **describe(TokenizeRequest, "The token ids of a text, or of a conversation as it is rendered.")
)
async def create_tokens(request: Request) -> Response:
    """Answers ``{"count", "max_model_len", "tokens"}``, and ``token_strs`` if asked."""
    return await _respond(request, TOKENIZE, _tokens, runs_templates=True)


@router.post("/detokenize", **describe(DetokenizeRequest, "The text of token ids, special tokens included."))
async def create_text(request: Request) -> Response:
    """Answers ``{"prompt"}``."""
    return await _respond(request, DETOKENIZE, _text)


async def _respond(
    http: Request,
    parser: BodyParser[R],
    work: Callable[[ServerState, LoadedModel, R], bytes],
    runs_templates: bool = False,
) -> Response:
    state = state_of(http)
    model = state.require_model()
    with state.capacity.reserve() as reservation:
        body = await read_body(http, reservation)

        async def answer() -> Response:
            request, ignored = await state.pool.run(len(body), parser.parse, body)
            headers = ignored_headers(http.url.path, ignored)
            served_model(state, request.model)
            effort = max(len(body), SHORT_BYTES) if runs_templates else len(body)
            text = await state.pool.run(effort, work, state, model, request)
            return Response(text, headers=headers, media_type="application/json")

        return await unless_gone(http.receive, answer())


def _tokens(state: ServerState, model: LoadedModel, request: TokenizeRequest) -> bytes:
    template = request_template(model, request.chat_template, state.config.trust_request_chat_template)
    token_ids = tokenize(model, request, template)
    answer: dict[str, Any] = {
        "count": len(token_ids),
        "max_model_len": model.info.max_model_len,
        "tokens": token_ids,
    }
    if request.return_token_strs:
        answer["token_strs"] = [model.tokenizer.token(token_id) for token_id in token_ids]
    return encode_json(answer)


def _text(state: ServerState, model: LoadedModel, request: DetokenizeRequest) -> bytes:
    if request.tokens and max(request.tokens) >= model.info.vocab_size:
        raise RequestError(f"token ids must be in [0, {model.info.vocab_size})", "tokens")
    return encode_json({"prompt": detokenize(model, request.tokens, skip_special_tokens=False)})
