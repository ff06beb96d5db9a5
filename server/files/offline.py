"""``tandem run-batch``: a file of requests to a file of answers, without a server to ask."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from starlette.types import ASGIApp

from server.app import create_app
from server.config import ServerConfig
from server.files.lines import Answered, LineError, ServerEndingError, answer, custom_id_of, failed, read_line
from server.loading import load_model, start_engine
from server.state import ServerState

LINES_AHEAD = 4  # of those at work, so that one long answer does not hold up the others


@dataclass(slots=True)
class Summary:
    """How a batch went."""

    num_lines: int = 0
    num_failed: int = 0


async def run_batch(config: ServerConfig, lines: Iterable[bytes], answers: BinaryIO, concurrency: int) -> Summary:
    """Load the model, and answer each line in its turn; empty ones are passed over.

    Args:
        concurrency: lines at work at once.

    Raises:
        ConfigError, CheckpointError, EngineDeadError: the model cannot be loaded.
    """
    state = ServerState(config)
    try:
        resolved, supervisor = await start_engine(state)
        try:
            await load_model(state, resolved)
            return await _answer_all(state, create_app(state), lines, answers, concurrency)
        finally:
            if state.client is not None:
                await state.client.close()
            await supervisor.close()
    finally:
        state.close()


async def _answer_all(
    state: ServerState, app: ASGIApp, lines: Iterable[bytes], answers: BinaryIO, concurrency: int
) -> Summary:
    summary, at_work = Summary(), asyncio.Semaphore(concurrency)
    open_lines: deque[asyncio.Task[Answered]] = deque()

    async def answer_one(data: bytes) -> Answered:
        async with at_work:
            try:
                line = await state.pool.run(len(data), read_line, data)
            except LineError as wrong:
                return failed(custom_id_of(data), "invalid_line", str(wrong))
            try:
                return await answer(state, app, line)
            except ServerEndingError:
                return failed(line.custom_id, "engine_dead", state.health.detail)

    async def write_first() -> None:
        result = await open_lines[0]
        open_lines.popleft()
        summary.num_lines += 1
        summary.num_failed += result.failed
        answers.write(result.data)
        answers.flush()

    try:
        for data in lines:
            if not data.strip():
                continue
            open_lines.append(asyncio.create_task(answer_one(data)))
            if len(open_lines) >= LINES_AHEAD * concurrency:
                await write_first()
        while open_lines:
            await write_first()
    finally:
        for task in open_lines:
            task.cancel()
        await asyncio.gather(*open_lines, return_exceptions=True)
    return summary
