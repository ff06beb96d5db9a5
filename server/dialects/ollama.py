"""Ollama's chat and generate.

Wire format: ``ChatResponse`` and ``GenerateResponse`` of Ollama's published API: a JSON object a line, the last with
``done`` and what the request took, in nanoseconds. Calls are told of whole.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from server.dialects.dialect import Answer, Context, TokenTimes, arguments_of, encode_json
from server.errors import ApiError
from server.http.failures import ollama_error
from server.http.streaming import StreamForm
from server.schemas.vendors.ollama import OllamaRequest
from tandem.engine import FinishReason
from tandem.events import (
    AnyEvent,
    ChoiceEnded,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallBegun,
    ToolCallEnded,
)

LINES = StreamForm("application/x-ndjson", b" ")  # white space before an object is part of no line's value


class OllamaDialect:
    """One answer; what a part of it looks like, the two say for themselves."""

    def __init__(self, context: Context, request: OllamaRequest) -> None:
        self._context = context
        self._times = TokenTimes()
        self._finish_reason: FinishReason | None = None
        self._names: dict[int, str] = {}  # of calls that are not complete
        self._arguments: list[str] = []

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def size(self, events: Sequence[AnyEvent]) -> int:
        """Everything is quick to write."""
        return 0

    def events(self, events: Sequence[AnyEvent]) -> bytes:
        """A line for each text and each call."""
        self._times.note(events)
        return b"".join([self._line(part) for event in events if (part := self._part(event)) is not None])

    def end(self) -> bytes:
        """A call that was cut off, and the last line."""
        open_call = b"".join([self._line(self._call(call)) for call in list(self._names)])
        return open_call + encode_json(self._last(self.part(""), self._times, self._finish_reason)) + b"\n"

    def error(self, error: ApiError) -> bytes:
        """One line; the stream closes after it."""
        return encode_json(ollama_error(error)) + b"\n"

    def whole(self, answer: Answer) -> bytes:
        """One object."""
        (choice,) = answer.choices
        calls = [_call(index, call.name, "".join(call.arguments)) for index, call in enumerate(choice.calls)]
        part = self.part(choice.text, choice.reasoning, calls)
        return encode_json(self._last(part, answer.times, choice.finish_reason))

    def part(self, text: str, thoughts: str = "", calls: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """The fields that hold a part of the answer, or all of it."""
        raise NotImplementedError

    def _part(self, event: AnyEvent) -> dict[str, Any] | None:
        match event:
            case TextDelta(_, text):
                return self.part(text)
            case ReasoningDelta(_, text):
                return self.part("", text)
            case ToolCallBegun(_, call, _, name):
                self._names[call], self._arguments = name, []
            case ToolCallArguments(_, _, text):
                self._arguments.append(text)
            case ToolCallEnded(_, call):
                return self._call(call)
            case ChoiceEnded():
                self._finish_reason = event.finish_reason
        return None

    def _call(self, call: int) -> dict[str, Any]:
        return self.part("", "", [_call(call, self._names.pop(call), "".join(self._arguments))])

    def _line(self, part: dict[str, Any]) -> bytes:
        return encode_json({**self._head(), **part, "done": False}) + b"\n"

    def _head(self) -> dict[str, Any]:
        return {"model": self._context.common["model"], "created_at": timestamp(time.time())}

    def _last(self, part: dict[str, Any], times: TokenTimes, reason: FinishReason | None) -> dict[str, Any]:
        arrived, counts = self._context.job.requests[0].arrival_time, self._context.counts
        scheduled = times.scheduled or arrived
        return {
            **self._head(),
            **part,
            "done": True,
            "done_reason": reason,
            "total_duration": _nanoseconds(time.monotonic() - arrived),
            "load_duration": 0,
            "prompt_eval_count": counts.num_prompt_tokens,
            "prompt_eval_duration": _nanoseconds(times.first - scheduled),
            "eval_count": counts.num_output_tokens,
            "eval_duration": _nanoseconds(times.last - times.first),
        }


class OllamaChatDialect(OllamaDialect):
    """Parts are messages."""

    def part(self, text: str, thoughts: str = "", calls: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """The fields that hold a part of the answer, or all of it."""
        message: dict[str, Any] = {"role": self._context.response_role, "content": text}
        if thoughts:
            message["thinking"] = thoughts
        if calls:
            message["tool_calls"] = list(calls)
        return {"message": message}


class OllamaGenerateDialect(OllamaDialect):
    """Parts are texts. No tools are offered, so there are no calls."""

    def part(self, text: str, thoughts: str = "", calls: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """The fields that hold a part of the answer, or all of it."""
        return {"response": text, "thinking": thoughts} if thoughts else {"response": text}


def timestamp(seconds: float) -> str:
    """A Unix time as Ollama writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _call(index: int, name: str, arguments: str) -> dict[str, Any]:
    return {"function": {"index": index, "name": name, "arguments": arguments_of(arguments)}}


def _nanoseconds(seconds: float) -> int:
    return max(1, round(seconds * 1e9))  # clients divide by it
