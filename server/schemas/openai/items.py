"""Items: what goes into a response, and what lies in a conversation.

Wire format: ``InputItem`` of OpenAI's Responses API. Hosted tools, images and files are refused by their type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from server.schemas.common import Name
from server.schemas.openai.tools import FunctionName
from server.schemas.parse import explain

MAX_ITEMS = 4096
ItemId = Annotated[str, Meta(min_length=1, max_length=256)]
Status = Literal["in_progress", "completed", "incomplete"]


class _Typed(msgspec.Struct, kw_only=True, frozen=True, tag_field="type", forbid_unknown_fields=True):
    """Anything whose ``type`` says what it is.

    msgspec demands a tag only where it has to choose: what stands alone has a field ``type`` instead.
    """


class InputText(_Typed, kw_only=True, frozen=True, tag="input_text"):
    """Text for the model."""

    text: str


class OutputText(_Typed, kw_only=True, frozen=True, tag="output_text"):
    """Text of the model; annotations and log-probabilities come back with it and are no part of any prompt."""

    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class Refusal(_Typed, kw_only=True, frozen=True, tag="refusal"):
    """The model's refusal to answer."""

    refusal: str


class PlainInput(InputText, kw_only=True, frozen=True, tag=False):
    """Text for the model, where there can be nothing else."""

    type: Literal["input_text"]


class ReasoningText(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Thoughts of the model."""

    type: Literal["reasoning_text"]
    text: str


class SummaryText(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The same in short."""

    type: Literal["summary_text"]
    text: str


class MessageItem(_Typed, kw_only=True, frozen=True, tag="message"):
    """A message of any role."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[InputText | OutputText | Refusal], Meta(max_length=MAX_ITEMS)]
    id: ItemId | None = None
    status: Status | None = None


class FunctionCallItem(_Typed, kw_only=True, frozen=True, tag="function_call"):
    """A call that the model asked for: a name, and a JSON object in a string."""

    call_id: Name
    name: FunctionName
    arguments: str
    id: ItemId | None = None
    status: Status | None = None


class FunctionOutputItem(_Typed, kw_only=True, frozen=True, tag="function_call_output"):
    """What a call has brought."""

    call_id: Name
    output: str | Annotated[list[PlainInput], Meta(max_length=MAX_ITEMS)]
    id: ItemId | None = None
    status: Status | None = None


class ReasoningItem(_Typed, kw_only=True, frozen=True, tag="reasoning"):
    """What the model thought before it answered."""

    summary: Annotated[list[SummaryText], Meta(max_length=MAX_ITEMS)] = []
    content: Annotated[list[ReasoningText], Meta(max_length=MAX_ITEMS)] | None = None
    id: ItemId | None = None
    status: Status | None = None


class ItemReference(_Typed, kw_only=True, frozen=True, tag="item_reference"):
    """An item that is stored here."""

    id: ItemId


KnownItem = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem
Item = KnownItem | ItemReference
DESCRIBED: dict[str, Any] = {"items": {"$ref": "#/components/schemas/Item"}}  # what ``read_items`` takes
RawItems = Annotated[list[dict[str, Any]], Meta(max_length=MAX_ITEMS, extra_json_schema=DESCRIBED)]


def read_items(raw: Sequence[dict[str, Any]], place: str) -> list[Item]:
    """Plain data as items. The type may be left out where the API allows it.

    Args:
        place: the field they stand in, such as ``input``.

    Raises:
        RequestError: one is malformed, or of a type that is not known here.
    """
    return [_read(fields, f"{place}[{i}]") for i, fields in enumerate(raw)]


def _read(raw: dict[str, Any], place: str) -> Item:
    fields = {name: value for name, value in raw.items() if value is not None}
    fields.setdefault("type", "item_reference" if fields.keys() == {"id"} else "message")
    try:
        return msgspec.convert(fields, Item)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise explain(str(error), place) from error
    except RecursionError as error:
        raise explain("Expected less depth", place) from error
