"""Where long work on texts is done: a few threads beside the event loop, which itself never works."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SHORT_BYTES = 2048  # shorter work is done where it stands: a thread would take longer to reach
LARGE_BYTES = 2**16
MAX_LARGE_BYTES = 8 * 2**20  # of large work at once, unless one alone is larger
MAX_LARGE = 2
THREADS = 4  # two of them never do large work, so that short requests needn't wait for it


class WorkPool:
    """Runs functions in threads, by the size of what they work on. Belongs to one event loop.

    Tokenization takes about a hundred times the memory of its text, so large work is bounded in bytes. Whoever is
    cancelled while his work waits for its turn takes it along: it never begins.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="text")
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._num_large = 0
        self._large_bytes = 0

    async def run(self, size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Result of ``work``, which depends on ``size`` bytes: at once for a few, else in a thread."""
        if size < SHORT_BYTES:
            return work(*args, **kwargs)
        return await self.run_in_thread(size, work, *args, **kwargs)

    async def run_in_thread(self, size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for work that may take long whatever its size."""
        if size < LARGE_BYTES:
            return await asyncio.wrap_future(self._threads.submit(work, *args, **kwargs))
        await self._enter(size)
        future = self._threads.submit(_then_trim, partial(work, *args, **kwargs))
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda done: self._leave_from_thread(loop, done, size))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Let the threads end; idempotent."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _enter(self, size: int) -> None:
        if not self._waiting and self._has_room(size):
            self._take(size)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came in the same moment
                self._leave(size)
            raise

    def _has_room(self, size: int) -> bool:
        if self._num_large == 0:
            return True
        return self._num_large < MAX_LARGE and self._large_bytes + size <= MAX_LARGE_BYTES

    def _take(self, size: int) -> None:
        self._num_large += 1
        self._large_bytes += size

    def _leave(self, size: int) -> None:
        self._num_large -= 1
        self._large_bytes -= size
        while self._waiting and (self._waiting[0][1].done() or self._has_room(self._waiting[0][0])):
            waiting_size, turn = self._waiting.popleft()
            if not turn.done():
                self._take(waiting_size)
                turn.set_result(None)

    def _leave_from_thread(self, loop: asyncio.AbstractEventLoop, future: Future[Any], size: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._leave, size)


def _then_trim(work: Callable[[], T]) -> T:
    """Do work, then give what it has freed back to the system, which glibc by itself does not."""
    try:
        return work()
    finally:
        _trim()


def _find_trim() -> Callable[[], object]:
    if sys.platform != "linux":
        return lambda: None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc only
    return (lambda: trim(0)) if trim else (lambda: None)


_trim = _find_trim()
