"""``POST /tokenize`` and ``POST /detokenize``. Wire format: vLLM's."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.dialects.dialect import encode_json
from server.intake.body import state_of
from server.intake.pool import SHORT_BYTES
from server.intake.prompts import detokenize, request_template, tokenize
from server.openapi import describe
from server.routes.direct import respond
from server.schemas.parse import BodyParser
from server.schemas.tokens import DetokenizeRequest, TokenizeRequest
from server.state import LoadedModel, ServerState
from tandem.errors import RequestError

TOKENIZE = BodyParser(TokenizeRequest, refusals={})
DETOKENIZE = BodyParser(DetokenizeRequest, refusals={})
router = APIRouter(tags=["tokens"])
info_router = APIRouter(tags=["tokens"])  # with --enable-tokenizer-info-endpoint


@router.post(
    "/tokenize", **describe(TokenizeRequest, "The token ids of a text, or of a conversation as it is rendered.")
)
async def create_tokens(request: Request) -> Response:
    """Answers ``{"count", "max_model_len", "tokens"}``, and ``token_strs`` if asked."""
    return await respond(request, TOKENIZE, _tokens, runs_templates=True)


@router.post("/detokenize", **describe(DetokenizeRequest, "The text of token ids, special tokens included."))
async def create_text(request: Request) -> Response:
    """Answers ``{"prompt"}``."""
    return await respond(request, DETOKENIZE, _text)


@info_router.get("/tokenizer_info", summary="The tokenizer's configuration, and the chat template.")
async def tokenizer_info(request: Request) -> Response:
    """``tokenizer_config.json``, with the template that conversations are rendered with."""
    state = state_of(request)
    model = state.require_model()
    text = await state.pool.run_in_thread(SHORT_BYTES, _info, model)
    return Response(text, media_type="application/json")


def _info(model: LoadedModel) -> bytes:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **model.tokenizer.config}
    return encode_json({**config, "chat_template": model.template.source if model.template else None})


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
