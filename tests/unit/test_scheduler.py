"""The scheduler's policy, without a model: a step here only counts tokens and appends zeros."""

from __future__ import annotations

from typing import Any

import pytest

from optimized.scheduling.block_pool import BlockPool
from optimized.scheduling.scheduler import Schedule, Scheduler, SchedulerConfig
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams


def scheduler(num_blocks: int = 100, **changes: Any) -> Scheduler:
    options = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "block_size": 4} | changes
    config = SchedulerConfig(**options)
    return Scheduler(config, BlockPool(num_blocks, config.prefix_caching))


def request(name: str, length: int = 8, **fields: Any) -> EngineRequest:
    start = sum(map(ord, name)) * 1000
    tokens = fields.pop("tokens", list(range(start, start + length)))
    sampling = fields.pop("sampling", SamplingParams())
    return EngineRequest(request_id=name, prompt_token_ids=tokens, sampling=sampling, max_tokens=99, seed=0, **fields)


def step(s: Scheduler) -> dict[str, int]:
    """One step; returns tokens by request."""
    schedule = s.schedule()
    carry_out(s, schedule)
    return {work.sequence.request.request_id: work.num_tokens for work in schedule.work}


def carry_out(s: Scheduler, schedule: Schedule) -> None:
    for work in schedule.work:
        samples = work.samples
        s.computed(work)
        if samples:
            work.sequence.token_ids.append(0)
    s.check_integrity()


def test_decodes_and_prompts_share_one_budget() -> None:
    s = scheduler()
    s.add(request("a", 10))
    assert step(s) == {"a": 10}
    s.add(request("b", 20))
    assert step(s) == {"a": 1, "b": 15}
    assert step(s) == {"a": 1, "b": 5}
    assert step(s) == {"a": 1, "b": 1}


def test_without_chunks_a_prompt_waits_until_it_fits_a_step_whole() -> None:
    s = scheduler(chunked_prefill=False)
    for name, length in (("a", 10), ("b", 10), ("c", 40)):
        s.add(request(name, length))
    assert step(s) == {"a": 10}
    assert step(s) == {"a": 1, "b": 10}
    s.finish("a")
    s.finish("b")
    assert step(s) == {"c": 16}, "one that fits no step is cut all the same"


def test_no_more_run_than_there_are_rows_and_first_come_is_first_served() -> None:
    s = scheduler(max_num_seqs=2)
    for name in "abc":
        s.add(request(name, 4))
    assert step(s) == {"a": 4, "b": 4}
    s.finish("a")
    assert step(s) == {"b": 1, "c": 4}


def test_priority_comes_before_arrival_where_it_is_asked_for() -> None:
    for by_priority, first in ((True, "b"), (False, "a")):
        s = scheduler(max_num_seqs=1, by_priority=by_priority)
        s.add(request("a", priority=1))
        s.add(request("b", priority=0))
        assert list(step(s)) == [first]


def test_when_blocks_run_out_the_last_gives_way_and_comes_back() -> None:
    s = scheduler(num_blocks=5, prefix_caching=False)
    s.add(request("a", 8))
    s.add(request("b", 8))
    step(s)
    assert step(s) == {"a": 1}, "both need a block and one is left"
    assert s.num_preemptions == 1 and s.num_waiting == 1
    for _ in range(3):
        step(s)
    s.finish("a")
    assert step(s) == {"b": 9}, "its own token was kept"


def test_a_prefix_is_computed_once() -> None:
    s = scheduler(max_num_batched_tokens=100)
    shared = list(range(20))
    s.add(request("a", tokens=[*shared, 1]))
    s.add(request("b", tokens=[*shared, 2]))
    assert step(s) == {"a": 21}, "b waits for what a computes in this very step"
    assert step(s) == {"a": 1, "b": 1}
    assert (s.num_prefix_queries, s.num_prefix_hits) == (42, 20)
    s.finish("a")
    s.finish("b")
    s.add(request("c", tokens=[*shared]))
    assert step(s) == {"c": 4}, "the last token is computed always, and with it its block"
    s.add(request("d", tokens=[*shared, 3], cache_salt="other"))
    assert step(s) == {"c": 1, "d": 21}
    s.add(request("e", tokens=[*shared, 4], sampling=SamplingParams(prompt_logprobs=0)))
    assert step(s)["e"] == 21


def test_finishing_frees_all_and_an_unknown_id_is_ignored() -> None:
    s = scheduler()
    s.add(request("a"))
    s.add(request("b"))
    with pytest.raises(ValueError, match="unfinished"):
        s.add(request("a"))
    step(s)
    for name in ("a", "b", "b", "never"):
        s.finish(name)
    assert not s.has_unfinished and s.pool.num_free == s.pool.num_blocks
    assert step(s) == {}


def test_waiting_ones_can_be_dropped() -> None:
    s = scheduler(max_num_seqs=1)
    for name in "abc":
        s.add(request(name, 4))
    step(s)
    s.finish("b")
    s.finish("a")
    assert step(s) == {"c": 4}
