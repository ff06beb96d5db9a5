"""What a request may have wrong, and what the server remembers."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
MODEL = "org/stub"
CONTEXT = 100_000
STEP = 0.001  # seconds a token
faults: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("faults", default=frozenset())


@dataclass
class State:
    """Of all requests together."""

    running: int = 0
    generated: int = 0
    abandoned: int = 0  # streams that nobody has read to the end
    stored: dict[str, Json] = field(default_factory=dict)


state = State()


def wrong(name: str) -> bool:
    """Whether this request has this fault."""
    return name in faults.get()
