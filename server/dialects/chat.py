"""Chat completions.

Wire format: ``CreateChatCompletionResponse`` and ``CreateChatCompletionStreamResponse`` of OpenAI's published API.
Thoughts have no place there: they are ``reasoning`` as in vLLM's and OpenRouter's, and ``reasoning_content`` as in
DeepSeek's;
``stop_reason``, ``token_ids``, ``prompt_token_ids`` and ``prompt_logprobs`` are vLLM's, and only there when they say
something.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from server.dialects.dialect import Answer, Context, encode_json
from server.dialects.openai import Delta, OpenAIDialect
from server.schemas.openai.chat import ChatRequest
from tandem.events import Content, ReasoningDelta, TextDelta, ToolCallArguments, ToolCallBegun


class ChatDialect(OpenAIDialect):
    """In a stream each choice has a role first, then its content, then one chunk with the reason of its end."""

    def __init__(self, context: Context, request: ChatRequest) -> None:
        super().__init__(context, b'"delta":{"content":', b"}", is_open=b',"finish_reason":null')
        self._shows_reasoning = request.include_reasoning is not False
        self._names_function = request.named_function is not None
        self._calling: set[int] = set()  # choices that have called a function
        self._has_logprobs = context.job.sampling.logprobs is not None
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
        logprobs = None
        if delta.logprobs:
            reason, stop_reason = (None, None) if end is None else (end.finish_reason, end.stop_reason)
            logprobs = self.logprobs_of(choice).chat(list(delta.logprobs), reason, stop_reason)
        for event in delta.content:
            if not (extra or usage or logprobs) and isinstance(event, TextDelta):
                yield self._write.plain(choice, event.text)
            elif (payload := self._payload(event)) is not None:
                yield self._write.chunk(choice, payload, logprobs, extra=extra, usage=usage)
                extra = logprobs = None
        if extra or logprobs:
            yield self._write.text(choice, "", logprobs, extra=extra, usage=usage)
        if end is not None:
            why = None if end.stop_reason is None else {"stop_reason": end.stop_reason}
            ended = self._finish_reason(end.finish_reason, choice in self._calling)
            yield self._write.chunk(choice, b'"delta":{}', None, ended, why, usage)

    def _payload(self, event: Content) -> bytes | None:
        """The delta of one event; None if it is not shown."""
        match event:
            case TextDelta(_, text):
                delta: dict[str, Any] = {"content": text}
            case ReasoningDelta(_, text) if self._shows_reasoning:
                delta = {"reasoning": text, "reasoning_content": text}
            case ToolCallBegun(choice, call, call_id, name):
                self._calling.add(choice)
                function = {"name": name, "arguments": ""}
                delta = {"tool_calls": [{"index": call, "id": call_id, "type": "function", "function": function}]}
            case ToolCallArguments(_, call, text):
                delta = {"tool_calls": [{"index": call, "function": {"arguments": text}}]}
            case _:
                return None
        return b'"delta":' + encode_json(delta)

    def _finish_reason(self, reason: str | None, has_called: bool) -> str | None:
        """An answer that ends with calls, unless the request named the function, in which case it had no choice."""
        return "tool_calls" if reason == "stop" and has_called and not self._names_function else reason

    def choice(self, answer: Answer, index: int) -> dict[str, Any]:
        """An entry of ``choices``."""
        choice = answer.choices[index]
        logprobs = None
        if self._has_logprobs:
            entries = [entry for columns in choice.logprobs for entry in columns]
            logprobs = self.logprobs_of(index).chat(entries, choice.finish_reason, choice.stop_reason)
        text = self._prompt.text + choice.text
        message: dict[str, Any] = {
            "role": self.context.response_role,
            "content": text if text or not choice.calls else None,
            "refusal": None,
        }
        if choice.thoughts and self._shows_reasoning:
            message["reasoning"] = message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message["tool_calls"] = [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": "".join(call.arguments)},
                }
                for call in choice.calls
            ]
        fields: dict[str, Any] = {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self._finish_reason(choice.finish_reason, bool(choice.calls)),
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
