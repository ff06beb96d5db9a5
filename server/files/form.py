"""The form that uploads a file: read as it arrives, its file straight to the disk. Wire format: RFC 7578."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from server.errors import ApiError
from server.files.store import DAY, Draft, File
from server.intake.body import check_encoding, check_size, receive_body, state_of
from server.intake.pool import SHORT_BYTES
from tandem.errors import RequestError

MAX_PARTS = 16
MAX_VALUE_BYTES = 1024
MAX_NAME = 255
MAX_BOUNDARY = 70  # RFC 2046
MAX_FORM_BYTES = 2**16  # of a form besides its file
STEP_BYTES = 2**18  # parsed and written at once
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
EXPIRY = "expires_after"
SHORTEST, LONGEST = 3600, 30 * DAY


@dataclass(slots=True)
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    filename: str | None = None
    value: bytearray = field(default_factory=bytearray)


class UploadForm:
    """A form on its way in: a ``file`` that goes into ``draft``, and short values.

    Args:
        boundary: between its parts.
    """

    def __init__(self, draft: Draft, boundary: bytes) -> None:
        self._draft = draft
        self._values: dict[str, str] = {}
        self._filename: str | None = None
        self._part = _Part()
        self._num_parts = 0
        self._rest = MAX_FORM_BYTES
        self._found = bytearray()  # of the file, in the bytes at hand
        self._header = (bytearray(), bytearray())
        self._is_complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._take,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Take what has come; may take long.

        Raises:
            RequestError: it is no such form.
            ApiError: 413, it is too large.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise RequestError(f"the form cannot be read: {str(error)[:100]}", None, "invalid_form") from error
        found, self._found = self._found, bytearray()
        self._draft.write(found)
        self._rest -= len(data) - len(found)
        if self._rest < 0:
            raise ApiError(413, f"a form has at most {MAX_FORM_BYTES} bytes besides its file", "request_too_large")

    def finish(self) -> tuple[str, str, int]:
        """File name, purpose and seconds until it expires, of a form that has come whole.

        Raises:
            RequestError: it is not whole, or says what it must not.
        """
        if not self._is_complete:
            raise RequestError("the form ends before its last boundary", None, "invalid_form")
        if self._filename is None:
            raise RequestError("file is required", "file", "missing_required_parameter")
        values = dict(self._values)
        purpose = values.pop("purpose", None)
        if purpose is None:
            raise RequestError("purpose is required", "purpose", "missing_required_parameter")
        if purpose != "batch":
            known = purpose in PURPOSES
            message = f"purpose {purpose[:100]!r}: only files of purpose 'batch' have a use here"
            raise RequestError(message, "purpose", "unsupported_parameter" if known else "invalid_value")
        seconds = _seconds(values.pop(f"{EXPIRY}[anchor]", None), values.pop(f"{EXPIRY}[seconds]", None))
        if values:
            name = next(iter(values))[:100]
            raise RequestError(f"{name!r} is not known here", name, "unknown_parameter")
        return self._filename, purpose, seconds

    # ------------------------------------------------------------------ what the parser finds

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise RequestError(f"the form has more than {MAX_PARTS} parts", None, "invalid_form")
        self._part = _Part()

    def _end_header(self) -> None:
        name, value = self._header
        self._part.headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _end_headers(self) -> None:
        part = self._part
        kind, options = parse_options_header(part.headers.get(b"content-disposition", b""))
        if kind != b"form-data" or b"name" not in options:
            message = "each part of the form needs Content-Disposition: form-data with a name"
            raise RequestError(message, None, "invalid_form")
        part.name = options[b"name"].decode(errors="replace")
        if part.name in self._values or (part.name == "file" and self._filename is not None):
            raise RequestError(f"{part.name[:100]!r} is given twice", part.name[:100], "invalid_form")
        if part.name == "file":
            self._filename = _plain(options.get(b"filename", b"").decode(errors="replace"))

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == "file":
            self._found += data[start:end]
            return
        self._part.value += data[start:end]
        if len(self._part.value) > MAX_VALUE_BYTES:
            name = self._part.name[:100]
            raise RequestError(f"{name!r} has more than {MAX_VALUE_BYTES} bytes", name)

    def _end_part(self) -> None:
        if self._part.name != "file":
            self._values[self._part.name] = self._part.value.decode(errors="replace")

    def _end(self) -> None:
        self._is_complete = True


async def read_upload(request: Request, owner: str) -> File:
    """Read a form, and keep its file.

    Raises:
        RequestError, ApiError: it is refused, and nothing of it is left.
        ClientGoneError: the client went away in the middle.
    """
    state = state_of(request)
    store, pool = state.files, state.pool
    boundary = _boundary(request)
    check_size(request, store.limits.file_bytes + MAX_FORM_BYTES)
    draft = await pool.run_in_thread(SHORT_BYTES, store.draft, owner)
    try:
        form, waiting = UploadForm(draft, boundary), bytearray()

        async def take(data: bytes) -> None:
            waiting.extend(data)
            if len(waiting) >= STEP_BYTES:
                await parse()

        async def parse() -> None:
            data = bytes(waiting)
            waiting.clear()
            await pool.run_in_thread(SHORT_BYTES, form.feed, data)

        await receive_body(request, take)
        await parse()
        return await pool.run_in_thread(SHORT_BYTES, draft.keep, *form.finish())
    finally:
        draft.discard()


def _boundary(request: Request) -> bytes:
    check_encoding(request)
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        message = (
            f"the content type must be multipart/form-data, not {kind.decode(errors='replace')[:100] or 'missing'}"
        )
        raise ApiError(415, message, "unsupported_media_type")
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= MAX_BOUNDARY:
        message = f"the content type needs a boundary of 1 to {MAX_BOUNDARY} bytes"
        raise RequestError(message, None, "invalid_form")
    return boundary


def _plain(name: str) -> str:
    """A file's name without directories and control characters. It is shown, and never used as a path."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(char for char in last if char.isprintable())[:MAX_NAME] or "upload"


def _seconds(anchor: str | None, text: str | None) -> int:
    if anchor is None and text is None:
        return LONGEST
    if anchor != "created_at":
        raise RequestError(f"{EXPIRY}[anchor] must be created_at", f"{EXPIRY}[anchor]")
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 9 and SHORTEST <= int(text) <= LONGEST):
        message = f"{EXPIRY}[seconds] must be a whole number between {SHORTEST} and {LONGEST}"
        raise RequestError(message, f"{EXPIRY}[seconds]")
    return int(text)
