"""Body of ``POST /collective_rpc`` (wire format: vLLM's)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta


class CollectiveCall(msgspec.Struct, kw_only=True, frozen=True):
    """A call of the engine by name; calls have positional arguments only."""

    method: Literal["reset_prefix_cache", "sleep", "wake_up", "replace_weights"]
    args: Annotated[list[Any], Meta(max_length=16)] = []
    kwargs: Annotated[dict[str, Any], Meta(max_length=0)] | None = None
    timeout: Annotated[float, Meta(gt=0, le=86400, description="seconds")] | None = None

    def check(self) -> None:
        """Nothing in it can contradict."""
