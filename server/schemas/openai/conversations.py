"""Bodies of ``/v1/conversations``. Wire format: ``CreateConversationBody`` and others of OpenAI's published API."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from server.schemas.common import Metadata
from server.schemas.openai.items import DESCRIBED

NewItems = Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=20, extra_json_schema=DESCRIBED)]


class ConversationRequest(msgspec.Struct, kw_only=True, frozen=True):
    """A conversation to begin."""

    items: Annotated[list[dict[str, Any]], Meta(max_length=20, extra_json_schema=DESCRIBED)] | None = None
    metadata: Metadata | None = None

    def check(self) -> None:
        """Nothing in it can contradict."""


class ConversationUpdate(msgspec.Struct, kw_only=True, frozen=True):
    """Metadata that replaces what was there."""

    metadata: Metadata | None

    def check(self) -> None:
        """Nothing in it can contradict."""


class ItemsRequest(msgspec.Struct, kw_only=True, frozen=True):
    """Items to add to a conversation."""

    items: NewItems

    def check(self) -> None:
        """Nothing in it can contradict."""
