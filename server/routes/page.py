"""The chat page at ``/``: static files of ``server/page/``, and nothing that a browser may load from elsewhere.

The files hold no secrets and need no key; the API that the page talks to does. Addresses within the page are
relative, so it works below any prefix that ends in a slash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parents[1] / "page"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Answers of a model are hostile text: no script but ours runs, and no string can be turned into markup.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "cache-control": "no-cache",  # kept, and asked for again by its ETag: an upgrade is seen at once
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class StaticFile:
    """Answers GET with one file, read when the server starts; with 304 where the client has it."""

    def __init__(self, file: Path) -> None:
        self._body = file.read_bytes()
        self._tag = f'"{hashlib.sha256(self._body).hexdigest()[:32]}"'
        self._media_type = MEDIA_TYPES[file.suffix]
        self._headers = {**HEADERS, "etag": self._tag}

    async def answer(self, request: Request) -> Response:
        """200 with the file, or 304."""
        known = request.headers.get("if-none-match", "")
        tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
        if tags & {self._tag, "*"}:
            return Response(status_code=304, headers=self._headers)
        return Response(self._body, headers=self._headers, media_type=self._media_type)


def _files() -> Mapping[str, Path]:
    """Paths of the server to files. Only these are answered: no path of a client is looked up on disk."""
    found = {f"/page/{file.name}": file for file in sorted(FOLDER.iterdir()) if file.suffix in MEDIA_TYPES}
    return {"/": found.pop("/page/index.html"), **found}


FILES = _files()
PATHS = frozenset(FILES)


def page_router() -> APIRouter:
    """A route for each file."""
    router = APIRouter()
    for path, file in FILES.items():
        router.add_route(path, StaticFile(file).answer, ["GET"], include_in_schema=False)
    return router
