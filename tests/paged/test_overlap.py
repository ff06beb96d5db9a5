"""A step is begun before the one before it is waited for, wherever its tokens are not needed to lay it out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from optimized import OptimizedEngine
from optimized.runner.sampler import Drawing
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.helpers import llama_reference, run
from tests.paged.helpers import assert_as_told, paged_llama, poison


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """``begin`` and ``wait``, as they happen."""
    happened: list[str] = []
    begin, wait = OptimizedEngine._draw, Drawing.take

    def noted_begin(self: OptimizedEngine, *args: Any) -> Any:
        happened.append("begin")
        return begin(self, *args)

    def noted_wait(self: Drawing) -> Any:
        happened.append("wait")
        return wait(self)

    monkeypatch.setattr(OptimizedEngine, "_draw", noted_begin)
    monkeypatch.setattr(Drawing, "take", noted_wait)
    return happened


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 0, "min_tokens": 3, "logit_bias": {3: 2.0}, "allowed_token_ids": [3, 4, 5, 6]},
    ],
)
def test_a_step_begins_before_the_one_before_is_waited_for(sampling: dict[str, Any], order: list[str]) -> None:
    requests = [asked(str(i), 5, 4, **sampling) for i in range(3)]
    assert_as_told(requests, run(paged_llama(max_num_seqs=3), requests))
    assert order == ["begin", *["begin", "wait"] * 3, "wait"], "four steps, no step in vain"


def test_no_more_than_two_steps_are_under_way_while_a_long_prompt_is_computed(order: list[str]) -> None:
    request = asked("r", 40, 2)
    assert_as_told([request], run(paged_llama(max_num_seqs=1, max_num_batched_tokens=8), [request]))
    assert order == ["begin", *["begin", "wait"] * 5, "wait"]


@pytest.mark.parametrize(
    "sampling", [{"logprobs": 1}, {"repetition_penalty": 1.2}, {"frequency_penalty": 0.5}, {"presence_penalty": 0.5}]
)
def test_what_needs_the_token_before_waits_for_it(sampling: dict[str, Any], order: list[str]) -> None:
    requests = [asked(str(i), 5, 4, **sampling if i == 1 else {}) for i in range(3)]
    assert_as_told(requests, run(paged_llama(max_num_seqs=3), requests))
    assert order == ["begin", "wait"] * 4


def test_an_end_that_nobody_foresaw_costs_one_step_in_vain(order: list[str]) -> None:
    """Its result is not seen, not even by a new request of the same name."""
    [told] = run(llama_reference(), [asked("r", 5, 9)]).values()
    stop = next(i for i, token in enumerate(told.token_ids) if i > 1 and told.token_ids.index(token) == i)
    request = asked("r", 5, 9, stop_token_ids=[told.token_ids[stop]])
    engine = paged_llama(max_num_seqs=1)
    engine.add(request)
    tokens: list[int] = []
    while True:
        outputs = engine.step()
        tokens += [token for output in outputs for token in output.new_token_ids]
        if any(output.finish_reason for output in outputs):
            break
    assert tokens == told.token_ids[: stop + 1]
    assert Counter(order) == {"begin": stop + 2, "wait": stop + 1}
    assert engine.has_unfinished and engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks
    other = asked("r", 7, 3)
    assert_as_told([other], run(engine, [other]))


def test_blocks_with_tokens_that_were_being_drawn_can_be_found() -> None:
    engine = paged_llama(max_num_seqs=1, block_size=4)
    first = asked("r", 9, 20)
    [told] = run(engine, [first]).values()
    again = EngineRequest(
        request_id="again",
        prompt_token_ids=[*first.prompt_token_ids, *told.token_ids],
        sampling=SamplingParams(temperature=0),
        max_tokens=3,
        seed=0,
    )
    assert_as_told([again], run(engine, [again]))
    assert engine.stats.num_prefix_hits == 24, "28 were computed, but of the last block one was not known in time"


def test_who_leaves_while_a_step_is_under_way_is_not_heard_of_again() -> None:
    engine = paged_llama(max_num_seqs=2)
    requests = [asked(name, 5, 9) for name in ("gone", "stays")]
    for request in requests:
        engine.add(request)
    assert engine.step() == []
    engine.abort("gone")
    heard = []
    while engine.has_unfinished:
        poison(engine)
        heard += engine.step()
        engine.scheduler.check_integrity()
    assert {output.request_id for output in heard} == {"stays"}
    assert len(heard) == 9


def asked(name: str, length: int, max_tokens: int, **sampling: Any) -> EngineRequest:
    prompt = [(7 * j + len(name) + sum(map(ord, name))) % 90 for j in range(length)]
    params = SamplingParams(**({"temperature": 0} | sampling))
    return EngineRequest(request_id=name, prompt_token_ids=prompt, sampling=params, max_tokens=max_tokens, seed=5)
