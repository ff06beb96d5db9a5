"""``POST /tokenize`` and ``POST /detokenize``. Wire format: vLLM's."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.body import read, served_model, state_of
from server.openapi import describe
from server.prompts import detokenize, tokenize
from server.schemas.parse import BodyParser
from server.schemas.tokens import DetokenizeRequest, TokenizeRequest
from server.streaming import encode_json, unless_gone
from tandem.errors import RequestError

TOKENIZE = BodyParser(TokenizeRequest, refuses=False)
DETOKENIZE = BodyParser(DetokenizeRequest, refuses=False)
router = APIRouter(tags=["tokens"])


@router.post(
    "/tokenize", **describe(TokenizeRequest, "The token ids of a text, or of a conversation as it is rendered.")
)
async def create_tokens(request: Request) -> Response:
    """Answers ``{"count", "max_model_len", "tokens"}``, and ``token_strs`` if asked."""
    state = state_of(request)
    model = state.require_model()
    body, headers = await read(request, TOKENIZE)
    served_model(state, body.model)
    token_ids = await unless_gone(request.receive, tokenize(state, model, body))
    answer: dict[str, Any] = {
        "count": len(token_ids),
        "max_model_len": model.info.max_model_len,
        "tokens": token_ids,
    }
    if body.return_token_strs:
        answer["token_strs"] = [model.tokenizer.token(token_id) for token_id in token_ids]
    return Response(encode_json(answer), headers=headers, media_type="application/json")


@router.post("/detokenize", **describe(DetokenizeRequest, "The text of token ids, special tokens included."))
async def create_text(request: Request) -> Response:
    """Answers ``{"prompt"}``."""
    state = state_of(request)
    model = state.require_model()
    body, headers = await read(request, DETOKENIZE)
    served_model(state, body.model)
    if body.tokens and max(body.tokens) >= model.info.vocab_size:
        raise RequestError(f"token ids must be in [0, {model.info.vocab_size})", "tokens")
    text = await unless_gone(request.receive, state.in_thread(detokenize, model, body.tokens, False))
    return Response(encode_json({"prompt": text}), headers=headers, media_type="application/json")
