"""All batches of a server: begun, found, cancelled, and with ``--files-dir`` taken up again by the next server."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from starlette.types import ASGIApp

from server.errors import ApiError
from server.files.batch import UNFINISHED, Batch
from server.files.lines import ENDPOINTS
from server.files.run import BatchRun, Turns
from server.files.store import CONTINUED, DAY, OPTION, PARTIAL, after_index
from server.intake.pool import SHORT_BYTES
from server.responses.store import Page
from server.schemas.openai.batches import BatchRequest
from server.state import ServerState
from tandem.errors import ConfigError, RequestError

MAX_UNFINISHED = 100
MAX_KEPT = 10_000
KEPT_SECONDS = 30 * DAY


class Batches:
    """Belongs to one application and one event loop.

    Raises:
        ConfigError: what an earlier server has left cannot be read.
    """

    def __init__(self, state: ServerState, app: ASGIApp) -> None:
        self._state = state
        self._app = app
        self._turns = Turns(state)
        self._batches: dict[str, Batch] = {}
        self._runs: dict[str, BatchRun] = {}
        if state.files.is_lasting:
            try:
                for path in state.files.directory.glob(f"{CONTINUED}*.json"):
                    batch = msgspec.json.decode(path.read_bytes(), type=Batch)
                    self._batches[batch.id] = batch
                unfinished = [batch.id for batch in self._batches.values() if batch.status in UNFINISHED]
                for path in state.files.directory.glob(f"{CONTINUED}*{PARTIAL}"):
                    if path.name.partition(".")[0] not in unfinished:
                        path.unlink()
            except (OSError, msgspec.MsgspecError) as error:
                raise ConfigError(OPTION, f"a batch in it cannot be read: {error}") from error

    def resume(self) -> None:
        """Go on with what an earlier server has not finished."""
        for batch in sorted(self._batches.values(), key=lambda batch: batch.order):
            if batch.status in UNFINISHED:
                self._start(batch)

    async def create(self, owner: str, request: BatchRequest) -> Batch:
        """Begin a batch.

        Raises:
            RequestError: the request is refused.
            ApiError: 404, there is no such file; 429, too many batches are unfinished.
        """
        files = self._state.files
        if request.endpoint not in ENDPOINTS:
            raise RequestError(f"endpoint must be one of {', '.join(ENDPOINTS)}", "endpoint", "invalid_value")
        file = files.find(owner, request.input_file_id, "input_file_id")
        if file.purpose != "batch":
            raise RequestError(f"the file's purpose is {file.purpose}, not batch", "input_file_id")
        if len(self._runs) >= MAX_UNFINISHED:
            message = f"at most {MAX_UNFINISHED} batches are unfinished at once"
            raise ApiError(429, message, "server_overloaded", headers={"retry-after": "60"})
        expiry = request.output_expires_after
        order = files.next_order()
        batch = Batch(
            id=f"{CONTINUED}{uuid.uuid4().hex}",
            owner=owner,
            order=order,
            model=self._state.names[0],
            endpoint=request.endpoint,
            input_file_id=file.id,
            completion_window=request.completion_window,
            expires_at=order // 10**9 + DAY,
            output_seconds=expiry.seconds if expiry is not None else KEPT_SECONDS,
            metadata=request.metadata,
        )
        self._batches[batch.id] = batch
        run = self._start(batch)
        await self._in_thread(run.save)
        await self._forget_old()
        return batch

    def find(self, owner: str, batch_id: str) -> Batch:
        """Raise ``ApiError`` 404 if there is no such batch, or it is someone else's."""
        batch = self._batches.get(batch_id)
        if batch is None or batch.owner != owner:
            raise ApiError(404, f"No batch found with id {batch_id[:100]!r}.", "batch_not_found", "batch_id")
        return batch

    def page(self, owner: str, limit: int, after: str | None) -> Page:
        """A part of an owner's batches, the newest first. Raises ``RequestError`` if there is no batch ``after``."""
        own = sorted((b for b in self._batches.values() if b.owner == owner), key=lambda b: -b.order)
        rest = own[after_index([batch.id for batch in own], after) :]
        return Page([batch.wire for batch in rest[:limit]], len(rest) > limit)

    async def cancel(self, owner: str, batch_id: str) -> dict[str, Any]:
        """End a batch early; one that ends already goes on to do so. Returns what it was when it was told to.

        Raises:
            ApiError: 404, there is no such batch; 409, it has ended.
        """
        batch = self.find(owner, batch_id)
        if batch.status in ("validating", "in_progress"):
            run = self._runs[batch_id]
            run.cancel()
            told = batch.wire
            await self._in_thread(run.save)
            return told
        elif batch.status not in ("cancelling", "cancelled", "finalizing"):
            message = f"Cannot cancel a batch with status '{batch.status}'."
            raise ApiError(409, message, "batch_not_cancellable", "batch_id")
        return batch.wire

    async def close(self) -> None:
        """Stop all of them where they are."""
        tasks = [run.task for run in self._runs.values()]
        for run in self._runs.values():
            run.stop()
        if tasks:
            await asyncio.wait(tasks)

    def _start(self, batch: Batch) -> BatchRun:
        run = self._runs[batch.id] = BatchRun(self._state, self._app, batch, self._turns)
        run.task.add_done_callback(lambda _: self._runs.pop(batch.id, None))
        return run

    async def _forget_old(self) -> None:
        oldest = self._state.files.clock() - KEPT_SECONDS
        ended = sorted((b for b in self._batches.values() if b.status not in UNFINISHED), key=lambda b: b.order)
        num_over = len(self._batches) - MAX_KEPT
        for number, batch in enumerate(ended):
            if number < num_over or batch.order < oldest * 10**9:
                del self._batches[batch.id]
                path = self._state.files.directory / f"{batch.id}.json"
                await self._in_thread(partial(path.unlink, missing_ok=True))

    async def _in_thread(self, work: Callable[[], None]) -> None:
        await self._state.pool.run_in_thread(SHORT_BYTES, work)
