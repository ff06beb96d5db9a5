"""Query parameters of routes that list, and the lists. Wire format: ``ResponseItemList`` of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.responses.store import Page
from tandem.errors import RequestError

FLAGS = {"true": True, "1": True, "false": False, "0": False}
# what the parameters may be, as JSON schemas
FLAG: dict[str, Any] = {"type": "string", "pattern": "^(?:[tT][rR][uU][eE]|[fF][aA][lL][sS][eE]|[01])$"}
PAGING: dict[str, dict[str, Any]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
    "order": {"enum": ["asc", "desc"], "default": "desc"},
    "after": {"type": "string", "description": "an item's id"},
}


@dataclass(frozen=True, slots=True)
class Paging:
    """Which part of a list is wanted."""

    limit: int
    newest_first: bool
    after: str | None

    @classmethod
    def of(cls, query: Mapping[str, str], default: int = 20, most: int = 100) -> Paging:
        """Raise ``RequestError`` for a value that the API does not have.

        Args:
            default, most: of ``limit``.
        """
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise RequestError(f"order must be asc or desc, got {order[:64]!r}", "order")
        return cls(number(query, "limit", default, 1, most), order == "desc", query.get("after"))


def number(query: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    """A whole number; raise ``RequestError`` for anything else."""
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and least <= int(text) <= most):
        raise RequestError(f"{name} must be a whole number between {least} and {most}, got {text[:64]!r}", name)
    return int(text)


def flag(query: Mapping[str, str], name: str) -> bool:
    """Yes or no; raise ``RequestError`` for anything else."""
    text = query.get(name, "false")
    if (value := FLAGS.get(text.lower())) is None:
        raise RequestError(f"{name} must be true or false, got {text[:64]!r}", name)
    return value


def listed(page: Page) -> dict[str, Any]:
    """A part of a list on the wire."""
    ids = [item["id"] for item in page.items] or [""]
    return {
        "object": "list",
        "data": page.items,
        "first_id": ids[0],
        "last_id": ids[-1],
        "has_more": page.has_more,
    }
