"""Request bodies to prompts: template, tokenizer, truncation. Long texts are worked on beside the event loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
import msgspec

from server.schemas.chat import ChatRequest, Message
from server.schemas.completions import CompletionRequest
from server.schemas.tokens import TokenizeRequest
from server.state import LoadedModel, ServerState
from tandem.errors import RequestError
from tandem.text.chat_template import ChatTemplate
from tandem.text.detokenizer import Detokenizer

SHORT_TEXT = 4096  # characters; shorter work is done where it stands


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads; ``text`` is what a client that asks for an echo is shown."""

    token_ids: list[int]
    text: str


async def completion_prompts(state: ServerState, model: LoadedModel, request: CompletionRequest) -> list[Prompt]:
    """The prompts in order.

    Raises:
        RequestError: prompts of different types are mixed.
    """
    prompts = request.prompts
    if sum(map(len, prompts)) <= SHORT_TEXT:
        return _completion_prompts(model, request, prompts)
    return await state.in_thread(_completion_prompts, model, request, prompts)


async def chat_prompt(state: ServerState, model: LoadedModel, request: ChatRequest) -> Prompt:
    """The rendered conversation; with ``echo`` its text is the last message that the answer goes on with.

    Raises:
        RequestError: the model has no template, or the template refuses the conversation.
    """
    template = request_template(state, model, request.chat_template)
    add_special = bool(request.add_special_tokens)
    token_ids = await _on_messages(state, request.messages, _tokenize_chat, model, template, request, add_special)
    last = request.messages[-1]
    echoed = last.content if request.echo and last.role == state.config.response_role else None
    limit = request.output_limit[1]
    return Prompt(_truncate(token_ids, request.truncate_prompt_tokens, model, limit), _text_of(echoed))


async def tokenize(state: ServerState, model: LoadedModel, request: TokenizeRequest) -> list[int]:
    """Token ids of a text or of a rendered conversation.

    Raises:
        RequestError: as ``chat_prompt``.
    """
    if request.messages is not None:
        template = request_template(state, model, request.chat_template)
        add_special = bool(request.add_special_tokens)
        return await _on_messages(state, request.messages, _tokenize_chat, model, template, request, add_special)
    text = request.prompt or ""
    add_special = request.add_special_tokens is not False
    if len(text) <= SHORT_TEXT:
        return model.tokenizer.encode(text, add_special)
    return await state.in_thread(model.tokenizer.encode, text, add_special)


def request_template(state: ServerState, model: LoadedModel, source: str | None) -> ChatTemplate:
    """The template to render with; a request brings its own only where that is trusted.

    Raises:
        RequestError: it may not, or its template does not compile, or there is none at all.
    """
    if source is None:
        if model.template is None:
            message = "this model has no chat template; use /v1/completions, or start the server with --chat-template"
            raise RequestError(message, "messages", "unsupported_parameter")
        return model.template
    if not state.config.trust_request_chat_template:
        message = "chat_template is refused unless the server runs with --trust-request-chat-template"
        raise RequestError(message, "chat_template", "unsupported_parameter")
    try:
        return ChatTemplate(source, model.tokenizer.special_tokens)
    except jinja2.TemplateError as error:
        raise RequestError(f"chat_template does not compile: {error}", "chat_template") from error


def detokenize(model: LoadedModel, token_ids: list[int], skip_special_tokens: bool) -> str:
    """The text that tokens stand for, as it would be streamed."""
    detokenizer = Detokenizer(model.tokenizer, skip_special_tokens)
    return "".join(map(detokenizer.push, token_ids)) + detokenizer.finish()


def _completion_prompts(
    model: LoadedModel, request: CompletionRequest, prompts: list[str | list[int]]
) -> list[Prompt]:
    limit = 16 if request.max_tokens is None else request.max_tokens
    return [_completion_prompt(model, request, prompt, limit) for prompt in prompts]


def _completion_prompt(model: LoadedModel, request: CompletionRequest, prompt: str | list[int], limit: int) -> Prompt:
    token_ids = prompt
    if isinstance(prompt, str):
        token_ids = model.tokenizer.encode(prompt, request.add_special_tokens is not False)
    assert isinstance(token_ids, list)
    kept = _truncate(token_ids, request.truncate_prompt_tokens, model, limit)
    if isinstance(prompt, str) and len(kept) == len(token_ids):
        return Prompt(kept, prompt)
    known = [token_id for token_id in kept if 0 <= token_id < model.info.vocab_size] if request.echo else []
    return Prompt(kept, detokenize(model, known, request.skip_special_tokens is not False))


def _truncate(token_ids: list[int], keep: int | None, model: LoadedModel, output_limit: int | None) -> list[int]:
    if keep is None:
        return token_ids
    if keep == -1:
        keep = max(1, model.context - (1 if output_limit is None else output_limit))
    return token_ids[len(token_ids) - keep :] if len(token_ids) > keep else token_ids


async def _on_messages(state: ServerState, messages: list[Message], work: Any, *args: Any) -> list[int]:
    size = sum(len(m.content) if isinstance(m.content, str) else SHORT_TEXT for m in messages if m.content)
    result: list[int] = work(*args) if size < SHORT_TEXT else await state.in_thread(work, *args)
    return result


def _tokenize_chat(
    model: LoadedModel, template: ChatTemplate, request: ChatRequest | TokenizeRequest, add_special: bool
) -> list[int]:
    assert request.messages is not None
    continues = bool(request.continue_final_message)
    add_prompt = request.add_generation_prompt
    text = template.render(
        _plain(request.messages, template),
        documents=request.documents,
        add_generation_prompt=not continues if add_prompt is None else add_prompt,
        continue_final_message=continues,
        variables=request.chat_template_kwargs,
    )
    return model.tokenizer.encode(text, add_special)


def _plain(messages: list[Message], template: ChatTemplate) -> list[Mapping[str, Any]]:
    """As plain data. Templates that know no ``developer`` are given the older name of that role."""
    plain: list[dict[str, Any]] = msgspec.to_builtins(messages)
    if "developer" not in template.source:
        for message in plain:
            if message["role"] == "developer":
                message["role"] = "system"
    return list(plain)


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part.text or "" for part in content)
    return content or ""
