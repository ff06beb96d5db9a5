"""A response while it is made: a task that reads a generation, writes a journal, and keeps the result."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from typing import Any, Literal

from server.dialects.dialect import Context
from server.dialects.responses import ResponsesDialect
from server.errors import api_error
from server.responses.journal import Journal, Reader, pack
from server.responses.objects import frame
from server.responses.store import Entry
from server.responses.turn import ResponseJob, Turn
from server.schemas.openai.items import MAX_ITEMS
from server.schemas.openai.responses import ResponsesRequest
from server.state import ServerState
from tandem.errors import RequestError, TandemError
from tandem.generation.generation import Generation

logger = logging.getLogger("tandem")

MAX_BACKGROUND = 1024  # responses that nobody need be waiting for
ITEM_BYTES = 512  # about what a kept item takes

Stop = Literal["cancel", "forget"]


class Run:
    """Makes one response. It is the owner of its generation, which ends with it.

    Attributes:
        request: what it answers.
        journal: its events, if anybody may want them.
    """

    def __init__(
        self, state: ServerState, owner: str, request: ResponsesRequest, context: Context, generation: Generation
    ) -> None:
        job = context.job
        assert isinstance(job, ResponseJob) and job.turn is not None
        self.request = request
        self.journal = Journal()
        self.has_journal = bool(request.stream or request.background)
        self._state = state
        self._owner = owner
        self._turn: Turn = job.turn
        self._generation = generation
        fixed = frame(request, context)
        self._key = (owner, fixed["id"])
        self._dialect = ResponsesDialect(context, fixed, self.has_journal, bool(request.background))
        self._stop: Stop | None = None
        self._begun = False
        self._error: Exception | None = None

    @property
    def response(self) -> dict[str, Any]:
        """The response as it is now."""
        return self._dialect.response()

    @property
    def size(self) -> int:
        """About how many bytes the response is."""
        return self._dialect.whole_size

    def start(self) -> None:
        """Begin; from here on the run is known to the server, until all is done."""
        self._state.runs[self._key] = self
        if self.request.background:
            self._begin()
        self._task = asyncio.create_task(self._run())

    async def wait(self) -> None:
        """Wait for the end.

        Raises:
            TandemError: as ``Generation.next``.
        """
        await asyncio.shield(self._task)
        if self._error is not None:
            raise self._error

    async def settled(self) -> None:
        """Wait for the end, whatever it is."""
        await asyncio.wait((self._task,))

    def stop(self, how: Stop) -> None:
        """End early. What is forgotten is not kept; what is cancelled is, as far as it came. Any number of times."""
        self._stop = "forget" if "forget" in (how, self._stop) else how
        self._generation.abort()

    async def keep_begun(self) -> None:
        """Keep the response before it is made. Raises ``sqlite3.Error``."""
        entry = self._entry(running=True)
        await self._state.pool.run_in_thread(ITEM_BYTES * len(entry.items), self._state.store.put, entry)

    def read(self, start: int = 0) -> Reader:
        """A reader of its events; one in the background goes on when the reader leaves."""
        return self.journal.read(start) if self.request.background else self.journal.join(_Owning(self, start))

    async def _run(self) -> None:
        blocks: list[bytes] = []
        try:
            try:
                await self._follow()
                blocks = await self._finish()
            except Exception as error:
                blocks = self._fail(error)
            if self._stop != "forget" and self.request.stored and (self._error is None or self._begun):
                await self._keep([*self.journal.blocks, *blocks])
        finally:
            self._generation.abort()
            self._state.runs.pop(self._key, None)
            self.journal.add(blocks)
            self.journal.close(self._error)

    async def _follow(self) -> None:
        dialect, pool = self._dialect, self._state.pool
        async for events in self._generation:
            if not self._begun:
                self._begin()
            self.journal.add(await pool.run(dialect.size(events), dialect.events, events))

    def _begin(self) -> None:
        self._begun = True
        self.journal.add(self._dialect.begin())

    async def _finish(self) -> list[bytes]:
        if self._stop is not None:
            self._dialect.cancel()
            return []
        return await self._state.pool.run(self.size, self._dialect.end)

    def _fail(self, error: Exception) -> list[bytes]:
        """What the journal tells of an error; nothing if nobody knows of the response yet."""
        if not isinstance(error, TandemError):
            logger.exception("a response failed")
        self._error = error
        return self._dialect.error(api_error(error)) if self._begun else []

    # ------------------------------------------------------------------ what is kept

    async def _keep(self, blocks: list[bytes]) -> None:
        """An answer that cannot be kept is given all the same."""
        entry = self._entry(running=False)
        size = self.size + sum(map(len, blocks)) + ITEM_BYTES * len(entry.items)
        try:
            await self._state.pool.run_in_thread(size, self._put, entry, blocks)
        except (sqlite3.Error, RequestError) as error:
            logger.error("a response could not be kept: %s", error)

    def _put(self, entry: Entry, blocks: list[bytes]) -> None:
        """Done in a thread."""
        store, turn = self._state.store, self._turn
        journal = pack(blocks) if self.has_journal else None
        store.put(
            Entry(entry.owner, "response", entry.id, entry.body, entry.items, entry.num_outputs, journal, False)
        )
        if turn.conversation is not None and entry.body["status"] in ("completed", "incomplete"):
            store.append(self._owner, turn.conversation, [*turn.new, *self._dialect.output], 2 * MAX_ITEMS)

    def _entry(self, running: bool) -> Entry:
        output = self._dialect.output
        items = [*self._turn.items, *output]
        return Entry(self._owner, "response", self._key[1], self.response, items, len(output), None, running)


class _Owning(Reader):
    """The reader for whom a response is made: when it leaves, nobody wants the rest."""

    def __init__(self, run: Run, start: int) -> None:
        super().__init__(run.journal, start)
        self._run = run

    def abort(self) -> None:
        """Read no more, and let the response end."""
        super().abort()
        if not self._journal.closed:
            self._run.stop("forget")
