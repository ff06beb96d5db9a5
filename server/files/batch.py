"""A batch: what is known of it, and whether its file is one of requests. Wire format: ``Batch`` of OpenAI's API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

import msgspec

from server.files.lines import Line, LineError, read_line

MAX_LINES = 50_000
MAX_ERRORS = 100  # that are told of one file

Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")


class Problem(msgspec.Struct, frozen=True):
    """An error of a batch, at a line if there is one: the first is 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Counts(msgspec.Struct):
    """Of a batch's lines."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Usage(msgspec.Struct):
    """Tokens of all answers."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0

    def add(self, usage: Any) -> None:
        """Add an answer's, whichever API it is of."""
        if isinstance(usage, dict):
            self.input += _sum(usage, "prompt_tokens", "input_tokens")
            self.output += _sum(usage, "completion_tokens", "output_tokens")
            details = [usage.get(f"{kind}_tokens_details") or {} for kind in ("prompt", "input")]
            self.cached += sum(_sum(found, "cached_tokens") for found in details)
            details = [usage.get(f"{kind}_tokens_details") or {} for kind in ("completion", "output")]
            self.reasoning += sum(_sum(found, "reasoning_tokens") for found in details)

    @property
    def wire(self) -> dict[str, Any]:
        """``BatchUsage`` of OpenAI's published API."""
        return {
            "input_tokens": self.input,
            "input_tokens_details": {"cached_tokens": self.cached},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.input + self.output,
        }


class Batch(msgspec.Struct, kw_only=True):
    """A batch. Times are Unix times in seconds, by the state that began then; ``order`` is finer.

    Attributes:
        output_seconds: after which its output expires.
    """

    id: str
    owner: str
    order: int
    model: str
    endpoint: str
    input_file_id: str
    completion_window: str
    expires_at: int
    output_seconds: int
    metadata: dict[str, str] | None = None
    status: Status = "validating"
    times: dict[str, int] = {}
    errors: list[Problem] = []
    counts: Counts = msgspec.field(default_factory=Counts)
    usage: Usage = msgspec.field(default_factory=Usage)
    output_file_id: str | None = None
    error_file_id: str | None = None

    def enter(self, status: Status, now: float) -> None:
        """Be in another state from now on."""
        self.status = status
        self.times[f"{status}_at"] = int(now)

    @property
    def wire(self) -> dict[str, Any]:
        """What clients see."""
        states = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": {"object": "list", "data": msgspec.to_builtins(self.errors)} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.order // 10**9,
            "expires_at": self.expires_at,
            **{f"{state}_at": self.times.get(f"{state}_at") for state in states},
            "request_counts": msgspec.to_builtins(self.counts),
            "usage": self.usage.wire,
            "metadata": self.metadata,
        }


def requests_of(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1; empty ones are passed over.

    Raises:
        LineError: a line is longer than ``max_bytes``; there is no going on.
    """
    number = 0
    while data := file.readline(max_bytes + 1):
        number += 1
        if len(data) > max_bytes:
            raise LineError("line_too_long", f"line {number} is longer than {max_bytes} bytes")
        if data.strip():
            yield number, data


def validate(file: BinaryIO, endpoint: str, max_bytes: int) -> tuple[int, list[Problem]]:
    """Number of requests, and what is wrong with them; takes long."""
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    num_lines = 0
    try:
        for number, data in requests_of(file, max_bytes):
            num_lines += 1
            if num_lines > MAX_LINES:
                raise LineError("too_many_requests", f"a batch has at most {MAX_LINES} requests")
            try:
                line = read_line(data)
                _check(line, endpoint, seen)
                seen[line.custom_id] = number
            except LineError as wrong:
                problems.append(Problem(wrong.code, str(wrong), number, wrong.param))
            if len(problems) == MAX_ERRORS:
                break
    except LineError as wrong:
        problems.append(Problem(wrong.code, str(wrong)))
    if not num_lines and not problems:
        problems.append(Problem("empty_file", "the file has no requests", None, "input_file_id"))
    return num_lines, problems


def _check(line: Line, endpoint: str, seen: dict[str, int]) -> None:
    if line.url != endpoint:
        raise LineError("mismatched_url", f"url must be the batch's endpoint, {endpoint}", "url")
    if line.custom_id in seen:
        message = f"custom_id {line.custom_id[:100]!r} is that of line {seen[line.custom_id]}, too"
        raise LineError("duplicate_custom_id", message, "custom_id")


def _sum(fields: dict[str, Any], *names: str) -> int:
    return sum(value for name in names if isinstance(value := fields.get(name), int))
