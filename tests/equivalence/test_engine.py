"""A run of requests: arrivals, aborts, shared prefixes and pools too small for them, sent to both engines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from optimized import OptimizedEngine
from optimized.runner.local import LocalRunner
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.answers import Answer, run
from tests.equivalence.helpers import (
    RUNNERS,
    assert_as_reference,
    engine_requests,
    llama_optimized,
    poison,
    scheduler_options,
)


class Lockstep(RuleBasedStateMachine):
    """Whatever arrives in whatever order, each request is answered as the reference answers it alone.

    Free blocks spoil every answer that reads them.
    """

    runners = ("twins", "kernels", "gpu", "gpu")

    @initialize(options=scheduler_options, data=st.data())
    def start(self, options: dict[str, Any], data: st.DataObject) -> None:
        self.engine = llama_optimized(data.draw(st.sampled_from(self.runners)), **options)
        self.requests: dict[str, EngineRequest] = {}
        self.answers: dict[str, Answer] = {}
        self.aborted: set[str] = set()

    @rule(request=engine_requests())
    def add(self, request: EngineRequest) -> None:
        limit = self.engine.info.kv_cache_tokens
        if len(request.prompt_token_ids) + request.max_tokens > limit:  # admission refuses it
            return
        self.engine.add(request)
        self.requests[request.request_id] = request
        self.answers[request.request_id] = Answer()

    @rule(count=st.integers(1, 12))
    def step(self, count: int) -> None:
        for _ in range(count):
            poison(self.engine)
            for output in self.engine.step():
                assert output.request_id not in self.aborted, "an output after the abort"
                self.answers[output.request_id].take(output)
            self.engine.scheduler.check_integrity()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        self.engine.abort(request_id)
        if self.answers[request_id].finish_reason is None:
            self.aborted.add(request_id)

    @rule()
    def forget_prefixes(self) -> None:
        self.engine.reset_prefix_cache()

    @rule(level=st.integers(1, 2))
    def sleep_and_wake_up(self, level: int) -> None:
        self.engine.sleep(level)
        assert not self.engine.has_unfinished and self.engine.step() == []
        self.engine.wake_up()

    @invariant()
    def accounts_agree(self) -> None:
        if hasattr(self, "engine"):
            self.engine.scheduler.check_integrity()
            unfinished = [i for i, a in self.answers.items() if a.finish_reason is None and i not in self.aborted]
            # a step in flight may be all that is left
            assert self.engine.has_unfinished or not unfinished
            assert self.engine.scheduler.has_unfinished == bool(unfinished)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        while self.engine.has_unfinished:
            self.step(1)
        pool = self.engine.scheduler.pool
        assert pool.num_free == pool.num_blocks, "blocks were lost"
        assert_as_reference([r for i, r in self.requests.items() if i not in self.aborted], self.answers)
        self.engine.close()


class InAnotherProcess(Lockstep):
    """The same law for a runner in a process of its own, which takes seconds to start: few, but long runs."""

    runners = ("process",)


Lockstep.TestCase.settings = settings(max_examples=settings().max_examples * 3, stateful_step_count=20)
TestLockstep = Lockstep.TestCase
InAnotherProcess.TestCase.settings = settings(
    max_examples=max(2, settings().max_examples // 7), stateful_step_count=40
)
TestInAnotherProcess = InAnotherProcess.TestCase


@pytest.mark.parametrize("kind", RUNNERS)
def test_preempted_sequences_are_computed_again_into_other_blocks(kind: str) -> None:
    engine = llama_optimized(kind, 96, max_num_seqs=5, block_size=4)
    requests = [greedy(str(i), [i + 1] * (5 + i), 30) for i in range(5)]
    assert_as_reference(requests, run(engine, requests))
    assert engine.stats.num_preemptions > 0
    engine.close()


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_cached_prefix_is_read_where_it_is(kind: str) -> None:
    engine = llama_optimized(kind, max_num_seqs=3, block_size=4)
    requests = [greedy(str(i), [*range(2, 30), i], 8) for i in range(6)]
    assert_as_reference(requests, run(engine, requests))
    assert engine.stats.num_prefix_hits >= 5 * 28
    engine.close()


@pytest.mark.parametrize("kind", ["twins", "kernels", "gpu"])
@pytest.mark.parametrize("prompt_logprobs", [None, 1])
def test_a_nan_ends_one_request_and_spoils_no_other(prompt_logprobs: int | None, kind: str) -> None:
    """A token whose embedding is NaN: its request fails, its neighbours and the next owner of its blocks do not."""
    engine = llama_optimized(kind, max_num_seqs=3, enable_prefix_caching=False)
    spoil_embedding(engine, 50)
    bad, aborted = greedy("bad", [1, 50, 3] * 9, 9, prompt_logprobs), greedy("aborted", [50] * 30, 9, prompt_logprobs)
    good = [greedy(f"good{i}", [i + 1, 2, 3], 9, prompt_logprobs) for i in range(6)]
    engine.add(aborted)
    engine.step()
    engine.abort("aborted")
    answers = run(engine, [good[0], bad, *good[1:]])
    assert answers["bad"].finish_reason == "error" and answers["bad"].error
    assert_as_reference(good, answers)


@pytest.mark.parametrize("kind", ["twins", "gpu", "process"])
def test_the_trace_is_that_of_the_step(kind: str) -> None:
    engine = llama_optimized(kind, max_num_seqs=2)
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    *stream, logits = engine.trace(ids)
    [answer] = run(engine, [greedy("r", ids, 1)]).values()
    assert len(stream) == 3 and answer.token_ids == [int(logits[-1].argmax())]
    engine.close()


def spoil_embedding(engine: OptimizedEngine, token_id: int) -> None:
    assert isinstance(engine.runner, LocalRunner) and engine.runner.model is not None
    model = engine.runner.model
    with torch.inference_mode():
        model.embedding = model.embedding.clone()
        model.embedding[token_id] = float("nan")


def greedy(name: str, prompt: list[int], max_tokens: int, prompt_logprobs: int | None = None) -> EngineRequest:
    sampling = SamplingParams(temperature=0, prompt_logprobs=prompt_logprobs)
    return EngineRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, max_tokens=max_tokens, seed=0)
