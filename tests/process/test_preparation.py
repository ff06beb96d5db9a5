"""What may take long for one request is done beside the steps: compiling a grammar holds up nobody else."""

from __future__ import annotations

import asyncio

import pytest

from tests.process.helpers import eventually, finish, request, running

pytestmark = pytest.mark.usefixtures("stub")
SLOW = {"grammar": "slow", "eos_token_ids": (1,)}  # the stub takes half a second for it


def test_a_slow_preparation_holds_up_nobody_else() -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            slow = asyncio.create_task(finish(client.submit([request(max_tokens=2, **SLOW)])))
            await finish(client.submit([request(max_tokens=3)]))
            assert not slow.done(), "a request without a grammar waited for one"
            assert (await slow)[-1].finish_reason == "length"

    asyncio.run(scenario())


def test_an_abort_reaches_a_request_that_is_prepared() -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            dropped = client.submit([request(max_tokens=10_000, **SLOW)])
            await asyncio.sleep(0.1)
            dropped.abort()
            kept = client.submit([request(max_tokens=2, **SLOW)])
            await finish(kept)
            await eventually(lambda: client.stats.num_running == 0 and client.num_unfinished == 0)
            await asyncio.sleep(0.2)
            assert client.stats.num_running == 0, "it was added after its abort"

    asyncio.run(scenario())


def test_many_are_prepared_in_order() -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            streams = [client.submit([request(max_tokens=1, grammar="quick", eos_token_ids=(1,))]) for _ in range(50)]
            for stream in streams:
                assert (await finish(stream))[-1].finish_reason == "length"

    asyncio.run(scenario())


def test_a_grammar_without_an_end_is_refused_at_the_engines_door() -> None:
    async def scenario() -> None:
        async with running() as (_, client):
            [output] = await finish(client.submit([request(max_tokens=1, grammar="quick")]))
            assert output.finish_reason == "error" and "ends the output" in (output.error or "")

    asyncio.run(scenario())
