"""What a dialect is, and what the dialects have in common."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from server.errors import ApiError
from server.intake.job import Job
from server.state import LoadedModel
from tandem.engine import FinishReason, LogprobColumns
from tandem.events import (
    AnyEvent,
    ChoiceEnded,
    Content,
    PromptScored,
    ReasoningDelta,
    TextDelta,
    TokensSampled,
    ToolCallArguments,
    ToolCallBegun,
)
from tandem.generation.decoding import Choices

encode_json = msgspec.json.Encoder().encode


class WholeWriter(Protocol):
    """Writes the events of one request as one answer."""

    def whole(self, answer: Answer) -> bytes:
        """All of them."""
        ...


class Dialect(WholeWriter, Protocol):
    """Writes them in a stream as they come, too."""

    def begin(self) -> bytes:
        """What comes before any event."""
        ...

    def size(self, events: Sequence[AnyEvent]) -> int:
        """About how many bytes ``events`` will make of these that take long to write."""
        ...

    def events(self, events: Sequence[AnyEvent]) -> bytes:
        """What a stream tells of some events; possibly nothing."""
        ...

    def end(self) -> bytes:
        """What comes after all events."""
        ...

    def error(self, error: ApiError) -> bytes:
        """What comes instead, where the request fails on the way."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """What a dialect knows of its request besides events.

    Attributes:
        common: fields of every chunk and of the answer, such as ``id`` and ``model``.
        counts: of tokens, so far.
    """

    model: LoadedModel
    job: Job
    common: dict[str, Any]
    counts: Choices
    response_role: str

    @property
    def usage(self) -> dict[str, Any]:
        """OpenAI's ``usage`` so far."""
        return self.usage_after(self.counts.num_output_tokens)

    def usage_after(self, num_output_tokens: int) -> dict[str, Any]:
        """The same, when so many tokens had been generated."""
        counts = self.counts
        return {
            "prompt_tokens": counts.num_prompt_tokens,
            "completion_tokens": num_output_tokens,
            "total_tokens": counts.num_prompt_tokens + num_output_tokens,
            "prompt_tokens_details": {"cached_tokens": counts.num_cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": counts.num_reasoning_tokens},
        }


@dataclass(slots=True)
class TokenTimes:
    """When the tokens of a request came, in seconds of ``time.monotonic``; 0 before there are any.

    Attributes:
        scheduled: when the engine began to work on it.
    """

    scheduled: float = 0.0
    first: float = 0.0
    last: float = 0.0

    def note(self, events: Iterable[AnyEvent]) -> None:
        """Take further events, which have come just now."""
        for event in events:
            if isinstance(event, TokensSampled):
                self.last = time.monotonic()
                self.first = self.first or self.last
                self.scheduled = self.scheduled or event.scheduled_time


@dataclass(slots=True)
class ToolCall:
    """A call of a finished choice."""

    call_id: str
    name: str
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Choice:
    """One finished choice. ``logprobs`` joined have an entry a token, if they were asked for.

    Attributes:
        content: all of it in the order in which it came.
    """

    index: int
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    content: list[Content] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[LogprobColumns] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        """All thoughts."""
        return "".join(self.thoughts)


class Answer:
    """All choices, put together from events.

    Attributes:
        prompt_logprobs: by prompt, if they were asked for.
        size: about how many bytes it will be.
        times: of the tokens.
    """

    def __init__(self, num_choices: int) -> None:
        self.choices = [Choice(index) for index in range(num_choices)]
        self.prompt_logprobs: dict[int, LogprobColumns] = {}
        self.size = 0
        self.times = TokenTimes()

    def add(self, events: Iterable[AnyEvent]) -> None:
        """Take further events."""
        events = list(events)
        self.times.note(events)
        for event in events:
            self.size += written_size(event)
            if isinstance(event, Content):
                self.choices[event.choice].content.append(event)
            match event:
                case TokensSampled(number, token_ids, logprobs):
                    self.choices[number].token_ids += token_ids
                    if logprobs is not None:
                        self.choices[number].logprobs.append(logprobs)
                case TextDelta(number, text):
                    self.choices[number].texts.append(text)
                case ReasoningDelta(number, text):
                    self.choices[number].thoughts.append(text)
                case ToolCallBegun(number, _, call_id, name):
                    self.choices[number].calls.append(ToolCall(call_id, name))
                case ToolCallArguments(number, call, text):
                    self.choices[number].calls[call].arguments.append(text)
                case ChoiceEnded(number, finish_reason, stop_reason):
                    self.choices[number].finish_reason = finish_reason
                    self.choices[number].stop_reason = stop_reason
                case PromptScored(prompt, logprobs):
                    self.prompt_logprobs[prompt] = logprobs


def arguments_of(text: str) -> dict[str, Any]:
    """The arguments of a call as an object; those of one that was cut off are empty."""
    try:
        value = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def written_size(event: AnyEvent) -> int:
    """About how many bytes an event is on the wire, apart from what every chunk repeats."""
    match event:
        case TextDelta(_, text) | ReasoningDelta(_, text) | ToolCallArguments(_, _, text):
            return len(text)
        case TokensSampled(_, token_ids, logprobs):
            return 8 * len(token_ids) + (0 if logprobs is None else logprobs_size(logprobs))
        case PromptScored(_, logprobs):
            return logprobs_size(logprobs)
    return 0


def logprobs_size(logprobs: LogprobColumns) -> int:
    """The same of log-probabilities."""
    return 64 * len(logprobs) * (logprobs.num_top + 1)
