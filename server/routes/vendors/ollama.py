"""Routes of Ollama's API that local tools use; there with ``--enable-ollama-api`` only."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.dialects.dialect import encode_json
from server.dialects.ollama import LINES, OllamaChatDialect, OllamaGenerateDialect, timestamp
from server.intake.body import state_of
from server.intake.job import Job
from server.intake.ollama import ollama_chat_job, ollama_generate_job
from server.openapi import describe
from server.routes.direct import respond
from server.routes.generation import Arrival, Family, in_dialect
from server.schemas.parse import BodyParser
from server.schemas.vendors.ollama import CHAT_REFUSALS, GENERATE_REFUSALS, OllamaChat, OllamaGenerate, OllamaShow
from server.state import LoadedModel, ServerState
from tandem import __version__
from tandem.text.fill_in_middle import fill_in_middle

CHAT_PARSER = BodyParser(OllamaChat, CHAT_REFUSALS)
GENERATE_PARSER = BodyParser(OllamaGenerate, GENERATE_REFUSALS)
SHOW_PARSER = BodyParser(OllamaShow, {})
NEVER = "9999-12-31T23:59:59Z"
router = APIRouter(tags=["ollama"])


@router.post("/api/chat", **describe(OllamaChat, "Answer a conversation in Ollama's format."))
async def chat(request: Request) -> Response:
    """One prompt, one answer."""
    return await CHAT.respond(request)


@router.post("/api/generate", **describe(OllamaGenerate, "Answer a prompt in Ollama's format."))
async def generate(request: Request) -> Response:
    """One prompt, one answer."""
    return await GENERATE.respond(request)


@router.post("/api/show", **describe(OllamaShow, "What is known of a model, in Ollama's format."))
async def show(request: Request) -> Response:
    """Its template, details and capabilities."""
    return await respond(request, SHOW_PARSER, _show)


@router.get("/api/tags", summary="The names under which the model is served, in Ollama's format.")
async def tags(request: Request) -> Response:
    """A model for each name."""
    state = state_of(request)
    model = state.require_model()
    modified = {"modified_at": timestamp(state.created)}
    return _json({"models": [_listed(model, name) | modified for name in state.names]})


@router.get("/api/ps", summary="The models that are loaded, in Ollama's format.")
async def ps(request: Request) -> Response:
    """The same; they stay loaded."""
    state = state_of(request)
    model = state.require_model()
    in_memory = _num_bytes(model) if model.info.device.startswith("cuda") else 0
    loaded = {"expires_at": NEVER, "size_vram": in_memory, "context_length": model.context}
    return _json({"models": [_listed(model, name) | loaded for name in state.names]})


@router.get("/api/version", summary="The server's version, in Ollama's format.")
async def version() -> Response:
    """Answers ``{"version"}``."""
    return _json({"version": __version__})


def _prepare_chat(arrival: Arrival, request: OllamaChat) -> Job:
    return ollama_chat_job(arrival.model, arrival.state.config, request, arrival.time)


def _prepare_generate(arrival: Arrival, request: OllamaGenerate) -> Job:
    return ollama_generate_job(arrival.model, arrival.state.config, request, arrival.time)


def _chat_at_once(request: OllamaChat, name: str) -> Response | None:
    """Without messages: clients ask so to have the model loaded, and it is."""
    return None if request.messages else _loaded(name, {"message": {"role": "assistant", "content": ""}})


def _generate_at_once(request: OllamaGenerate, name: str) -> Response | None:
    return None if request.prompt or request.suffix else _loaded(name, {"response": ""})


def _loaded(name: str, part: dict[str, Any]) -> Response:
    head = {"model": name, "created_at": timestamp(time.time())}
    return _json({**head, **part, "done": True, "done_reason": "load"})


def _show(state: ServerState, model: LoadedModel, request: OllamaShow) -> bytes:
    architecture = _family(model)
    sampling = model.resolved.default_sampling.items()
    capabilities = {
        "completion": True,
        "insert": fill_in_middle(model.tokenizer),
        "tools": model.formats.tools,
        "thinking": model.formats.reasoning,
    }
    return encode_json({
        "modelfile": "",
        "parameters": "\n".join(f"{name} {value}" for name, value in sampling),
        "template": model.template.source if model.template else "",
        "details": _details(model),
        "model_info": {
            "general.architecture": architecture,
            "general.parameter_count": model.info.num_parameters,
            f"{architecture}.context_length": model.context,
            f"{architecture}.vocab_size": model.info.vocab_size,
        },
        "capabilities": [name for name, value in capabilities.items() if value],
        "modified_at": timestamp(state.created),
    })  # fmt: skip


def _listed(model: LoadedModel, name: str) -> dict[str, Any]:
    digest = hashlib.sha256(model.fingerprint.encode()).hexdigest()
    return {"name": name, "model": name, "size": _num_bytes(model), "digest": digest, "details": _details(model)}


def _details(model: LoadedModel) -> dict[str, Any]:
    architecture = _family(model)
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": architecture,
        "families": [architecture],
        "parameter_size": f"{count / 1e9:.1f}B"
        if (count := model.info.num_parameters) >= 1e9
        else f"{count / 1e6:.1f}M",
        "quantization_level": model.info.dtype,
    }


def _family(model: LoadedModel) -> str:
    return model.resolved.engine.model.architecture.removesuffix("ForCausalLM").lower()


def _num_bytes(model: LoadedModel) -> int:
    return model.info.num_parameters * (4 if model.info.dtype == "float32" else 2)


def _json(value: Any) -> Response:
    return Response(encode_json(value), media_type="application/json")


CHAT = Family(
    CHAT_PARSER,
    count=lambda request: 1,
    prepare=_prepare_chat,
    deliver=in_dialect(OllamaChatDialect, LINES),
    id_prefix="ollama-",
    kinds=("chat", "chat"),
    runs_templates=True,
    at_once=_chat_at_once,
)
GENERATE = Family(
    GENERATE_PARSER,
    count=lambda request: 1,
    prepare=_prepare_generate,
    deliver=in_dialect(OllamaGenerateDialect, LINES),
    id_prefix="ollama-",
    kinds=("generate", "generate"),
    runs_templates=True,
    at_once=_generate_at_once,
)
