"""Chat completions.

Wire format: ``CreateChatCompletionResponse`` and ``CreateChatCompletionStreamResponse`` of OpenAI's published API;
``stop_reason``, ``token_ids``, ``prompt_token_ids`` and ``prompt_logprobs`` are vLLM's, and only there when they say
something.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from server.dialects.dialect import Answer, Context, encode_json
from server.dialects.openai import Delta, OpenAIDialect
from server.schemas.chat import ChatRequest


class ChatDialect(OpenAIDialect):
    """In a stream each choice has a role first, then text, then one chunk with the reason of its end."""

    def __init__(self, context: Context, request: ChatRequest) -> None:
        super().__init__(context, b'"delta":{"content":', b"}")
        self._has_logprobs = bool(request.logprobs)
        self._has_prompt_logprobs = request.prompt_logprobs is not None
        self._prompt = context.job.prompts[0]
        self._role = b'"delta":' + encode_json({"role": context.response_role, "content": self._prompt.text})
        self._opening = {"prompt_token_ids": self._prompt.token_ids} if self._returns_ids else None

    def chunks(self, delta: Delta, usage: dict[str, Any] | None) -> Iterator[bytes]:
        """What one delta adds."""
        choice, end = delta.choice, delta.end
        if choice not in self._started:
            self._started.add(choice)
            yield self._write.chunk(choice, self._role, usage=usage, top=self._opening)
            self._opening = None
        extra = {"token_ids": delta.token_ids} if self._returns_ids and delta.tokens else None
        if extra or usage or delta.logprobs:
            logprobs = None
            if delta.logprobs:
                reason, stop_reason = (None, None) if end is None else (end.finish_reason, end.stop_reason)
                logprobs = self.logprobs_of(choice).chat(list(delta.logprobs), reason, stop_reason)
            if delta.text or logprobs or extra:
                yield self._write.text(choice, delta.text, logprobs, extra=extra, usage=usage)
        elif delta.text:
            yield self._write.plain(choice, delta.text)
        if end is not None:
            why = None if end.stop_reason is None else {"stop_reason": end.stop_reason}
            yield self._write.chunk(choice, b'"delta":{}', None, end.finish_reason, why, usage)

    def choice(self, answer: Answer, index: int) -> dict[str, Any]:
        """An entry of ``choices``."""
        choice = answer.choices[index]
        logprobs = None
        if self._has_logprobs:
            entries = [entry for columns in choice.logprobs for entry in columns]
            logprobs = self.logprobs_of(index).chat(entries, choice.finish_reason, choice.stop_reason)
        fields: dict[str, Any] = {
            "index": index,
            "message": {
                "role": self.context.response_role,
                "content": self._prompt.text + choice.text,
                "refusal": None,
            },
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }
        if choice.stop_reason is not None:
            fields["stop_reason"] = choice.stop_reason
        if self._returns_ids and choice.token_ids:
            fields["token_ids"] = choice.token_ids
        return fields

    def whole_fields(self, answer: Answer) -> dict[str, Any]:
        """What the answer says about the prompt."""
        fields: dict[str, Any] = {}
        if self._has_prompt_logprobs:
            fields["prompt_logprobs"] = self.reported(0, answer.prompt_logprobs)
        if self._returns_ids:
            fields["prompt_token_ids"] = self._prompt.token_ids
        return fields
