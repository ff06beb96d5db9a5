"""Items as they are kept and shown: complete, with ids, and in the form that they are read in again.

Wire format: ``ItemResource`` of OpenAI's Responses API.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from server.schemas.openai.items import (
    FunctionCallItem,
    FunctionOutputItem,
    ItemReference,
    KnownItem,
    MessageItem,
    OutputText,
    ReasoningItem,
    Refusal,
    read_items,
)
from tandem.errors import RequestError

Kept = dict[str, Any]
PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def new_id(prefix: str) -> str:
    """An id that nobody has had."""
    return f"{prefix}_{uuid.uuid4().hex}"


def keep_items(
    raw: str | Sequence[dict[str, Any]] | None, place: str, find: Callable[[str], Kept | None]
) -> list[Kept]:
    """A client's items, or its one text, as they are kept.

    Args:
        place: the field they stand in.
        find: looks up an item that is stored.

    Raises:
        RequestError: one is malformed, or refers to what is not there.
    """
    if isinstance(raw, str):
        raw = [{"role": "user", "content": raw}]
    return [
        _found(item, f"{place}[{i}]", find) if isinstance(item, ItemReference) else _kept(item, f"{place}[{i}]")
        for i, item in enumerate(read_items(raw or (), place))
    ]


def _found(item: ItemReference, place: str, find: Callable[[str], Kept | None]) -> Kept:
    if (kept := find(item.id)) is None:
        raise RequestError(f"there is no stored item {item.id!r}", f"{place}.id", "item_not_found")
    return kept


def _kept(item: KnownItem, place: str) -> Kept:
    match item:
        case MessageItem():
            fields: Kept = {"role": item.role, "content": _content(item, place)}
            kind = "message"
        case FunctionCallItem():
            fields = {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
            kind = "function_call"
        case FunctionOutputItem():
            output = item.output if isinstance(item.output, str) else [_text(part.text) for part in item.output]
            fields = {"call_id": item.call_id, "output": output}
            kind = "function_call_output"
        case ReasoningItem():
            fields = {"summary": [{"type": "summary_text", "text": part.text} for part in item.summary]}
            if item.content is not None:
                fields["content"] = [{"type": "reasoning_text", "text": part.text} for part in item.content]
            kind = "reasoning"
    return {"id": item.id or new_id(PREFIXES[kind]), "type": kind, **fields, "status": item.status or "completed"}


def _content(item: MessageItem, place: str) -> list[dict[str, Any]]:
    """The parts of a message: those of the assistant are outputs, all others inputs."""
    if item.role == "assistant":
        if isinstance(item.content, str):
            return [_output(item.content)]
        return [
            {"type": "refusal", "refusal": part.refusal} if isinstance(part, Refusal) else _output(part.text)
            for part in item.content
        ]
    if isinstance(item.content, str):
        return [_text(item.content)]
    for i, part in enumerate(item.content):
        if isinstance(part, OutputText | Refusal):
            param = f"{place}.content[{i}].type"
            raise RequestError(f"{param}: a message of the {item.role} has input_text alone", param)
    return [_text(part.text) for part in item.content if not isinstance(part, Refusal)]


def _text(text: str) -> dict[str, Any]:
    return {"type": "input_text", "text": text}


def _output(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
