"""Submissions of thousands of choices: small on the wire, and no stall for anybody."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from msgspec.structs import replace

from tandem import SamplingParams
from tandem.engine import EngineRequest
from tandem.process.submission import pack
from tests.process.helpers import finish, request, running
from tests.process.stub import VOCABULARY

pytestmark = pytest.mark.usefixtures("stub")


def submission(name: str, num_prompts: int = 32, n: int = 128, length: int = 4000) -> list[EngineRequest]:
    """What one HTTP request of many long prompts becomes."""
    draw = random.Random(name)
    sampling = SamplingParams(n=n, allowed_token_ids=range(VOCABULARY))
    return [
        request(
            request_id=f"{name}-{p:030x}-{i}",
            prompt=prompt,
            sampling=sampling,
            max_tokens=1,
            choice_index=i,
            group=name,
        )
        for p, prompt in enumerate([draw.randrange(VOCABULARY) for _ in range(length)] for _ in range(num_prompts))
        for i in range(n)
    ]


def test_a_prompt_travels_once_with_its_choices() -> None:
    requests = submission("a")
    began = time.thread_time()  # other processes do not count
    packed = pack(requests)
    seconds = time.thread_time() - began
    size = sum(map(len, [*packed.shared, *packed.prompts]))
    print(f"{len(requests)} choices of 4,000 tokens: {size / 1e6:.2f} MB in {seconds * 1e3:.1f} ms")
    assert len(packed.shared) == 1 and len(packed.prompts) == 32
    assert size < 32 * 4000 * 4 + 4096 * 40
    assert seconds < 0.25


def test_sixty_submissions_of_thousands_of_choices_are_no_stall() -> None:
    async def scenario() -> None:
        async with running() as (supervisor, client):
            small = client.submit([request(max_tokens=200)])
            await small.next()
            requests = submission("a")
            streams, states, slowest = [], set(), 0.0
            for number in range(60):
                named = [replace(r, request_id=f"{number}/{r.request_id}", group=str(number)) for r in requests]
                began = time.thread_time()
                streams.append(client.submit(named))
                await asyncio.sleep(0)
                await asyncio.sleep(0)  # it has been sent
                slowest = max(slowest, time.thread_time() - began)
                states.add(client.status.state)
            print(f"60 submissions of 4,096 choices: the slowest held the event loop {slowest * 1e3:.0f} ms")
            for stream in (*streams, small):
                outputs = await finish(stream, 120)
                assert outputs[-1].finish_reason == "length"
                states.add(client.status.state)
            assert states == {"ready"}
            assert supervisor.status.state == "ready" and slowest < 0.5

    asyncio.run(scenario())
