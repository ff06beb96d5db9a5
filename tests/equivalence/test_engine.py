"""A run of requests: arrivals, aborts, shared prefixes and pools too small for them, sent to both engines."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.comparison import assert_same
from tests.equivalence.helpers import (
    Answer,
    engine_requests,
    llama_optimized,
    llama_reference,
    poison,
    run,
    scheduler_options,
    use_kernels,
)


class Lockstep(RuleBasedStateMachine):
    """Whatever arrives in whatever order, each request is answered as the reference answers it alone."""

    @initialize(options=scheduler_options, kernels=st.booleans())
    def start(self, options: dict[str, Any], kernels: bool) -> None:
        self.engine = llama_optimized(**options)
        use_kernels(kernels)
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
        self.engine.scheduler.pool.reset_cache()

    @invariant()
    def accounts_agree(self) -> None:
        if hasattr(self, "engine"):
            self.engine.scheduler.check_integrity()
            unfinished = [i for i, a in self.answers.items() if a.finish_reason is None and i not in self.aborted]
            assert self.engine.has_unfinished == bool(unfinished)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        while self.engine.has_unfinished:
            self.step(1)
        pool = self.engine.scheduler.pool
        assert pool.num_free == pool.num_blocks, "blocks were lost"
        for request_id, request in self.requests.items():
            if request_id not in self.aborted:
                want = run(llama_reference(), [request])[request_id]
                assert_same(llama_reference(), request, self.answers[request_id], want)


Lockstep.TestCase.settings = settings(max_examples=settings().max_examples * 2, stateful_step_count=20)
TestLockstep = Lockstep.TestCase


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("prompt_logprobs", [None, 1])
def test_numbers_that_are_none_end_one_request_and_spoil_no_other(prompt_logprobs: int | None, kernels: bool) -> None:
    """A token whose embedding is NaN: its request fails, its neighbours and the next owner of its row do not."""
    engine = llama_optimized(max_num_seqs=3, enable_prefix_caching=False)
    use_kernels(kernels)
    engine.model._embedding = engine.model._embedding.clone()
    engine.model._embedding[50] = float("nan")

    def request(name: str, prompt: list[int]) -> EngineRequest:
        sampling = SamplingParams(temperature=0, prompt_logprobs=prompt_logprobs)
        return EngineRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, max_tokens=9, seed=0)

    bad, aborted = request("bad", [1, 50, 3] * 9), request("aborted", [50] * 30)
    good = [request(f"good{i}", [i + 1, 2, 3]) for i in range(6)]
    engine.add(aborted)
    engine.step()
    engine.abort("aborted")
    answers = run(engine, [good[0], bad, *good[1:]])
    assert answers["bad"].finish_reason == "error" and answers["bad"].error
    for r in good:
        assert_same(llama_reference(), r, answers[r.request_id], run(llama_reference(), [r])[r.request_id])
