"""``POST /v1/completions``.

Wire format: ``CreateCompletionResponse`` of OpenAI's published API, whole and streamed; in a stream ``finish_reason``
is null until a choice ends, as in OpenAI's own. ``stop_reason``, ``token_ids``, ``prompt_token_ids`` and
``prompt_logprobs`` are vLLM's, and only there when they say something.
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
from server.logprobs import LogprobWriter, join, prompt_logprobs
from server.logs import log_request
from server.openapi import describe
from server.prompts import completion_prompts
from server.sampling import completion_sampling
from server.schemas.completions import CompletionRequest
from server.schemas.parse import BodyParser
from server.state import LoadedModel, ServerState
from server.streaming import ChunkWriter, EventStream, encode_json, stream, unless_gone
from tandem.generation.outputs import ChoiceDelta

PARSER = BodyParser(CompletionRequest)
router = APIRouter(tags=["generate"])


@router.post("/v1/completions", **describe(CompletionRequest, "Go on with a text, whole or as a stream of events."))
async def create_completion(request: Request) -> Response:
    """Body, model, prompts, engine, answer: in this order, each able to refuse."""
    state = state_of(request)
    model = require_capacity(state)
    body, headers = await read(request, PARSER)
    name = served_model(state, body.model)
    return await unless_gone(request.receive, _answer(state, model, body, name, headers))


async def _answer(
    state: ServerState, model: LoadedModel, request: CompletionRequest, name: str, headers: dict[str, str]
) -> Response:
    sampling = completion_sampling(request, model)
    prompts = await completion_prompts(state, model, request)
    answer_id = f"cmpl-{request.request_id or uuid.uuid4().hex}"
    common = {
        "id": answer_id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": name,
        "system_fingerprint": model.fingerprint,
    }
    answer = Answer(state.metrics, model, prompts, sampling, request)
    log_request(state, answer_id, prompts, sampling)
    if request.stream:
        return await EventStream.open(stream(answer, _Chunks(model, request, answer, common)), headers)
    choices = await collect(answer)
    if sampling.logprobs is None and sampling.prompt_logprobs is None:
        body = _whole(model, request, answer, choices)
    else:  # of a long prompt they are many
        body = await state.in_thread(_whole, model, request, answer, choices)
    return Response(encode_json({**common, **body}), headers=headers, media_type="application/json")


def _whole(model: LoadedModel, request: CompletionRequest, answer: Answer, choices: list[Choice]) -> dict[str, Any]:
    return {"choices": [_choice(model, request, answer, choice) for choice in choices], "usage": answer.usage}


def _choice(model: LoadedModel, request: CompletionRequest, answer: Answer, choice: Choice) -> dict[str, Any]:
    number = answer.prompt_of(choice.index)
    prompt = answer.prompts[number]
    logprobs = None
    if request.logprobs is not None:
        writer = _logprob_writer(model, request, answer)
        parts = [_echoed_logprobs(writer, request, answer, number)] if request.echo else []
        parts.append(writer.completion(choice.logprobs, choice.finish_reason, choice.stop_reason))
        logprobs = join(parts)
    fields = {
        "index": choice.index,
        "text": prompt.text + choice.text if request.echo else choice.text,
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
    }
    if choice.stop_reason is not None:
        fields["stop_reason"] = choice.stop_reason
    if request.prompt_logprobs is not None:
        as_ids = bool(request.return_tokens_as_token_ids)
        fields["prompt_logprobs"] = prompt_logprobs(model.vocabulary, answer.prompt_logprobs[number], as_ids)
    if request.return_token_ids:
        fields |= {"prompt_token_ids": prompt.token_ids, "token_ids": choice.token_ids}
    return fields


class _Chunks:
    """The stream's chunks; with ``echo`` each choice begins with one that holds its prompt."""

    def __init__(
        self, model: LoadedModel, request: CompletionRequest, answer: Answer, common: dict[str, Any]
    ) -> None:
        self._request = request
        self._answer = answer
        self._write = ChunkWriter(common, request.wants_usage)
        num_choices = len(answer.prompts) * answer.sampling.n
        self._logprobs = [_logprob_writer(model, request, answer) for _ in range(num_choices)]
        self._started: set[int] = set()

    def of(self, index: int, delta: ChoiceDelta) -> Iterator[bytes]:
        """What one delta adds."""
        usage = self._answer.usage if self._request.wants_continuous_usage else None
        if index not in self._started:
            self._started.add(index)
            yield from self._opening(index, usage)
        logprobs = None
        if delta.logprobs:
            logprobs = self._logprobs[index].completion(delta.logprobs, delta.finish_reason, delta.stop_reason)
        extra: dict[str, Any] = {}
        if self._request.return_token_ids and delta.token_ids:
            extra["token_ids"] = delta.token_ids
        if delta.text or logprobs or extra or delta.finish_reason:
            if delta.stop_reason is not None:
                extra["stop_reason"] = delta.stop_reason
            text = b'"text":' + encode_json(delta.text)
            yield self._write.chunk(index, text, logprobs, delta.finish_reason, extra, usage)

    def end(self) -> bytes:
        """The usage, where it was asked for."""
        return self._write.usage(self._answer.usage) if self._request.wants_usage else b""

    def _opening(self, index: int, usage: dict[str, Any] | None) -> Iterator[bytes]:
        """What is to be told of a choice's prompt, if anything."""
        request, number = self._request, self._answer.prompt_of(index)
        prompt = self._answer.prompts[number]
        logprobs = None
        if request.echo and request.logprobs is not None:
            logprobs = _echoed_logprobs(self._logprobs[index], request, self._answer, number)
        extra = {"prompt_token_ids": prompt.token_ids} if request.return_token_ids else {}
        if request.echo or extra:
            text = b'"text":' + encode_json(prompt.text if request.echo else "")
            yield self._write.chunk(index, text, logprobs, extra=extra, usage=usage)


def _logprob_writer(model: LoadedModel, request: CompletionRequest, answer: Answer) -> LogprobWriter:
    return LogprobWriter(model.vocabulary, answer.sampling, bool(request.return_tokens_as_token_ids))


def _echoed_logprobs(
    writer: LogprobWriter, request: CompletionRequest, answer: Answer, number: int
) -> dict[str, Any]:
    entries = answer.prompt_logprobs[number]
    return writer.echo(answer.prompts[number].token_ids, entries, request.logprobs or 0)
