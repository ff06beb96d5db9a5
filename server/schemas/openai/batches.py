"""Bodies of ``/v1/batches``. Wire format: ``CreateBatchRequest`` of OpenAI's published API."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from server.schemas.common import Metadata, ShortText


class Expiry(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """When a file expires."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=2592000)]


class BatchRequest(msgspec.Struct, kw_only=True, frozen=True):
    """A file of requests to be answered."""

    input_file_id: ShortText
    endpoint: ShortText
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: Expiry | None = None

    def check(self) -> None:
        """Nothing in it can contradict."""
