"""What a Responses request means in terms of chat, and whose fields are to blame when chat refuses it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from server.responses.items import Kept
from server.schemas.openai.chat import ChatRequest, FunctionCall, Message, ToolCall
from server.schemas.openai.forms import JsonSchemaFormat, NamedSchema, ResponseFormat
from server.schemas.openai.responses import (
    AllowedFunctions,
    FunctionChoice,
    FunctionTools,
    JsonSchemaText,
    NamedFunction,
    PromptFields,
    ResponsesRequest,
    TextOptions,
)
from server.schemas.openai.tools import (
    AllowedList,
    AllowedTools,
    FunctionDefinition,
    ListedTool,
    Named,
    NamedTool,
    ToolChoice,
    ToolDefinition,
)
from tandem.errors import ContextLengthError, RequestError

_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
    "logit_bias", "seed", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "thinking_token_budget", "priority",
    "cache_salt",
)  # fmt: skip
_NAMES = {
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "prompt": "input",
    "messages": "input",
}
_TOOL = re.compile(r"(tools\[\d+\])\.function(.*)")
_MESSAGE = re.compile(r"messages\[(\d+)\](?:\.tool_calls\[(\d+)\](?:\.function)?)?(.*)", re.DOTALL)


@dataclass(slots=True)
class Place:
    """Where a message of chat comes from: the item that is its content, and those that are its calls."""

    item: str
    calls: list[str] = field(default_factory=list)


_Row = tuple[dict[str, Any], Place]  # the fields of a message, and its place


@dataclass(frozen=True, slots=True)
class Messages:
    """Items as messages, and the place of each."""

    messages: list[Message]
    places: list[Place]


def as_messages(instructions: str | None, items: Sequence[Kept], places: Sequence[str]) -> Messages:
    """Items as the messages of a conversation. Thoughts, text and calls that follow each other are one message.

    Args:
        places: of each item, the field of the request that brought it.

    Raises:
        RequestError: a function's output has no call before it, or nothing is said at all.
    """
    rows: list[_Row] = []
    if instructions is not None:
        rows.append(({"role": "system", "content": instructions}, Place("instructions")))
    called: set[str] = set()
    for item, place in zip(items, places, strict=True):
        match item["type"]:
            case "message" if item["role"] == "assistant":
                turn = _assistant(rows, place, closed_by={"content", "tool_calls"})
                turn[0]["content"] = _said(item["content"])
            case "message":
                content = item["content"]
                joined = content[0]["text"] if len(content) == 1 else "\n".join(part["text"] for part in content)
                rows.append(({"role": item["role"], "content": joined}, Place(place)))
            case "reasoning":
                turn = _assistant(rows, place, closed_by={"role"})
                turn[0]["reasoning_content"] = _thoughts(item)
            case "function_call":
                called.add(item["call_id"])
                fields, origin = _assistant(rows, place, closed_by=set())
                call = FunctionCall(name=item["name"], arguments=item["arguments"])
                fields.setdefault("tool_calls", []).append(ToolCall(function=call, id=item["call_id"]))
                origin.calls.append(place)
            case "function_call_output":
                if item["call_id"] not in called:
                    raise RequestError(f"no function call has the call_id {item['call_id']!r}", f"{place}.call_id")
                output = item["output"]
                text = output if isinstance(output, str) else "\n".join(part["text"] for part in output)
                rows.append(({"role": "tool", "tool_call_id": item["call_id"], "content": text}, Place(place)))
    if not rows:
        raise RequestError("input is empty: there is nothing to answer", "input")
    messages = [Message(**({"content": ""} | fields if _is_mute(fields) else fields)) for fields, _ in rows]
    return Messages(messages, [place for _, place in rows])


def _assistant(rows: list[_Row], place: str, closed_by: set[str]) -> _Row:
    """The assistant's message that an item belongs to: the last one, or another where that has what closes it."""
    if rows and rows[-1][0]["role"] == "assistant" and not closed_by & rows[-1][0].keys():
        return rows[-1]
    rows.append(({"role": "assistant"}, Place(place)))
    return rows[-1]


def _is_mute(fields: dict[str, Any]) -> bool:
    return "content" not in fields and "tool_calls" not in fields


def _said(parts: Sequence[dict[str, Any]]) -> str:
    return "\n".join(part["refusal"] if part["type"] == "refusal" else part["text"] for part in parts)


def _thoughts(item: Kept) -> str:
    return "\n".join(part["text"] for part in item.get("content") or item["summary"])


def chat_request(request: PromptFields, messages: list[Message]) -> ChatRequest:
    """The request that chat would get.

    Raises:
        RequestError: its fields contradict each other; in terms of chat.
    """
    fields: dict[str, Any] = {}
    if isinstance(request, ResponsesRequest):
        fields = {name: getattr(request, name) for name in _SAMPLING}
        fields["max_tokens"] = request.max_output_tokens
        if request.wants_logprobs:
            fields |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    chat = ChatRequest(
        messages=messages,
        model=request.model,
        tools=_tools(request.tools),
        tool_choice=_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_format(request.text),
        reasoning_effort=request.reasoning.effort if request.reasoning else None,
        chat_template_kwargs=request.chat_template_kwargs,
        **fields,
    )
    chat.check()
    return chat


def _tools(tools: FunctionTools | None) -> list[ToolDefinition] | None:
    return None if tools is None else [
        ToolDefinition(
            function=FunctionDefinition(
                name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
            )
        )
        for tool in tools
    ]  # fmt: skip


def _choice(choice: FunctionChoice | None) -> ToolChoice | None:
    match choice:
        case NamedFunction(name=name):
            return NamedTool(function=Named(name=name))
        case AllowedFunctions(mode=mode, tools=tools):
            named = [ListedTool(type="function", function=Named(name=tool.name)) for tool in tools]
            return AllowedTools(allowed_tools=AllowedList(mode=mode, tools=named))
    return choice


def _format(text: TextOptions | None) -> ResponseFormat | None:
    form = text.format if text else None
    if not isinstance(form, JsonSchemaText):
        return form
    schema = NamedSchema(name=form.name, schema=form.schema, description=form.description, strict=form.strict)
    return JsonSchemaFormat(json_schema=schema)


def in_our_terms(error: RequestError, places: Sequence[Place]) -> RequestError:
    """An error of chat, with the field of the Responses request that is to blame."""
    param = error.param
    if param is None:
        return error
    if match := _MESSAGE.fullmatch(param):
        ours = _item_of(places[int(match[1])], match[2], match[3])
    elif match := _TOOL.fullmatch(param):
        ours = match[1] + match[2]
    else:
        ours = _NAMES.get(param, param)
    text = str(error).replace(param, ours) if param != "prompt" else str(error)
    return (
        ContextLengthError(text, ours)
        if isinstance(error, ContextLengthError)
        else RequestError(text, ours, error.code)
    )


def _item_of(place: Place, call: str | None, rest: str) -> str:
    if call is not None:
        return place.calls[int(call)] + (".arguments" if "arguments" in rest else "")
    return place.item + (rest if "[" in place.item else "")
