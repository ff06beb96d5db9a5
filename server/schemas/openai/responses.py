"""Bodies of ``POST /v1/responses`` and ``POST /v1/responses/input_tokens``.

Wire format: ``CreateResponse`` of OpenAI's published API, and further sampling parameters of vLLM under vLLM's names.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from server.schemas.common import (
    Count,
    LogitBias,
    Metadata,
    Name,
    Penalty,
    Priority,
    Probability,
    RepetitionPenalty,
    Salt,
    Seed,
    ShortText,
    StopString,
    StopStrings,
    Temperature,
    TokenId,
    TopK,
)
from server.schemas.openai.chat import OutputLimit, Variables
from server.schemas.openai.forms import JsonObjectFormat, TextFormat
from server.schemas.openai.items import ItemId, RawItems
from server.schemas.openai.tools import FunctionName
from server.schemas.unsupported import Refusals
from tandem.errors import RequestError

LOGPROBS = "message.output_text.logprobs"
_HERE = "this API calls it {}"
REFUSED: Refusals = {
    "prompt": ("there are no stored prompt templates", ()),
    "context_management": ("there is no compaction", ([],)),
    "moderation": ("there is no moderation", ()),
    "image": ("only text can be generated", ()),
    "access_programs": ("there are no such programs", ({},)),
    "personality": ("the model has no such setting", ()),
    "prompt_cache_options": ("the prefix cache has no such settings", ({},)),
    "messages": (_HERE.format("input"), ()),
    "max_tokens": (_HERE.format("max_output_tokens"), ()),
    "max_completion_tokens": (_HERE.format("max_output_tokens"), ()),
    "response_format": (_HERE.format("text.format"), ()),
    "reasoning_effort": (_HERE.format("reasoning.effort"), ()),
    "logprobs": (_HERE.format(f"include: [{LOGPROBS!r}]"), (False,)),
    "n": ("a response is one answer", (1,)),
}
ResponseId = Annotated[str, Meta(min_length=1, max_length=256)]
# part of an address, unlike the ids of other APIs
RequestId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,128}$", description="shown in `id`; never used twice")]


class ResponseStreamOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Nothing is added to hide the lengths of texts."""

    include_obfuscation: Literal[False] | None = None


class FunctionTool(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A function that the model may call; other kinds of tools are refused by their type."""

    type: Literal["function"]
    name: FunctionName
    description: Annotated[str, Meta(max_length=2**16)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(
    msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="function", forbid_unknown_fields=True
):
    """A function by its name."""

    name: FunctionName


class ListedFunction(NamedFunction, kw_only=True, frozen=True, tag=False):
    """One of those that the model may call."""

    type: Literal["function"]


class AllowedFunctions(
    msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="allowed_tools", forbid_unknown_fields=True
):
    """The model may call some of the tools, though it is shown all."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ListedFunction], Meta(min_length=1, max_length=1024)]


class JsonSchemaText(
    msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="json_schema", forbid_unknown_fields=True
):
    """JSON that follows a schema, whether or not it is called strict."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema: dict[str, Any]
    description: Annotated[str, Meta(max_length=2**16)] | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the text looks like. No model here can be told to be more or less verbose."""

    format: TextFormat | JsonObjectFormat | JsonSchemaText | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How much the model thinks. Thoughts are shown whole: nothing sums them up."""

    effort: Annotated[str, Meta(max_length=64)] | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class ConversationId(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A conversation by its id."""

    id: ItemId


Include = Annotated[
    list[
        Literal[
            "message.output_text.logprobs",
            # of tools that are not here: there is nothing to include
            "file_search_call.results",
            "web_search_call.results",
            "web_search_call.action.sources",
            "message.input_image.image_url",
            "computer_call_output.output.image_url",
            "code_interpreter_call.outputs",
        ]
    ],
    Meta(max_length=16),
]
FunctionTools = Annotated[list[FunctionTool], Meta(max_length=1024)]
FunctionChoice = Literal["none", "auto", "required"] | NamedFunction | AllowedFunctions


class PromptFields(msgspec.Struct, kw_only=True, frozen=True):
    """What the prompt is made of: the same for a response and for a count of its tokens."""

    model: Name | None = None
    input: str | RawItems | None = None
    instructions: str | None = None
    previous_response_id: ResponseId | None = None
    conversation: ItemId | ConversationId | None = None
    tools: FunctionTools | None = None
    tool_choice: FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: Variables | None = None

    def check(self) -> None:
        """Raise ``RequestError`` where fields contradict each other, or nothing is asked."""
        if self.previous_response_id is not None and self.conversation is not None:
            message = "previous_response_id and conversation both say what came before: give one of them"
            raise RequestError(message, "conversation")
        if self.input is None and self.previous_response_id is None and self.conversation is None:
            raise RequestError("input is required", "input", "missing_required_parameter")

    @property
    def conversation_id(self) -> str | None:
        """Of the conversation that the request belongs to."""
        return self.conversation.id if isinstance(self.conversation, ConversationId) else self.conversation


class ResponsesRequest(PromptFields, kw_only=True, frozen=True):
    """A response to make.

    ``max_tool_calls`` is about hosted tools, of which there are none.
    """

    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    background: bool | None = None
    store: bool | None = None
    include: Include | None = None

    max_output_tokens: OutputLimit | None = None
    max_tool_calls: Count | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: TopK | None = None
    min_p: Probability | None = None
    repetition_penalty: RepetitionPenalty | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    min_tokens: Count | None = None
    stop: StopString | StopStrings | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=1024)] | None = None
    ignore_eos: bool | None = None
    thinking_token_budget: Count | None = None
    top_logprobs: Count | None = None

    priority: Priority | None = None
    request_id: RequestId | None = None
    cache_salt: Salt | None = None

    user: ShortText | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    prompt_cache_retention: Literal["in_memory"] | None = None

    def check(self) -> None:
        """Raise ``RequestError`` where fields contradict each other."""
        PromptFields.check(self)
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream to be true", "stream_options")
        if self.background and self.store is False:
            raise RequestError("a background response must be stored: store must not be false", "background")
        if self.top_logprobs and not self.wants_logprobs:
            raise RequestError(f"top_logprobs needs include to hold {LOGPROBS}", "top_logprobs")

    @property
    def wants_logprobs(self) -> bool:
        """Whether texts come with log-probabilities."""
        return LOGPROBS in (self.include or ())

    @property
    def stored(self) -> bool:
        """Whether the response is kept."""
        return self.store is not False


class InputTokensRequest(PromptFields, kw_only=True, frozen=True):
    """A prompt whose tokens are to be counted."""
