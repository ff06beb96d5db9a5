"""Request bodies to prompts: template, tokenizer, truncation. Everything here may take long: see ``WorkPool``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from server.schemas.common import GenerationRequest
from server.schemas.openai.chat import ChatRequest, Message
from server.schemas.openai.completions import CompletionRequest
from server.schemas.tokens import TokenizeRequest
from server.state import LoadedModel
from tandem.errors import RequestError
from tandem.text.chat_template import ChatTemplate
from tandem.text.detokenizer import Detokenizer
from tandem.text.fill_in_middle import FillInMiddle, fill_in_middle, gap_prompt

# what clients add to earlier answers
_NOT_IN_PROMPTS = ("annotations", "parsed", "parsed_arguments", "provider_specific_fields")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads; ``text`` is what a client that asks for an echo is shown."""

    token_ids: list[int]
    text: str


def completion_prompts(model: LoadedModel, request: CompletionRequest) -> list[Prompt]:
    """The prompts in order.

    Raises:
        RequestError: prompts of different types are mixed, or a text is too long.
    """
    if request.suffix:
        return [_gap_prompt(model, request, str(prompt), request.suffix) for prompt in request.prompts]
    limit = 16 if request.max_tokens is None else request.max_tokens
    return [_completion_prompt(model, request, prompt, limit) for prompt in request.prompts]


def chat_prompt(model: LoadedModel, request: ChatRequest, template: ChatTemplate | None, role: str) -> Prompt:
    """The rendered conversation; with ``echo`` its text is the last message that the answer goes on with.

    Args:
        template: the request's own, if it may bring one.
        role: of answers.

    Raises:
        RequestError: the model has no template, or the template refuses the conversation.
    """
    fits = request.truncate_prompt_tokens is None
    token_ids = _render(model, request, request.messages, template, fits)
    last = request.messages[-1]
    echoed = last.content if request.echo and last.role == role else None
    limit = request.output_limit[1]
    return Prompt(_truncate(token_ids, request, model, limit), _text_of(echoed))


def tokenize(model: LoadedModel, request: TokenizeRequest, template: ChatTemplate | None) -> list[int]:
    """Token ids of a text or of a rendered conversation.

    Raises:
        RequestError: as ``chat_prompt``.
    """
    if request.messages is not None:
        return _render(model, request, request.messages, template, fits=False)
    add_special = request.add_special_tokens is not False
    return model.generator.admission.encode(request.prompt or "", add_special, fits=False)


def request_template(model: LoadedModel, source: str | None, is_trusted: bool) -> ChatTemplate | None:
    """The template that a request brings, which it may only where that is trusted.

    Raises:
        RequestError: it may not, or its template does not compile.
    """
    if source is None:
        return None
    if not is_trusted:
        message = "chat_template is refused unless the server runs with --trust-request-chat-template"
        raise RequestError(message, "chat_template", "unsupported_parameter")
    return ChatTemplate(source, model.tokenizer.special_tokens)


def detokenize(model: LoadedModel, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
    """The text that tokens stand for, as it would be streamed."""
    detokenizer = Detokenizer(model.tokenizer, skip_special_tokens)
    return "".join(map(detokenizer.push, token_ids)) + detokenizer.finish()


def gap_form(model: LoadedModel) -> FillInMiddle:
    """How the model is asked to fill a gap.

    Raises:
        RequestError: its tokenizer has no tokens for that.
    """
    if (form := fill_in_middle(model.tokenizer)) is None:
        message = "suffix is not supported: the model's tokenizer has no tokens that ask for what fills a gap"
        raise RequestError(message, "suffix", "unsupported_parameter")
    return form


def _gap_prompt(model: LoadedModel, request: CompletionRequest, prompt: str, suffix: str) -> Prompt:
    form, encode = gap_form(model), model.generator.admission.encode
    add_special = request.add_special_tokens is not False
    return Prompt(gap_prompt(form, model.tokenizer, encode, prompt, suffix, add_special), prompt)


def _completion_prompt(model: LoadedModel, request: CompletionRequest, prompt: str | list[int], limit: int) -> Prompt:
    keep = request.truncate_prompt_tokens
    if isinstance(prompt, str):
        add_special = request.add_special_tokens is not False
        token_ids = model.generator.admission.encode(prompt, add_special, fits=keep is None)
    else:
        token_ids = prompt
    if not token_ids and isinstance(prompt, str):
        token_ids = _beginning(model)
    kept = _truncate(token_ids, request, model, limit)
    if isinstance(prompt, str) and len(kept) == len(token_ids):
        return Prompt(kept, prompt)
    known = [token_id for token_id in kept if 0 <= token_id < model.info.vocab_size] if request.echo else []
    return Prompt(kept, detokenize(model, known, request.skip_special_tokens is not False))


def _beginning(model: LoadedModel) -> list[int]:
    """What an empty text begins with: the token that stands between documents, if the model has one."""
    tokens = model.tokenizer.special_tokens
    ids = [model.tokenizer.token_id(tokens[role]) for role in ("bos_token", "eos_token") if role in tokens]
    return [token_id for token_id in ids if token_id is not None][:1]


def _truncate(
    token_ids: list[int], request: GenerationRequest, model: LoadedModel, output_limit: int | None
) -> list[int]:
    keep = request.truncate_prompt_tokens
    if keep is None:
        return token_ids
    if keep == -1:
        keep = max(1, model.context - (1 if output_limit is None else output_limit))
    if len(token_ids) <= keep:
        return token_ids
    return token_ids[:keep] if request.truncation_side == "right" else token_ids[len(token_ids) - keep :]


def _render(
    model: LoadedModel,
    request: ChatRequest | TokenizeRequest,
    messages: list[Message],
    template: ChatTemplate | None,
    fits: bool,
) -> list[int]:
    continues = bool(request.continue_final_message)
    add_prompt = request.add_generation_prompt
    try:
        return model.encoder.encode(
            _plain(messages, template or model.template),
            template=template,
            tools=_shown_tools(request),
            documents=request.documents,
            add_generation_prompt=not continues if add_prompt is None else add_prompt,
            continue_final_message=continues,
            add_special_tokens=bool(request.add_special_tokens),
            variables=_variables(request),
            measure=lambda text: model.generator.admission.measure(text, fits),
        )
    except RecursionError as error:
        raise RequestError("the conversation is nested too deeply", "messages") from error
    except RequestError as error:
        param = "messages" if error.param == "prompt" else error.param
        raise RequestError(str(error), param, error.code) from error


def _shown_tools(request: ChatRequest | TokenizeRequest) -> list[dict[str, Any]] | None:
    """The functions that the model is told of: none where it must not call any."""
    if not request.tools or (isinstance(request, ChatRequest) and request.tool_choice == "none"):
        return None
    return [{"type": "function", "function": msgspec.to_builtins(tool.function)} for tool in request.tools]


def _variables(request: ChatRequest | TokenizeRequest) -> dict[str, Any]:
    """Of the template: ``reasoning_effort``, and what templates that know no efforts make of it."""
    given = dict(request.chat_template_kwargs or {})
    effort = request.reasoning_effort if isinstance(request, ChatRequest) else None
    if effort is None:
        return given
    thinks = effort != "none"
    return {"reasoning_effort": effort, "enable_thinking": thinks, "thinking": thinks, **given}


def _plain(messages: list[Message], template: ChatTemplate | None) -> list[Mapping[str, Any]]:
    """As plain data, in the newer of two spellings that mean the same.

    Templates that know no ``developer`` are given the older name of that role.
    """
    plain: list[dict[str, Any]] = msgspec.to_builtins(messages)
    knows_developer = template is not None and "developer" in template.source
    for message in plain:
        if message["role"] == "developer" and not knows_developer:
            message["role"] = "system"
        if (call := message.pop("function_call", None)) is not None:
            message["tool_calls"] = [{"type": "function", "function": call}]
        if (reasoning := message.pop("reasoning", None)) is not None:
            message.setdefault("reasoning_content", reasoning)
        calls = message.get("tool_calls", ())
        for part in (message, *calls, *(call["function"] for call in calls)):
            for name in _NOT_IN_PROMPTS:
                part.pop(name, None)
    return list(plain)


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part.text or "" for part in content)
    return content or ""
