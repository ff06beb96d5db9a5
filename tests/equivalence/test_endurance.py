"""A thousand requests through a cache far too small for them: all come to their end, and nothing is left behind."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import psutil
import pytest
import torch

from optimized import OptimizedEngine
from optimized.runner import edits, sampler
from optimized.runner.local import LocalRunner
from optimized.scheduling import scheduler
from optimized.scheduling.block_pool import BlockPool
from optimized.scheduling.sequence import Sequence
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.answers import Answer, run
from tests.equivalence.comparison import assert_same
from tests.equivalence.helpers import SPECULATIVE, llama_optimized, llama_reference
from tests.reference.families import VOCAB

ROWS, BLOCK_SIZE = 64, 8
MAX_PROMPT, MAX_OUTPUT = 90, 30
MEAN_NEED = (MAX_PROMPT + MAX_OUTPUT) // 2  # tokens of a request; both lengths are uniform
POOL_TOKENS = ROWS * MEAN_NEED // 10

# What may be more at rest than it was at rest before. A request that left one object behind would make it hundreds.
MAX_NEW_OBJECTS = 100  # memory blocks of Python: the hash of each findable block, a dictionary that has grown
MAX_NEW_MEMORY = 8 << 20  # bytes: the allocator below cuts its memory up in new ways for a while
ABORTED_SHARE = 0.15
NUM_COMPARED = 7  # answers of each part


@dataclass
class Traffic:
    """Requests that arrive and are dropped while others run, all from one seed."""

    engine: OptimizedEngine
    draw: random.Random
    requests: dict[str, EngineRequest] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)
    num_requests: int = 0
    samples: list[bytes] = field(default_factory=list)  # requests with their answers, of no weight

    def serve(self, count: int) -> None:
        """So many further requests, from a state of rest to the next."""
        doomed: set[str] = set()
        prefixes = [self.draw.choices(range(VOCAB), k=MAX_PROMPT) for _ in range(8)]
        left = count
        while left or self.engine.has_unfinished:
            for _ in range(min(left, self.draw.choice([0, 0, 1, 2, 40]))):
                left -= 1
                request = self._request(prefixes)
                self.engine.add(request)
                self.requests[request.request_id] = request
                self.answers[request.request_id] = Answer()
                if self.draw.random() < ABORTED_SHARE:
                    doomed.add(request.request_id)
            for output in self.engine.step():
                assert output.request_id not in self.aborted, "an output after the abort"
                assert output.error is None, output
                self.answers[output.request_id].take(output)
            self._abort_some(doomed)
            self.engine.scheduler.check_integrity()

    def _request(self, prefixes: list[list[int]]) -> EngineRequest:
        draw = self.draw
        length = draw.randint(1, MAX_PROMPT)
        shared = draw.randint(0, length - 1)
        prompt = draw.choice(prefixes)[:shared] + draw.choices(range(VOCAB), k=length - shared)
        sampling = SamplingParams(
            temperature=draw.choice([0.0, 1.0]),
            top_p=draw.choice([1.0, 0.8]),
            repetition_penalty=draw.choice([1.0, 1.2]),
            logprobs=draw.choice([None, 2]),
            prompt_logprobs=draw.choice([None, None, 1]),
        )
        self.num_requests += 1
        return EngineRequest(
            request_id=str(self.num_requests),
            prompt_token_ids=prompt,
            sampling=sampling,
            max_tokens=draw.randint(0, MAX_OUTPUT),
            seed=draw.getrandbits(64),
            eos_token_ids=draw.choice([(), (7,)]),
            priority=draw.randint(0, 2),
            cache_salt=draw.choice(["", "a"]),
            group=f"group {self.num_requests // 5}",
        )

    def _abort_some(self, doomed: set[str]) -> None:
        """Each with a small probability a step, so that some wait, some run and some have ended by then."""
        for request_id in sorted(doomed):
            if self.draw.random() < 0.02:
                self.engine.abort(request_id)
                doomed.discard(request_id)
                if self.answers[request_id].finish_reason is None:
                    self.aborted.add(request_id)

    def close(self) -> None:
        """All have come to their end; keep a few of them, and forget the others."""
        finished = [request_id for request_id, answer in self.answers.items() if answer.finish_reason]
        assert {*finished, *self.aborted} == self.requests.keys() and finished and self.aborted
        pool, free_rows = self.engine.scheduler.pool, self.engine.scheduler._free_rows
        assert pool.num_free == pool.num_blocks and len(free_rows) == ROWS
        assert isinstance(self.engine.runner, LocalRunner)
        assert self.engine.runner.num_counted_rows <= 2 * ROWS
        for request_id in self.draw.sample(finished, NUM_COMPARED):
            self.samples.append(msgspec.json.encode((self.requests[request_id], self.answers[request_id])))
        self.requests.clear()
        self.answers.clear()
        self.aborted.clear()

    def compare(self) -> None:
        """What was kept, with the answers of the reference."""
        for sample in self.samples:
            request, answer = msgspec.json.decode(sample, type=tuple[EngineRequest, Answer])
            want = run(llama_reference(), [request])[request.request_id]
            assert_same(llama_reference(), request, answer, want)


@dataclass
class Rest:
    """What the process holds while the engine has nothing to do."""

    tensors: int
    sequences: int
    objects: int
    memory: int

    @classmethod
    def now(cls) -> Rest:
        gc.collect()
        alive = [type(item) for item in gc.get_objects()]
        tensors, sequences = alive.count(torch.Tensor), alive.count(Sequence)
        del alive
        return cls(tensors, sequences, sys.getallocatedblocks(), psutil.Process().memory_info().rss)

    def assert_no_more_than(self, before: Rest) -> None:
        assert self.tensors <= before.tensors and self.sequences <= before.sequences, (before, self)
        assert self.objects - before.objects < MAX_NEW_OBJECTS, (before, self)
        assert self.memory - before.memory < MAX_NEW_MEMORY, (before, self)


def endure(count: int) -> Traffic:
    """Three equal parts with a rest after each: the first warms up, the others must leave nothing behind."""
    traffic = Traffic(
        llama_optimized(
            num_tokens=POOL_TOKENS,
            max_num_seqs=ROWS,
            max_num_batched_tokens=256,
            block_size=BLOCK_SIZE,
            scheduling_policy="priority",
            speculative_config=SPECULATIVE[0],
        ),
        random.Random(5),
    )
    assert traffic.engine.info.kv_cache_tokens == POOL_TOKENS
    gc.collect()
    gc.freeze()  # only what is made from here on is looked through
    rests = []
    try:
        for _ in range(3):
            traffic.serve(count)
            traffic.close()
            rests.append(Rest.now())
    finally:
        gc.unfreeze()
    for rest in rests[1:]:
        rest.assert_no_more_than(rests[0])
    return traffic


def test_a_thousand_requests_leave_nothing_behind() -> None:
    traffic = endure(334)
    traffic.compare()
    stats = traffic.engine.stats
    assert stats.num_preemptions > 100 and stats.num_prefix_hits > 100


LEAKS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {}


def leak(function: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    LEAKS[function.__name__] = function
    return function


@leak
def blocks(patch: pytest.MonkeyPatch) -> None:
    right = BlockPool.release
    patch.setattr(BlockPool, "release", lambda self, held: right(self, held[:9]))


@leak
def rows_of_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(edits.Slots, "give_back", lambda self, slot: None)


@leak
def turns_of_groups(patch: pytest.MonkeyPatch) -> None:
    right, kept = scheduler.Scheduler._leave_group, []

    def wrong(self: Any, group: str) -> None:
        kept.append(group)
        right(self, group)

    patch.setattr(scheduler.Scheduler, "_leave_group", wrong)


@leak
def sequences(patch: pytest.MonkeyPatch) -> None:
    right, kept = scheduler.Scheduler._preempt, []

    def wrong(self: Any, sequence: Sequence) -> None:
        kept.append(sequence)
        right(self, sequence)

    patch.setattr(scheduler.Scheduler, "_preempt", wrong)


@leak
def logits(patch: pytest.MonkeyPatch) -> None:
    right, kept = sampler.Sampler.sample, []

    def wrong(self: Any, logits: torch.Tensor, *args: Any) -> Any:
        kept.append(logits)
        return right(self, logits, *args)

    patch.setattr(sampler.Sampler, "sample", wrong)


@leak
def a_number_each(patch: pytest.MonkeyPatch) -> None:
    right, kept = OptimizedEngine.add, []

    def wrong(self: OptimizedEngine, request: EngineRequest) -> None:
        kept.append(request.seed)
        right(self, request)

    patch.setattr(OptimizedEngine, "add", wrong)


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    LEAKS[name](monkeypatch)
    with pytest.raises(AssertionError):
        endure(80)


def test_without_a_leak_as_few_requests_leave_nothing_behind() -> None:
    endure(80)
