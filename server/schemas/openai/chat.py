"""Body of ``POST /v1/chat/completions``, and the messages that ``/tokenize`` takes too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from server.schemas.common import INT31, MAX_PARTS, Count, GenerationRequest, Name
from server.schemas.openai.tools import NamedTool, ToolChoice, Tools, callable_tools
from tandem.errors import RequestError
from tandem.text.chat_template import TEXT_PARTS

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
OutputLimit = Annotated[int, Meta(ge=1, le=INT31)]
TemplateText = Annotated[str, Meta(max_length=2**17)]
Variables = Annotated[dict[Name, Any], Meta(max_length=64)]
Documents = Annotated[list[dict[str, Any]], Meta(max_length=1024)]


class FunctionCall(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A call that the model asked for: a name, and a JSON object in a string.

    ``parsed_arguments`` are what OpenAI's clients have made of it.
    """

    name: Name
    arguments: str | dict[str, Any] = "{}"
    parsed_arguments: Any = None
    provider_specific_fields: Any = None


class ToolCall(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One entry of an assistant message's ``tool_calls``."""

    function: FunctionCall
    id: Name | None = None
    type: Literal["function"] = "function"
    index: Count | None = None
    provider_specific_fields: Any = None


class ContentPart(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One part of a message's content; parts other than text are read in order to be refused by their type."""

    type: Annotated[str, Meta(max_length=64, extra_json_schema={"enum": list(TEXT_PARTS)})]
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    cache_control: dict[str, Any] | None = None
    image_url: Any = None
    video_url: Any = None
    audio_url: Any = None
    input_audio: Any = None
    file: Any = None


class Message(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One message of a conversation, of any role.

    ``function_call`` is the older spelling of a tool call, ``reasoning`` another of ``reasoning_content``;
    ``annotations``, what OpenAI's clients have ``parsed`` and LiteLLM's ``provider_specific_fields`` come back with
    earlier answers and are no part of any prompt.
    """

    role: Role
    content: str | Annotated[list[ContentPart], Meta(max_length=MAX_PARTS)] | None = None
    name: Name | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=1024)] | None = None
    tool_call_id: Name | None = None
    function_call: FunctionCall | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    parsed: Any = None
    provider_specific_fields: Any = None


Messages = Annotated[list[Message], Meta(min_length=1, max_length=2**16)]


class ChatRequest(GenerationRequest, kw_only=True, frozen=True):
    """A conversation to answer, with functions that the model may call."""

    messages: Messages
    max_tokens: OutputLimit | None = None
    max_completion_tokens: OutputLimit | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    reasoning_effort: Annotated[str, Meta(max_length=64)] | None = None
    thinking_token_budget: Count | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: Documents | None = None
    chat_template: TemplateText | None = None
    chat_template_kwargs: Variables | None = None

    def check(self) -> None:
        """Raise ``RequestError`` where fields contradict each other."""
        check_messages(self.messages)
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", "top_logprobs")
        callable_tools(self.tools, self.tool_choice)
        super().check()

    @property
    def named_function(self) -> str | None:
        """The function that must be called."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None

    @property
    def output_limit(self) -> tuple[str, int | None]:
        """The field that limits the answer, and its value; ``max_completion_tokens`` wins."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens


def check_messages(messages: Sequence[Message]) -> None:
    """Raise ``RequestError`` for a message without the content that its role needs."""
    for i, message in enumerate(messages):
        calls = message.tool_calls or message.function_call
        may_be_empty = message.role == "assistant" and (calls or message.refusal is not None)
        if message.content == [] and not may_be_empty:
            raise RequestError(f"messages[{i}].content must not be empty", f"messages[{i}].content")
        if message.role == "tool" and message.tool_call_id is None:
            param = f"messages[{i}].tool_call_id"
            raise RequestError(f"{param} is missing: whose result is it?", param, "missing_required_parameter")
        if message.content is None and not may_be_empty:
            raise RequestError(
                f"messages[{i}].content is missing", f"messages[{i}].content", "missing_required_parameter"
            )
        if calls and message.role != "assistant":
            param = f"messages[{i}].{'tool_calls' if message.tool_calls else 'function_call'}"
            raise RequestError(f"{param} belongs to messages of the assistant", param)
        if message.tool_calls and message.function_call:
            param = f"messages[{i}].function_call"
            raise RequestError(f"{param} is the older spelling of tool_calls: give one of them", param)
