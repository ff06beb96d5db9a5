"""Bodies of ``POST /v1/messages`` and ``POST /v1/messages/count_tokens``.

Wire format: Anthropic's published API (``MessageCreateParams``, ``MessageCountTokensParams``). ``seed`` is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from server.schemas.common import INT31, MAX_PARTS, Count, Name, Seed, ShortText
from server.schemas.unsupported import Refusals
from tandem.errors import RequestError

MIN_BUDGET = 1024  # of thoughts, in the published API
_ELSEWHERE = "it belongs to the services around Anthropic's models"
REFUSALS: Refusals = {
    "container": (_ELSEWHERE, ()),
    "mcp_servers": (_ELSEWHERE, ([],)),
    "context_management": ("conversations are not edited here", ({}, {"edits": []})),
    "diagnostics": (_ELSEWHERE, ()),
    "fallbacks": (_ELSEWHERE, ([],)),
    "inference_geo": (_ELSEWHERE, ()),
    "output_format": ("it is the older spelling of output_config.format", ()),
    "speed": ("there is one speed", ("standard",)),
    "task_budget": (_ELSEWHERE, ()),
    "thread": ("conversations are not kept between requests; send all messages", ()),
    "user_profile_id": (_ELSEWHERE, ()),
}

StopSequence = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"\S")]
Text = Annotated[str, Meta(min_length=1)]


class CacheControl(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What is computed is kept for later prompts anyway; given, ``usage`` tells what was found."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Text. ``citations`` come back with earlier answers and are no part of any prompt."""

    text: Text
    cache_control: CacheControl | None = None
    citations: list[Any] | None = None


class SystemText(TextBlock, kw_only=True, frozen=True, tag=False):
    """Text, where there can be nothing else."""

    type: Literal["text"]


class ThinkingBlock(
    msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="thinking", forbid_unknown_fields=True
):
    """What the model has thought. Nothing here is signed, so no signature is checked."""

    thinking: str
    signature: str = ""


class RedactedThinkingBlock(
    msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="redacted_thinking", forbid_unknown_fields=True
):
    """Thoughts that only Anthropic can read; the model is not shown them."""

    data: str


class Caller(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Who has called a tool: the model."""

    type: Literal["direct"]


class ToolUseBlock(
    msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="tool_use", forbid_unknown_fields=True
):
    """A call that the model asked for."""

    id: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,256}$")]
    name: Name
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: Caller | None = None
    toolset_name: None = None


class ImageBlock(msgspec.Struct, frozen=True, tag_field="type", tag="image"):
    """Read in order to be refused."""


class DocumentBlock(msgspec.Struct, frozen=True, tag_field="type", tag="document"):
    """Read in order to be refused."""


class SearchResultBlock(msgspec.Struct, frozen=True, tag_field="type", tag="search_result"):
    """Read in order to be refused."""


Refused = ImageBlock | DocumentBlock | SearchResultBlock


class ToolResultBlock(
    msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="tool_result", forbid_unknown_fields=True
):
    """What a call has brought."""

    tool_use_id: Name
    content: str | Annotated[list[TextBlock | Refused], Meta(max_length=MAX_PARTS)] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    toolset_name: None = None


Block = (
    TextBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
)


class Turn(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An entry of ``messages``."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Meta(max_length=MAX_PARTS)]


class ToolParam(msgspec.Struct, kw_only=True, frozen=True):
    """A function that the model may call.

    Tools that run on Anthropic's servers, or whose schema only its models know, have another ``type``.
    """

    name: Annotated[str, Meta(max_length=256)]
    type: Annotated[str, Meta(max_length=64)] | None = None
    description: Annotated[str, Meta(max_length=2**16)] | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: Annotated[list[str], Meta(max_length=16)] | None = None
    input_examples: list[Any] | None = None


class AutoChoice(msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="auto", forbid_unknown_fields=True):
    """The model decides."""

    disable_parallel_tool_use: bool | None = None


class AnyChoice(msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="any", forbid_unknown_fields=True):
    """The model must call some tool."""

    disable_parallel_tool_use: bool | None = None


class OneChoice(msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="tool", forbid_unknown_fields=True):
    """The model must call this tool."""

    name: Name
    disable_parallel_tool_use: bool | None = None


class NoChoice(msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="none", forbid_unknown_fields=True):
    """The model must not call a tool."""

    disable_parallel_tool_use: None = None


class EnabledThinking(
    msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="enabled", forbid_unknown_fields=True
):
    """The model thinks, within a budget."""

    budget_tokens: Annotated[int, Meta(ge=MIN_BUDGET, le=INT31)]
    display: Literal["summarized", "omitted"] | None = None


class AdaptiveThinking(
    msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="adaptive", forbid_unknown_fields=True
):
    """The model thinks as long as it likes."""

    display: Literal["summarized", "omitted"] | None = None


class DisabledThinking(msgspec.Struct, frozen=True, tag_field="type", tag="disabled", forbid_unknown_fields=True):
    """The model does not think."""


class JsonFormat(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The answer is JSON that follows a schema."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """``effort`` is handed to the chat template as ``reasoning_effort``."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class UserMetadata(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Whom the request is for."""

    user_id: ShortText | None = None


class Conversation(msgspec.Struct, kw_only=True, frozen=True, dict=True):
    """What both routes read: all that is in a prompt."""

    model: Name
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=2**16)]
    system: str | Annotated[list[SystemText], Meta(max_length=MAX_PARTS)] | None = None
    tools: Annotated[list[ToolParam], Meta(max_length=1024)] | None = None
    tool_choice: AutoChoice | AnyChoice | OneChoice | NoChoice | None = None
    thinking: EnabledThinking | AdaptiveThinking | DisabledThinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None

    def check(self) -> None:
        """Raise ``RequestError`` where something cannot be honoured, or fields contradict each other."""
        for i, turn in enumerate(self.messages):
            _check_turn(turn, f"messages[{i}]")
        names: set[str] = set()
        for i, tool in enumerate(self.tools or ()):
            name = _checked_name(tool, f"tools[{i}]")
            if name in names:
                raise RequestError(f"tools[{i}].name: two tools have the name {name!r}", f"tools[{i}].name")
            names.add(name)
        if self.tool_choice is not None and not names and not isinstance(self.tool_choice, NoChoice):
            raise RequestError("tool_choice needs tools", "tool_choice")
        if isinstance(self.tool_choice, OneChoice) and self.tool_choice.name not in names:
            message = f"tool_choice.name: {self.tool_choice.name!r} is not among tools"
            raise RequestError(message, "tool_choice.name")
        self.marks_cache  # noqa: B018 - looked for here, in a thread

    @cached_property
    def marks_cache(self) -> bool:
        """Whether any part is marked as a cache breakpoint."""
        marked = (self.cache_control, *(part.cache_control for part in _cacheable(self)))
        return any(mark is not None for mark in marked)


class MessagesRequest(Conversation, kw_only=True, frozen=True):
    """A conversation to answer."""

    max_tokens: Annotated[int, Meta(ge=1, le=INT31)]
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1, description="0 is greedy")] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Count | None = None
    stop_sequences: Annotated[list[StopSequence], Meta(max_length=64)] | None = None
    metadata: UserMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    seed: Seed | None = None

    def check(self) -> None:
        """Raise ``RequestError`` where something cannot be honoured, or fields contradict each other."""
        super().check()
        if isinstance(self.thinking, EnabledThinking) and self.thinking.budget_tokens >= self.max_tokens:
            message = "thinking.budget_tokens must be less than max_tokens"
            raise RequestError(message, "thinking.budget_tokens")

    @property
    def request_id(self) -> str | None:
        """Clients do not choose ids."""
        return None


class CountRequest(Conversation, kw_only=True, frozen=True):
    """A conversation whose tokens are counted."""


def _check_turn(turn: Turn, param: str) -> None:
    if not turn.content and turn.role != "assistant":
        raise RequestError(f"{param}.content must not be empty", f"{param}.content")
    if isinstance(turn.content, str):
        return
    for i, block in enumerate(turn.content):
        where = f"{param}.content[{i}]"
        if isinstance(block, Refused):
            raise _unreadable(block, where)
        if isinstance(block, (ThinkingBlock, RedactedThinkingBlock, ToolUseBlock)) and turn.role != "assistant":
            raise RequestError(f"{where}: such a block belongs to messages of the assistant", where)
        if isinstance(block, ToolResultBlock):
            if turn.role != "user":
                raise RequestError(f"{where}: a tool_result belongs to messages of the user", where)
            for j, part in enumerate(block.content or () if not isinstance(block.content, str) else ()):
                if isinstance(part, Refused):
                    raise _unreadable(part, f"{where}.content[{j}]")


def _unreadable(block: Refused, where: str) -> RequestError:
    kind = type(block).__struct_config__.tag
    return RequestError(f"{where}: this model reads text, no {kind}", where, "unsupported_parameter")


def _checked_name(tool: ToolParam, param: str) -> str:
    if tool.type not in (None, "custom"):
        message = f"{param}.type: {tool.type!r} is a tool of Anthropic's, and there are none here"
        raise RequestError(message, f"{param}.type", "unsupported_parameter")
    if not tool.name or not all(char.isascii() and (char.isalnum() or char in "_-") for char in tool.name):
        raise RequestError(f"{param}.name must be letters, digits, _ and -, got {tool.name!r}", f"{param}.name")
    if tool.input_schema is None:
        raise RequestError(f"{param}.input_schema is required", f"{param}.input_schema", "missing_required_parameter")
    if tool.input_schema.get("type") != "object":
        raise RequestError(f"{param}.input_schema.type must be 'object'", f"{param}.input_schema.type")
    others = {
        "defer_loading": tool.defer_loading,
        "allowed_callers": tool.allowed_callers not in (None, ["direct"]),
        "input_examples": tool.input_examples,
        "eager_input_streaming": tool.eager_input_streaming is False,
    }
    for name, is_set in others.items():
        if is_set:
            raise RequestError(f"{param}.{name} is not supported", f"{param}.{name}", "unsupported_parameter")
    return tool.name


def _cacheable(request: Conversation) -> Iterator[TextBlock | ToolUseBlock | ToolResultBlock | ToolParam]:
    yield from request.tools or ()
    yield from request.system if isinstance(request.system, list) else ()
    for turn in request.messages:
        for block in turn.content if isinstance(turn.content, list) else ():
            if isinstance(block, (TextBlock, ToolUseBlock, ToolResultBlock)):
                yield block
