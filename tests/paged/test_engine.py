"""A run of requests over a pool too small for them, whose free blocks spoil every answer that reads them."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.helpers import Answer, engine_requests, run
from tests.paged.helpers import assert_as_told, foreseeable, paged_llama, poison

options = st.fixed_dictionaries(
    {
        "max_num_seqs": st.sampled_from([1, 2, 5, 9]),
        "max_num_batched_tokens": st.sampled_from([1, 3, 17, 64, 512]),
        "block_size": st.sampled_from([1, 3, 8, 16]),
        "enable_prefix_caching": st.booleans(),
        "num_tokens": st.sampled_from([None, 80, 160]),
        "is_captured": st.booleans(),
        "overlaps": st.booleans(),
    }
)


class Lockstep(RuleBasedStateMachine):
    """Whatever arrives in whatever order, each request is answered as the reference answers it alone."""

    @initialize(options=options)
    def start(self, options: dict[str, Any]) -> None:
        self.engine = paged_llama(**options)
        self.requests: dict[str, EngineRequest] = {}
        self.answers: dict[str, Answer] = {}
        self.aborted: set[str] = set()

    @rule(request=engine_requests(), is_foreseeable=st.booleans())
    def add(self, request: EngineRequest, is_foreseeable: bool) -> None:
        if is_foreseeable:
            request = foreseeable(request)
        if len(request.prompt_token_ids) + request.max_tokens > self.engine.info.kv_cache_tokens:
            return  # admission refuses it
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

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        while self.engine.has_unfinished:
            self.step(1)
        answered = [request for i, request in self.requests.items() if i not in self.aborted]
        assert_as_told(answered, self.answers)


Lockstep.TestCase.settings = settings(max_examples=settings().max_examples, stateful_step_count=20)
TestLockstep = Lockstep.TestCase


def test_preempted_sequences_are_computed_again_into_other_blocks() -> None:
    engine = paged_llama(96, max_num_seqs=5, block_size=4)
    requests = [greedy(str(i), [i + 1] * (5 + i), 30) for i in range(5)]
    assert_as_told(requests, run(engine, requests))
    assert engine.stats.num_preemptions > 0


def test_a_cached_prefix_is_read_where_it_is() -> None:
    engine = paged_llama(max_num_seqs=3, block_size=4)
    requests = [greedy(str(i), [*range(2, 30), i], 8) for i in range(6)]
    assert_as_told(requests, run(engine, requests))
    assert engine.stats.num_prefix_hits >= 5 * 28


def test_numbers_that_are_none_end_one_request_and_spoil_no_other() -> None:
    engine = paged_llama(max_num_seqs=3, enable_prefix_caching=False)
    engine.model._embedding = engine.model._embedding.clone()
    engine.model._embedding[50] = float("nan")
    bad, good = greedy("bad", [1, 50, 3] * 9, 9), [greedy(str(i), [i + 1, 2, 3], 9) for i in range(6)]
    answers = run(engine, [good[0], bad, *good[1:]])
    assert answers["bad"].finish_reason == "error" and answers["bad"].error
    assert_as_told(good, answers)


def test_the_trace_is_that_of_the_step() -> None:
    engine = paged_llama(max_num_seqs=2)
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    *stream, logits = engine.trace(ids)
    [answer] = run(engine, [greedy("r", ids, 1)]).values()
    assert len(stream) == 3 and answer.token_ids == [int(logits[-1].argmax())]


def greedy(name: str, prompt: list[int], max_tokens: int) -> EngineRequest:
    sampling = SamplingParams(temperature=0)
    return EngineRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, max_tokens=max_tokens, seed=0)
