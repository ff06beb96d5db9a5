"""Functions that the model may call, and whether it must.

Wire format: ``tools`` and ``tool_choice`` of OpenAI's chat API.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tandem.errors import RequestError
from tandem.text.parsers.parser import Tool

FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionDefinition(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What the model is told of a function; further keys are for its template and kept out."""

    name: FunctionName
    description: Annotated[str, Meta(max_length=2**16)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(msgspec.Struct, kw_only=True, frozen=True):
    """One entry of ``tools``."""

    function: FunctionDefinition
    type: Literal["function"] = "function"


class Named(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A function by its name."""

    name: FunctionName


class NamedTool(
    msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="function", forbid_unknown_fields=True
):
    """The model must call this one."""

    function: Named


class ListedTool(NamedTool, kw_only=True, frozen=True, tag=False):
    """One of those that the model may call."""

    type: Literal["function"]


class AllowedList(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Some of the tools."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ListedTool], Meta(min_length=1, max_length=1024)]


class AllowedTools(
    msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="allowed_tools", forbid_unknown_fields=True
):
    """The model may call some of the tools, though it is shown all."""

    allowed_tools: AllowedList


Tools = Annotated[list[ToolDefinition], Meta(max_length=1024)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools
Mode = Literal["none", "auto", "required"]


def callable_tools(tools: Sequence[ToolDefinition] | None, choice: ToolChoice | None) -> tuple[Mode, list[Tool]]:
    """Whether functions may or must be called, and which.

    Raises:
        RequestError: the choice is of a tool that is not there, or a name stands for two.
    """
    known: dict[str, Tool] = {}
    for i, tool in enumerate(tools or ()):
        f = tool.function
        if f.name in known:
            raise RequestError(f"two tools have the name {f.name!r}", f"tools[{i}].function.name")
        known[f.name] = Tool(
            name=f.name, description=f.description or "", parameters=f.parameters, strict=bool(f.strict)
        )
    if not known:
        if choice not in (None, "none"):
            raise RequestError("tool_choice needs tools", "tool_choice")
        return "none", []
    match choice:
        case None:
            return "auto", list(known.values())
        case NamedTool():
            return "required", _chosen(known, [choice])
        case AllowedTools():
            return choice.allowed_tools.mode, _chosen(known, choice.allowed_tools.tools)
    return choice, list(known.values())


def _chosen(known: dict[str, Tool], named: Sequence[NamedTool]) -> list[Tool]:
    for tool in named:
        if tool.function.name not in known:
            raise RequestError(f"tool_choice names {tool.function.name!r}, which is not among tools", "tool_choice")
    return [known[tool.function.name] for tool in named]
