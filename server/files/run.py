"""A batch while it is answered: lines in, two files of answers out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, ParamSpec, TypeVar

import msgspec
from starlette.types import ASGIApp

from server.errors import ApiError, api_error
from server.files.batch import Batch, Counts, Problem, Usage, requests_of, validate
from server.files.lines import Answered, ServerEndingError, answer, custom_id_of, failed, read_line
from server.files.store import PARTIAL, Draft, write_whole
from server.intake.pool import SHORT_BYTES
from server.state import ServerState

logger = logging.getLogger("tandem")

P = ParamSpec("P")
T = TypeVar("T")

POLL_SECONDS = 0.05
KINDS: tuple[Literal["output", "error"], ...] = ("output", "error")


class Turns:
    """Which lines may begin: few at once, and none that clients would have to wait behind.

    At most ``--max-batch-lines``, and at most half of what the engine runs at once, are at work. Another one begins
    only while nothing waits for room in the engine, unless no line is at work, so that batches end on a busy server.
    """

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._num_lines = 0
        self._entrance = asyncio.Lock()

    async def enter(self) -> None:
        """Wait for a turn, first come first served; to be left whatever happens."""
        async with self._entrance:
            while self._num_lines and not self._has_room():
                await asyncio.sleep(POLL_SECONDS)
            self._num_lines += 1

    def leave(self) -> None:
        """A line is done."""
        self._num_lines -= 1

    def _has_room(self) -> bool:
        state, most = self._state, self._state.config.max_batch_lines
        if state.model is None or state.client is None:
            return False
        stats, rows = state.client.stats, state.model.resolved.engine.scheduler.max_num_seqs
        return self._num_lines < min(most, max(1, rows // 2)) and stats.num_waiting <= stats.num_deferred


class BatchRun:
    """Answers one batch, from the state it is in to its end: ``task`` is done when it has ended, or is left."""

    def __init__(self, state: ServerState, app: ASGIApp, batch: Batch, turns: Turns) -> None:
        self.batch = batch
        self._state = state
        self._app = app
        self._turns = turns
        self._drafts: dict[str, Draft] = {}
        self._done: set[str] = set()  # custom ids of lines that an earlier server has answered
        self._lock = threading.RLock()
        self._work: asyncio.Task[None] = asyncio.create_task(self._process())
        self.task = asyncio.create_task(self._run())

    def cancel(self) -> None:
        """End early: lines at work are given up, answers that there are stay."""
        self.batch.enter("cancelling", self._state.files.clock())
        self._work.cancel()

    def stop(self) -> None:
        """End with the server, in the middle."""
        self._work.cancel()

    def save(self) -> None:
        """Keep what is known of the batch over the server's end; waits for a disk."""
        files = self._state.files
        with self._lock:
            if files.is_lasting:
                write_whole(files.directory / f"{self.batch.id}.json", msgspec.json.encode(self.batch))

    # ------------------------------------------------------------------ from beginning to end

    async def _run(self) -> None:
        batch, error = self.batch, await self._outcome()
        try:
            if isinstance(error, TimeoutError):
                await self._in_thread(self._expire)
                await self._in_thread(self._finish, "expired")
            elif batch.status == "cancelling":
                await self._in_thread(self._finish, "cancelled")
            elif isinstance(error, ServerEndingError | asyncio.CancelledError):
                self._leave()
            elif error is not None or batch.errors:
                self._blame(error)
                await self._in_thread(self._finish, "failed")
            else:
                batch.enter("finalizing", self._state.files.clock())
                await self._in_thread(self._finish, "completed")
        except Exception as wrong:
            self._blame(wrong)
            batch.enter("failed", self._state.files.clock())
            for draft in self._drafts.values():
                draft.discard()

    def _blame(self, error: BaseException | None) -> None:
        if error is None:
            return
        refusal = api_error(error) if isinstance(error, Exception) else api_error(Exception())
        if refusal.status >= 500:
            logger.error("batch %s failed", self.batch.id, exc_info=error)
        self.batch.errors = [Problem(refusal.code, str(refusal), None, refusal.param)]

    async def _outcome(self) -> BaseException | None:
        await asyncio.wait((self._work,))
        if self._work.cancelled():
            return asyncio.CancelledError()
        error = self._work.exception()
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        return error

    async def _process(self) -> None:
        batch, clock = self.batch, self._state.files.clock
        async with asyncio.timeout(max(0.0, batch.expires_at - clock())):
            if batch.status == "cancelling":
                return
            file = await self._in_thread(self._open_input)
            with file:
                limit = self._state.config.max_body_bytes
                if batch.status == "validating":
                    total, batch.errors = await self._in_thread(validate, file, batch.endpoint, limit)
                    if batch.errors:
                        return
                    batch.counts = Counts(total=total)
                    batch.enter("in_progress", clock())
                await self._in_thread(self._begin)
                file.seek(0)
                await self._answer_all(requests_of(file, limit))

    async def _answer_all(self, lines: Iterator[tuple[int, bytes]]) -> None:
        async with asyncio.TaskGroup() as group:
            while not self._state.draining and (data := await self._in_thread(self._next, lines)) is not None:
                await self._turns.enter()
                if self._state.draining:
                    self._turns.leave()
                    break
                group.create_task(self._answer(data)).add_done_callback(lambda _: self._turns.leave())
        if self.batch.counts.completed + self.batch.counts.failed < self.batch.counts.total:
            raise ServerEndingError

    async def _answer(self, data: bytes) -> None:
        line = await self._state.pool.run(len(data), read_line, data)
        try:
            answered = await answer(self._state, self._app, line, self.batch.owner)
        except ServerEndingError:
            return  # noticed when all lines at work are done
        await self._in_thread(self._keep, answered)

    # ------------------------------------------------------------------ done in threads

    def _open_input(self) -> BinaryIO:
        files = self._state.files
        return files.path(files.find(self.batch.owner, self.batch.input_file_id)).open("rb")

    def _begin(self) -> None:
        """Have files to write answers to: those that an earlier server has left, if there are any."""
        files, counts = self._state.files, self.batch.counts
        with self._lock:
            if self._drafts or not counts.total:
                return
            self.batch.usage = Usage()
            for kind in KINDS:
                name = f"{self.batch.id}.{kind}"
                found = _recover(files.directory / f"{name}{PARTIAL}")
                self._done.update(custom_id for custom_id, _ in found)
                for _, usage in found:
                    self.batch.usage.add(usage)
                setattr(counts, "completed" if kind == "output" else "failed", len(found))
                self._drafts[kind] = files.draft(self.batch.owner, name)
            self.save()

    def _next(self, lines: Iterator[tuple[int, bytes]]) -> bytes | None:
        for _, data in lines:
            if not self._done or custom_id_of(data) not in self._done:
                return data
        return None

    def _keep(self, answered: Answered) -> None:
        self._drafts["error" if answered.failed else "output"].write(answered.data, is_bounded=False)
        metrics, counts = self._state.metrics, self.batch.counts
        with self._lock:
            counts.failed += answered.failed
            counts.completed += not answered.failed
            self.batch.usage.add(answered.usage)
        metrics.batch_requests[("failed" if answered.failed else "completed",)].inc()

    def _expire(self) -> None:
        """Say of each line without an answer that it has none."""
        self._begin()
        for draft in self._drafts.values():
            self._done.update(custom_id for custom_id, _ in _recover(draft.path))
        with contextlib.suppress(ApiError), self._open_input() as file:  # it may have been deleted
            for _, data in requests_of(file, self._state.config.max_body_bytes):
                if self._drafts and (custom_id := custom_id_of(data)) not in self._done:
                    message = "the completion window was over before this request had an answer"
                    self._keep(failed(custom_id, "batch_expired", message))

    def _finish(self, status: Literal["completed", "failed", "expired", "cancelled"]) -> None:
        batch = self.batch
        self._begin()
        for kind in KINDS:
            draft = self._drafts.pop(kind, None)
            if draft is not None and draft.size:
                file = draft.keep(f"{batch.id}_{kind}.jsonl", "batch_output", batch.output_seconds)
                setattr(batch, f"{kind}_file_id", file.id)
            elif draft is not None:
                draft.discard()
        batch.enter(status, self._state.files.clock())
        self.save()
        counts = batch.counts
        logger.info("Batch %s %s: %d of %d requests answered, %d failed", batch.id, status, counts.completed,
                    counts.total, counts.failed)  # fmt: skip

    def _leave(self) -> None:
        for draft in self._drafts.values():
            draft.close()
        counts, lasts = self.batch.counts, self._state.files.is_lasting
        outlook = "the next server with this --files-dir goes on" if lasts else "without --files-dir, it is lost"
        num_done = counts.completed + counts.failed
        logger.warning("Batch %s stops after %d of %d requests: %s", self.batch.id, num_done, counts.total, outlook)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._state.pool.run_in_thread(SHORT_BYTES, work, *args, **kwargs)


def _recover(path: Path) -> list[tuple[str, Any]]:
    """Custom ids and usages of the lines in a file of answers; a last one that is not whole is cut off."""
    if not path.exists():
        return []
    found, end = [], 0
    with path.open("rb") as file:
        for data in file:
            if not data.endswith(b"\n"):
                break
            found.append(_id_and_usage(data))
            end += len(data)
    os.truncate(path, end)
    return found


def _id_and_usage(data: bytes) -> tuple[str, Any]:
    result = msgspec.json.decode(data)
    body = result["response"]["body"] if result["response"] else None
    return result["custom_id"], body.get("usage") if isinstance(body, dict) else None
