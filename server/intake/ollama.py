"""What requests of Ollama's API mean in terms of chat and of completions."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from server.config import ServerConfig
from server.intake.conversation import chat_job
from server.intake.job import Job
from server.intake.prompts import completion_prompts
from server.intake.sampling import completion_sampling
from server.schemas.openai.chat import ChatRequest, FunctionCall, Message, ToolCall
from server.schemas.openai.completions import CompletionRequest
from server.schemas.vendors.ollama import OllamaChat, OllamaGenerate, OllamaMessage, OllamaRequest
from server.state import LoadedModel
from tandem.errors import RequestError

_FIELDS = {  # of chat and completions, and what they are called here
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "response_format": "format",
    "thinking_token_budget": "think",
    "chat_template_kwargs": "think",
    **{
        name: f"options.{name}"
        for name in (
            "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed", "stop",
        )
    },
}  # fmt: skip


def ollama_chat_job(model: LoadedModel, config: ServerConfig, request: OllamaChat, arrival_time: float) -> Job:
    """A conversation to answer. May take long: see ``WorkPool``.

    Raises:
        RequestError: something is refused; ``param`` is a field of ``request``.
    """
    messages = [_message(message) for message in request.messages or ()]
    last = messages[-1]
    continues = last.role == "assistant" and bool(last.content) and not last.tool_calls
    try:
        common = _common(model, request)
        chat = ChatRequest(messages=messages, tools=request.tools, continue_final_message=continues, **common)
        return chat_job(model, config, chat, arrival_time)
    except RequestError as error:
        raise _in_own_terms(error, "messages") from error


def ollama_generate_job(
    model: LoadedModel, config: ServerConfig, request: OllamaGenerate, arrival_time: float
) -> Job:
    """A prompt to answer, or to go on with. May take long: see ``WorkPool``.

    Raises:
        RequestError: as ``ollama_chat_job``.
    """
    try:
        if request.is_bare:
            return _raw_job(model, request, arrival_time)
        messages = [Message(role="user", content=request.prompt or "")]
        if request.system:
            messages.insert(0, Message(role="system", content=request.system))
        chat = ChatRequest(messages=messages, **_common(model, request))
        return chat_job(model, config, chat, arrival_time)
    except RequestError as error:
        raise _in_own_terms(error, "prompt") from error


def _raw_job(model: LoadedModel, request: OllamaGenerate, arrival_time: float) -> Job:
    fields = _common(model, request)
    del fields["chat_template_kwargs"]
    if fields["max_tokens"] is None:
        fields["max_tokens"] = 0
    completion = CompletionRequest(prompt=request.prompt or "", suffix=request.suffix, **fields)
    completion.check()
    prompts = completion_prompts(model, completion)
    if not completion.max_tokens:  # as many as fit
        room = max(1, model.context - len(prompts[0].token_ids))
        completion = msgspec.structs.replace(completion, max_tokens=room)
    return Job.of(completion, model, completion_sampling(completion, model), prompts, arrival_time)


def _common(model: LoadedModel, request: OllamaRequest) -> dict[str, Any]:
    options = request.sampling
    if options.num_ctx is not None and options.num_ctx > model.context:
        message = f"options.num_ctx: the context of this server is {model.context} tokens"
        raise RequestError(message, "options.num_ctx")
    if request.think and model.formats.reasoning is None:
        raise RequestError("think: how this model writes its thoughts is not known", "think", "unsupported_parameter")
    limit = options.num_predict
    return {
        "model": request.model,
        "max_tokens": limit if limit is not None and limit > 0 else None,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "min_p": options.min_p,
        "repetition_penalty": 1.0 if options.repeat_last_n == 0 else options.repeat_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "seed": options.seed,
        "stop": options.stop,
        "response_format": request.response_format,
        "chat_template_kwargs": _variables(request),
    }


def _variables(request: OllamaRequest) -> dict[str, Any] | None:
    if request.think is None:
        return None
    variables: dict[str, Any] = {"enable_thinking": bool(request.think), "thinking": bool(request.think)}
    if isinstance(request.think, str):
        variables["reasoning_effort"] = request.think
    return variables


def _message(message: OllamaMessage) -> Message:
    calls = [
        ToolCall(id=call.id, function=FunctionCall(name=call.function.name, arguments=call.function.arguments))
        for call in message.tool_calls or ()
    ]
    return Message(
        role=message.role,
        content=message.content or "",
        name=message.tool_name,
        tool_call_id=message.tool_call_id,
        tool_calls=calls or None,
        reasoning_content=message.thinking or None,
    )


def _in_own_terms(error: RequestError, prompt: str) -> RequestError:
    """``prompt`` is what holds the text here."""
    if error.param is None:
        return error
    field, rest = re.fullmatch(r"(\w*)(.*)", error.param, re.DOTALL).groups()  # type: ignore[union-attr]
    own = prompt if field in ("prompt", "messages") else _FIELDS.get(field, field)
    return RequestError(str(error), own + (rest if own == field else ""), error.code)
