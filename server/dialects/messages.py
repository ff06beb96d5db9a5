"""Anthropic's Messages API.

Wire format: ``Message`` and ``RawMessageStreamEvent`` of Anthropic's published API. An answer is a list of blocks in
the order in which they came, and its stream tells of one block after the other; a whole answer is what its stream
adds up to. White space that would be a block of its own is left out: the API refuses such blocks when they come back.

``signature`` of thoughts is empty: nothing here is signed, and none is asked for when thoughts come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from server.dialects.dialect import Answer, Context, arguments_of, encode_json
from server.errors import ApiError
from server.http.failures import anthropic_error
from server.http.streaming import StreamForm
from server.schemas.vendors.messages import (
    DisabledThinking,
    MessagesRequest,
    NoChoice,
)
from tandem.events import (
    AnyEvent,
    ChoiceEnded,
    Content,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallBegun,
    ToolCallEnded,
)

Wire = dict[str, Any]
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
PINGED = StreamForm("text/event-stream", PING)
_DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}


class Blocks:
    """Content as events about blocks, which are numbered as they begin.

    Args:
        single: calls after the first are left out.
        omits_thoughts: there are blocks of thoughts, but the thoughts are not in them.
    """

    def __init__(self, single: bool, omits_thoughts: bool) -> None:
        self.num_calls = 0
        self._single = single
        self._omits_thoughts = omits_thoughts
        self._kind: str | None = None  # of the block that is open
        self._index = -1
        self._held: list[str] = []  # white space at the beginning of a block that may turn out to be all of it
        self._held_kind = ""

    def push(self, event: Content) -> Iterator[Wire]:
        """What one event adds."""
        match event:
            case TextDelta(_, text):
                yield from self._text("text", text)
            case ReasoningDelta(_, text):
                yield from self._text("thinking", text)
            case ToolCallBegun(_, call, call_id, name) if not (call and self._single):
                self.num_calls += 1
                tool_id = "toolu_" + call_id.removeprefix("call_")
                yield from self._begin("tool_use", {"id": tool_id, "name": name, "input": {}})
            case ToolCallArguments(_, call, text) if not (call and self._single):
                yield self._delta({"type": "input_json_delta", "partial_json": text})
            case ToolCallEnded(_, call) if not (call and self._single):
                yield from self.end()

    def end(self) -> Iterator[Wire]:
        """No more comes of the open block."""
        self._held = []
        if self._kind == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        if self._kind is not None:
            self._kind = None
            yield {"type": "content_block_stop", "index": self._index}

    def _text(self, kind: str, text: str) -> Iterator[Wire]:
        if self._kind != kind:
            if self._kind is not None or self._held_kind != kind:
                yield from self.end()
            self._held_kind = kind
            self._held.append(text)
            if text.isspace():
                return
            text = "".join(self._held)
            empty = {"thinking": "", "signature": ""} if kind == "thinking" else {"text": ""}
            yield from self._begin(kind, empty)
        if kind == "text" or not self._omits_thoughts:
            delta, field = _DELTAS[kind]
            yield self._delta({"type": delta, field: text})

    def _begin(self, kind: str, fields: Wire) -> Iterator[Wire]:
        yield from self.end()
        self._kind = kind
        self._index += 1
        yield {"type": "content_block_start", "index": self._index, "content_block": {"type": kind, **fields}}

    def _delta(self, delta: Wire) -> Wire:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


class MessagesDialect:
    """One answer; the request's only choice."""

    def __init__(self, context: Context, request: MessagesRequest) -> None:
        self._context = context
        self._marks_cache = request.marks_cache
        choice, thinking = request.tool_choice, request.thinking
        single = not isinstance(choice, (NoChoice, type(None))) and bool(choice.disable_parallel_tool_use)
        omits = not isinstance(thinking, (DisabledThinking, type(None))) and thinking.display == "omitted"
        self._blocks = Blocks(single, omits)
        self._end: ChoiceEnded | None = None

    def begin(self) -> bytes:
        """The message without content."""
        message = self._message([], None, None, self._usage(0))
        return _event({"type": "message_start", "message": message}) + PING

    def size(self, events: Sequence[AnyEvent]) -> int:
        """Everything is quick to write."""
        return 0

    def events(self, events: Sequence[AnyEvent]) -> bytes:
        """What they add to blocks; the end is told of when all have been read."""
        written: list[bytes] = []
        for event in events:
            if isinstance(event, ChoiceEnded):
                self._end = event
            elif isinstance(event, Content):
                written += map(_event, self._blocks.push(event))
        return b"".join(written)

    def end(self) -> bytes:
        """The end of the last block, and of the message."""
        assert self._end is not None
        reason, sequence = self._stop(self._end.finish_reason, self._end.stop_reason)
        last = [
            *self._blocks.end(),
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None},
                "usage": self._usage(self._context.counts.num_output_tokens),
            },
            {"type": "message_stop"},
        ]
        return b"".join(map(_event, last))

    def error(self, error: ApiError) -> bytes:
        """One event; the stream closes after it."""
        return _event(anthropic_error(error))

    def whole(self, answer: Answer) -> bytes:
        """One JSON object."""
        (choice,) = answer.choices
        told = (wire for event in choice.content for wire in self._blocks.push(event))
        content = added_up((*told, *self._blocks.end()))
        reason, sequence = self._stop(choice.finish_reason, choice.stop_reason)
        return encode_json(
            self._message(content, reason, sequence, self._usage(self._context.counts.num_output_tokens))
        )

    def _message(self, content: list[Wire], reason: str | None, sequence: str | None, usage: Wire) -> Wire:
        common = self._context.common
        return {
            "id": common["id"],
            "type": "message",
            "role": "assistant",
            "model": common["model"],
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "stop_details": None,
            "usage": usage,
        }

    def _usage(self, num_output_tokens: int) -> Wire:
        """What was found in the cache is told apart only where the request marks what to cache."""
        counts = self._context.counts
        usage: Wire = {"input_tokens": counts.num_prompt_tokens, "output_tokens": num_output_tokens}
        if self._marks_cache:
            usage["input_tokens"] -= counts.num_cached_tokens
            usage |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": counts.num_cached_tokens}
        if num_output_tokens:
            usage["output_tokens_details"] = {"thinking_tokens": counts.num_reasoning_tokens}
        return usage

    def _stop(self, reason: str | None, stop: int | str | None) -> tuple[str, str | None]:
        """``stop_reason`` and ``stop_sequence``."""
        if reason == "length":
            return "max_tokens", None
        if isinstance(stop, str):
            return "stop_sequence", stop
        return "tool_use" if self._blocks.num_calls else "end_turn", None


def added_up(events: Iterable[Wire]) -> list[Wire]:
    """The content that a stream tells of. The input of a call that was cut off is an empty object."""
    content: list[Wire] = []
    parts: list[str] = []
    for event in events:
        match event["type"]:
            case "content_block_start":
                content.append(event["content_block"])
                parts = []
            case "content_block_delta":
                delta = event["delta"]
                parts += (delta[field] for field in ("text", "thinking", "partial_json") if field in delta)
            case "content_block_stop":
                block = content[-1]
                if block["type"] == "tool_use":
                    block["input"] = arguments_of("".join(parts))
                else:
                    block[block["type"]] = "".join(parts)
    return content


def _event(data: Wire) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), encode_json(data))
