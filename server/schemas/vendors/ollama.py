"""Bodies of ``POST /api/chat``, ``/api/generate`` and ``/api/show``.

Wire format: Ollama's published API. A stream is what a request gets that does not say otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from server.schemas.common import INT31, Count, Name, Penalty, Probability, Seed, StopString, Temperature
from server.schemas.openai.forms import JsonObjectFormat, JsonSchemaFormat, NamedSchema
from server.schemas.openai.tools import Tools
from server.schemas.unsupported import Refusals, is_same
from tandem.errors import RequestError

_NO_LOGPROBS = "it is not available in this format: /v1/chat/completions has it"
_SHARED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "logprobs": (_NO_LOGPROBS, (False,)),
    "top_logprobs": (_NO_LOGPROBS, (0,)),
    "truncate": ("conversations that are too long are refused", (False,)),
    "shift": ("conversations that are too long are refused", (False,)),
}
CHAT_REFUSALS: Refusals = _SHARED
GENERATE_REFUSALS: Refusals = _SHARED | {
    "template": ("prompts are rendered with the model's template", ("",)),
    "context": ("conversations are not kept in tokens: use /api/chat", ([],)),
    "images": ("this model reads text only", ([],)),
    "width": ("only text can be generated", (0,)),
    "height": ("only text can be generated", (0,)),
    "steps": ("only text can be generated", (0,)),
}
_LOADING = "how the model is loaded is decided when the server starts"
_SAMPLER = "there is no such sampler"
OPTION_REFUSALS: Refusals = {
    "num_keep": ("conversations that are too long are refused", (0,)),
    "tfs_z": (_SAMPLER, (1,)),
    "typical_p": (_SAMPLER, (1,)),
    "mirostat": (_SAMPLER, (0,)),
    "mirostat_tau": (_SAMPLER, ()),
    "mirostat_eta": (_SAMPLER, ()),
    "penalize_newline": ("penalties are for all tokens", (True,)),
    "draft_num_predict": (_LOADING, ()),
    **{
        name: (_LOADING, ())
        for name in (
            "numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mmap",
            "use_mlock", "embedding_only", "num_thread",
        )
    },
}  # fmt: skip


class Options(msgspec.Struct, kw_only=True, frozen=True):
    """Sampling. ``num_ctx`` is a context that the server must have at least."""

    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT31)] | None = None
    min_p: Probability | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    repeat_last_n: Literal[-1, 0] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=64)] | None = None
    num_predict: Annotated[int, Meta(ge=-2, le=INT31, description="below 1: as many as fit")] | None = None
    num_ctx: Count | None = None


class CalledFunction(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A call's name and arguments."""

    name: Name
    arguments: dict[str, Any] = {}
    index: Count | None = None


class OllamaCall(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An entry of ``tool_calls``."""

    function: CalledFunction
    id: Name | None = None
    type: Literal["function"] | None = None


class OllamaMessage(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An entry of ``messages``."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    tool_calls: Annotated[list[OllamaCall], Meta(max_length=1024)] | None = None
    tool_name: Name | None = None
    tool_call_id: Name | None = None
    images: list[Any] | None = None


class OllamaRequest(msgspec.Struct, kw_only=True, frozen=True):
    """What both generating routes take. ``keep_alive`` means nothing: the model stays loaded."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    streamed: bool | None = msgspec.field(name="stream", default=None)
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    think: bool | Literal["high", "medium", "low"] | None = None
    keep_alive: float | Annotated[str, Meta(max_length=64)] | None = None

    def check(self) -> None:
        """Raise ``RequestError`` where something cannot be honoured."""
        options = self.options or {}
        for name, value in options.items():
            if name in OPTION_REFUSALS:
                why, neutral = OPTION_REFUSALS[name]
                if value is not None and not any(is_same(value, one) for one in neutral):
                    where = f"options.{name}"
                    raise RequestError(f"{where} is not supported: {why}", where, "unsupported_parameter")
            elif name not in Options.__struct_fields__:
                where = f"options.{name[:100]}"
                raise RequestError(f"{where!r} is not known here", where, "unknown_parameter")
        self.sampling  # noqa: B018 - it raises where a value is wrong

    @property
    def sampling(self) -> Options:
        """The options, typed.

        Raises:
            RequestError: one is of a wrong type or out of range.
        """
        try:
            return msgspec.convert(self.options or {}, Options)
        except msgspec.ValidationError as error:
            what, _, path = str(error).partition(" - at `$.")
            where = f"options.{path.rstrip('`')}"
            raise RequestError(f"{where}: {what.replace('`', '')}", where, "invalid_value") from error

    @property
    def stream(self) -> bool:
        """Unless the request says otherwise."""
        return self.streamed is not False

    @property
    def request_id(self) -> str | None:
        """There are no ids in this API."""
        return None

    @property
    def response_format(self) -> JsonObjectFormat | JsonSchemaFormat | None:
        """``format`` in terms of chat."""
        if self.format == "json":
            return JsonObjectFormat()
        if isinstance(self.format, dict):
            return JsonSchemaFormat(json_schema=NamedSchema(name="format", schema=self.format))
        return None


class OllamaChat(OllamaRequest, kw_only=True, frozen=True):
    """A conversation to answer; without messages, the question whether the model is loaded."""

    messages: Annotated[list[OllamaMessage], Meta(max_length=2**16)] | None = None
    tools: Tools | None = None

    def check(self) -> None:
        """Raise ``RequestError`` where something cannot be honoured, or fields contradict each other."""
        super().check()
        names: set[str] = set()
        for i, tool in enumerate(self.tools or ()):
            if tool.function.name in names:
                where = f"tools[{i}].function.name"
                raise RequestError(f"{where}: two tools have the name {tool.function.name!r}", where)
            names.add(tool.function.name)
        for i, message in enumerate(self.messages or ()):
            where = f"messages[{i}]"
            if message.images:
                text = f"{where}.images: this model reads text only"
                raise RequestError(text, f"{where}.images", "unsupported_parameter")
            if message.tool_calls and message.role != "assistant":
                text = f"{where}.tool_calls belongs to messages of the assistant"
                raise RequestError(text, f"{where}.tool_calls")


class OllamaGenerate(OllamaRequest, kw_only=True, frozen=True):
    """A prompt to answer, or with ``raw`` to go on with; without one, the question whether the model is loaded.

    With a ``suffix`` the answer is what stands between both, where the model can fill gaps, and there is no template.
    """

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None

    def check(self) -> None:
        """Raise ``RequestError`` where something cannot be honoured, or fields contradict each other."""
        super().check()
        bare = "raw" if self.raw else "suffix"
        if self.is_bare and self.system:
            raise RequestError(f"{bare} leaves the template out, and system with it", "system")
        if self.is_bare and self.think:
            raise RequestError(f"{bare} leaves the template out, and think with it", "think")

    @property
    def is_bare(self) -> bool:
        """Whether the prompt is not put into the model's template."""
        return bool(self.raw or self.suffix)


class OllamaShow(msgspec.Struct, kw_only=True, frozen=True):
    """Which model; ``name`` is the older spelling."""

    given: Name | None = msgspec.field(name="model", default=None)
    name: Name | None = None
    verbose: bool | None = None

    def check(self) -> None:
        """Raise ``RequestError`` where no model is named."""
        if not (self.given or self.name):
            raise RequestError("model is required", "model", "missing_required_parameter")

    @property
    def model(self) -> str | None:
        """The name."""
        return self.given or self.name
