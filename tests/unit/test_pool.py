"""Work beside the event loop: by size, bounded in bytes, dropped when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from server.intake.pool import LARGE_BYTES, MAX_LARGE, MAX_LARGE_BYTES, SHORT_BYTES, THREADS, WorkPool


def scenario(body: Callable[[WorkPool], Awaitable[None]]) -> None:
    async def run() -> None:
        pool = WorkPool()
        try:
            await body(pool)
        finally:
            pool.close()

    asyncio.run(run())


class Gate:
    """Work that waits to be let through; counts who has begun, and how many were inside at once."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun = self.inside = self.most = 0
        self._lock = threading.Lock()

    def work(self) -> None:
        with self._lock:
            self.begun += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.open.wait(10)
        with self._lock:
            self.inside -= 1


async def begun(gate: Gate, count: int) -> None:
    for _ in range(500):
        if gate.begun == count:
            break
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert gate.begun == count


def test_only_short_work_is_done_by_the_loop_itself() -> None:
    async def body(pool: WorkPool) -> None:
        own = threading.get_ident()
        assert await pool.run(SHORT_BYTES - 1, threading.get_ident) == own
        for size in (SHORT_BYTES, LARGE_BYTES, MAX_LARGE_BYTES * 9):
            assert await pool.run(size, threading.get_ident) != own
        assert await pool.run_in_thread(0, threading.get_ident) != own

    scenario(body)


@pytest.mark.parametrize("size", [LARGE_BYTES, MAX_LARGE_BYTES // 2 + 1, MAX_LARGE_BYTES * 4])
def test_large_work_is_bounded_and_leaves_threads_to_short_work(size: int) -> None:
    async def body(pool: WorkPool) -> None:
        gate = Gate()
        at_once = MAX_LARGE if 2 * size <= MAX_LARGE_BYTES else 1
        tasks = [asyncio.create_task(pool.run(size, gate.work)) for _ in range(3 * THREADS)]
        await begun(gate, at_once)
        assert await asyncio.wait_for(pool.run(SHORT_BYTES, lambda: "short"), 5) == "short"
        gate.open.set()
        await asyncio.gather(*tasks)
        assert gate.begun == 3 * THREADS and gate.most == at_once

    scenario(body)


def test_who_is_cancelled_takes_his_work_along() -> None:
    async def body(pool: WorkPool) -> None:
        for size in (LARGE_BYTES, SHORT_BYTES):
            gate = Gate()
            tasks = [asyncio.create_task(pool.run(size, gate.work)) for _ in range(20)]
            running = MAX_LARGE if size == LARGE_BYTES else THREADS
            await begun(gate, running)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            last = asyncio.create_task(pool.run(size, gate.work))
            await begun(gate, running)  # what runs still has its bytes
            gate.open.set()
            await last
            assert gate.begun == running + 1

    scenario(body)


def test_an_error_is_its_callers() -> None:
    async def body(pool: WorkPool) -> None:
        for size in (0, SHORT_BYTES, LARGE_BYTES):
            with pytest.raises(ZeroDivisionError):
                await pool.run(size, lambda: 1 // 0)
        assert await pool.run(LARGE_BYTES, lambda: 1) == 1

    scenario(body)
