"""Body of ``POST /generative_scoring`` (wire format: vLLM's)."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from server.schemas.common import LabelIds, Name, Priority, RequestId, Salt, TokenIds
from tandem.errors import RequestError

MAX_ITEMS = 2048
Items = Annotated[list[str | TokenIds], Meta(min_length=1, max_length=MAX_ITEMS)]


class ScoringRequest(msgspec.Struct, kw_only=True, frozen=True):
    """A query and items; each item is a prompt together with the query."""

    query: str | TokenIds
    items: Items
    label_token_ids: LabelIds
    model: Name | None = None
    apply_softmax: bool | None = None
    item_first: bool | None = None
    add_special_tokens: bool | None = None
    priority: Priority | None = None
    request_id: RequestId | None = None
    cache_salt: Salt | None = None

    @property
    def stream(self) -> None:
        """There is no stream of scores."""

    def check(self) -> None:
        """Raise ``RequestError`` for no labels, the same one twice, or items of different types."""
        if not 0 < len({*self.label_token_ids}) == len(self.label_token_ids):
            raise RequestError("label_token_ids must be at least one token id, each of them once", "label_token_ids")
        for i, item in enumerate(self.items):
            if type(item) is not type(self.items[0]):
                message = f"items[{i}] is of another type than items[0]: use strings, or lists of token ids"
                raise RequestError(message, f"items[{i}]", "invalid_type")
