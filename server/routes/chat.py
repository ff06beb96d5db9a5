"""``POST /v1/chat/completions``.

Wire format: ``CreateChatCompletionResponse`` and ``CreateChatCompletionStreamResponse`` of OpenAI's published API;
``stop_reason``, ``token_ids``, ``prompt_token_ids`` and ``prompt_logprobs`` are vLLM's, and only there when they say
something.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.answers import Answer, Choice, collect
from server.body import read, require_capacity, served_model, state_of
from server.logprobs import LogprobWriter, prompt_logprobs
from server.logs import log_request
from server.openapi import describe
from server.prompts import Prompt, chat_prompt
from server.sampling import chat_sampling
from server.schemas.chat import ChatRequest
from server.schemas.parse import BodyParser
from server.state import LoadedModel, ServerState
from server.streaming import ChunkWriter, EventStream, encode_json, stream, unless_gone
from tandem.errors import RequestError
from tandem.generation.outputs import ChoiceDelta

PARSER = BodyParser(ChatRequest)
router = APIRouter(tags=["generate"])


@router.post(
    "/v1/chat/completions", **describe(ChatRequest, "Answer a conversation, whole or as a stream of events.")
)
async def create_chat_completion(request: Request) -> Response:
    """Body, model, prompt, engine, answer: in this order, each able to refuse."""
    state = state_of(request)
    model = require_capacity(state)
    body, headers = await read(request, PARSER)
    name = served_model(state, body.model)
    return await unless_gone(request.receive, _answer(state, model, body, name, headers))


async def _answer(
    state: ServerState, model: LoadedModel, request: ChatRequest, name: str, headers: dict[str, str]
) -> Response:
    sampling = chat_sampling(request, model)
    prompt = await chat_prompt(state, model, request)
    answer_id = f"chatcmpl-{request.request_id or uuid.uuid4().hex}"
    common = {
        "id": answer_id,
        "object": "chat.completion.chunk" if request.stream else "chat.completion",
        "created": int(time.time()),
        "model": name,
        "system_fingerprint": model.fingerprint,
    }
    try:
        answer = Answer(state.metrics, model, [prompt], sampling, request)
    except RequestError as error:
        raise _renamed(error, request) from error
    log_request(state, answer_id, [prompt], sampling)
    if request.stream:
        return await EventStream.open(stream(answer, _Chunks(state, model, request, answer, common)), headers)
    body = await _whole(state, model, request, prompt, answer)
    return Response(encode_json({**common, **body}), headers=headers, media_type="application/json")


async def _whole(
    state: ServerState, model: LoadedModel, request: ChatRequest, prompt: Prompt, answer: Answer
) -> dict[str, Any]:
    choices = await collect(answer)
    body: dict[str, Any] = {
        "choices": [_choice(state, model, request, prompt, answer, choice) for choice in choices],
        "usage": answer.usage,
    }
    if request.prompt_logprobs is not None:
        entries, as_ids = answer.prompt_logprobs[0], bool(request.return_tokens_as_token_ids)
        body["prompt_logprobs"] = await state.in_thread(prompt_logprobs, model.vocabulary, entries, as_ids)
    if request.return_token_ids:
        body["prompt_token_ids"] = prompt.token_ids
    return body


def _choice(
    state: ServerState, model: LoadedModel, request: ChatRequest, prompt: Prompt, answer: Answer, choice: Choice
) -> dict[str, Any]:
    logprobs = None
    if request.logprobs:
        writer = LogprobWriter(model.vocabulary, answer.sampling, bool(request.return_tokens_as_token_ids))
        logprobs = writer.chat(choice.logprobs, choice.finish_reason, choice.stop_reason)
    fields = {
        "index": choice.index,
        "message": {"role": state.config.response_role, "content": prompt.text + choice.text, "refusal": None},
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
    }
    return fields | _extras(request, choice.token_ids, choice.stop_reason)


class _Chunks:
    """The stream's chunks: for each choice a role first, then text, then one chunk with the reason of its end."""

    def __init__(
        self, state: ServerState, model: LoadedModel, request: ChatRequest, answer: Answer, common: dict[str, Any]
    ) -> None:
        as_ids = bool(request.return_tokens_as_token_ids)
        self._request = request
        self._answer = answer
        self._write = ChunkWriter(common, request.wants_usage)
        self._logprobs = [LogprobWriter(model.vocabulary, answer.sampling, as_ids) for _ in range(answer.sampling.n)]
        prompt = answer.prompts[0]
        self._role = b'"delta":' + encode_json({"role": state.config.response_role, "content": prompt.text})
        self._opening = {"prompt_token_ids": prompt.token_ids} if request.return_token_ids else None
        self._started: set[int] = set()

    def of(self, index: int, delta: ChoiceDelta) -> Iterator[bytes]:
        """What one delta adds."""
        chunk, usage = self._write.chunk, self._answer.usage if self._request.wants_continuous_usage else None
        if index not in self._started:
            self._started.add(index)
            yield chunk(index, self._role, usage=usage, top=self._opening)
            self._opening = None
        logprobs = None
        if delta.logprobs:
            logprobs = self._logprobs[index].chat(delta.logprobs, delta.finish_reason, delta.stop_reason)
        extra = _extras(self._request, delta.token_ids, None)
        if delta.text or logprobs or extra:
            yield chunk(
                index, b'"delta":{"content":%b}' % encode_json(delta.text), logprobs, extra=extra, usage=usage
            )
        if delta.finish_reason:
            extra = {} if delta.stop_reason is None else {"stop_reason": delta.stop_reason}
            yield chunk(index, b'"delta":{}', None, delta.finish_reason, extra, usage)

    def end(self) -> bytes:
        """The usage, where it was asked for."""
        return self._write.usage(self._answer.usage) if self._request.wants_usage else b""


def _extras(request: ChatRequest, token_ids: list[int], stop_reason: int | str | None) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if stop_reason is not None:
        fields["stop_reason"] = stop_reason
    if request.return_token_ids and token_ids:
        fields["token_ids"] = token_ids
    return fields


def _renamed(error: RequestError, request: ChatRequest) -> RequestError:
    """The same refusal under the names that fields have in chat."""
    names = {"prompt": "messages", "max_tokens": request.output_limit[0], "logprobs": "top_logprobs"}
    return RequestError(str(error), names.get(error.param or "", error.param), error.code)
