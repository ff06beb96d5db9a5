"""``Answer`` over scripted generations, in orders that an engine may choose but seldom does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from server.answers import Answer, collect
from server.metrics import Metrics
from server.prompts import Prompt
from server.schemas.common import GenerationRequest
from tandem.engine import TokenLogprobs
from tandem.errors import EngineDeadError, RequestError, RequestFailedError
from tandem.generation.outputs import ChoiceDelta
from tandem.sampling_params import SamplingParams

ENTRY: list[TokenLogprobs | None] = [None, TokenLogprobs(1, -1.0, 1, [], [])]
Script = list[list[ChoiceDelta] | Exception]


class Scripted:
    """Stands for a generation: yields steps, raises exceptions."""

    def __init__(self, script: Script) -> None:
        self.arrival_time = time.monotonic()
        self.num_aborts = 0
        self._script = script

    async def __aiter__(self) -> AsyncIterator[list[ChoiceDelta]]:
        for step in self._script:
            await asyncio.sleep(0)
            if isinstance(step, Exception):
                raise step
            yield step

    def abort(self) -> None:
        self.num_aborts += 1


def answer(*scripts: Script | Exception, n: int = 1, **options: Any) -> tuple[Answer, list[Scripted]]:
    generations: list[Scripted] = []
    waiting = list(scripts)

    def generate(*args: Any, **kwargs: Any) -> Scripted:
        script = waiting.pop(0)
        if isinstance(script, Exception):
            raise script
        generations.append(Scripted(script))
        return generations[-1]

    model: Any = SimpleNamespace(generator=SimpleNamespace(generate=generate))
    prompts = [Prompt([1, 2], "ab") for _ in scripts]
    try:
        made = Answer(Metrics("m", lambda: None), model, prompts, SamplingParams(n=n, **options), GenerationRequest())
    except RequestError:
        assert all(generation.num_aborts for generation in generations)
        raise
    return made, generations


def delta(index: int, text: str, **fields: Any) -> ChoiceDelta:
    return ChoiceDelta(index, text, [7] * len(text), **fields)


async def steps(of: Answer) -> list[list[tuple[int, str]]]:
    return [[(index, delta.text) for index, delta in step] async for step in of]


def test_other_choices_wait_for_the_prompts_logprobs() -> None:
    script: Script = [
        [delta(1, "x")],
        [delta(1, "y", finish_reason="stop")],
        [delta(0, "a", prompt_logprobs=ENTRY)],
        [delta(0, "b", finish_reason="stop")],
    ]
    made, _ = answer(script, n=2, prompt_logprobs=0)
    assert asyncio.run(steps(made)) == [[(1, "x"), (1, "y"), (0, "a")], [(0, "b")]]
    assert made.prompt_logprobs == {0: ENTRY}


def test_prompts_are_numbered_through_and_counted() -> None:
    one: Script = [[delta(0, "a"), delta(1, "bb", num_cached_tokens=9)], [delta(0, "c", num_cached_tokens=1)]]
    two: Script = [[delta(1, "d", finish_reason="stop")], [delta(0, "e", finish_reason="length", stop_reason="z")]]
    made, generations = answer(one, two, n=2)
    choices = asyncio.run(collect(made))
    assert [(choice.index, choice.text) for choice in choices] == [(0, "ac"), (1, "bb"), (2, "e"), (3, "d")]
    assert choices[2].stop_reason == "z" and choices[2].finish_reason == "length"
    assert all(generation.num_aborts for generation in generations)
    assert made.usage == {
        "prompt_tokens": 4,
        "completion_tokens": 6,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        (EngineDeadError("gone"), EngineDeadError),
        ([delta(0, "", finish_reason="error", error="nan")], RequestFailedError),
    ],
)
def test_a_failure_ends_everything(count: int, ending: Any, kind: type[Exception]) -> None:
    scripts: list[Script] = [[[delta(0, "a")], ending]] + [[[delta(0, "b")]] * 50 for _ in range(count - 1)]
    made, generations = answer(*scripts)
    with pytest.raises(kind):
        asyncio.run(collect(made))
    assert all(generation.num_aborts for generation in generations)


def test_a_refused_prompt_takes_the_others_back() -> None:
    with pytest.raises(RequestError):
        answer([[delta(0, "a")]], RequestError("no", "prompt"))


def test_whoever_stops_early_leaves_nothing_behind() -> None:
    async def stop_early() -> int:
        made, generations = answer([[delta(0, "a")]] * 9, [[delta(0, "b")]] * 9)
        stream = made.__aiter__()
        await anext(stream)
        await stream.aclose()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert all(generation.num_aborts for generation in generations)
        return len(asyncio.all_tasks())

    assert asyncio.run(stop_early()) == 1
