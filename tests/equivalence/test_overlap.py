"""A runner that may have a step in flight gets the next one before the first is waited for, whatever it samples."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from optimized import OptimizedEngine
from optimized.runner.runner import Runner, RunnerInfo
from optimized.scheduling.plan import Plan, RowResult
from tandem.config import SchedulerOptions
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.answers import run
from tests.equivalence.helpers import (
    SPECULATIVE,
    assert_as_reference,
    create_runner,
    llama_config,
    llama_reference,
    poison,
)


class Noting:
    """A runner that notes what is asked of it, and has another do it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.noted: list[str] = []

    @property
    def info(self) -> RunnerInfo:
        return self._runner.info

    def submit(self, plan: Plan) -> None:
        self.noted.append("submit")
        self._runner.submit(plan)

    def collect(self) -> list[RowResult]:
        self.noted.append("collect")
        return self._runner.collect()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


def noting_engine(**scheduler: Any) -> tuple[OptimizedEngine, list[str]]:
    config = msgspec.structs.replace(llama_config(), scheduler=SchedulerOptions(**scheduler))
    runner = Noting(create_runner(config, "gpu"))
    return OptimizedEngine(config, runner=runner), runner.noted


KINDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    {"min_tokens": 3, "stop_token_ids": [5], "logit_bias": {3: 2.0}, "allowed_token_ids": [3, 4, 5, 6]},
    {"logprobs": 1, "prompt_logprobs": 1},
    {"repetition_penalty": 1.2},
    {"frequency_penalty": 0.5},
    {"presence_penalty": 0.5, "temperature": 0.7},
]


@pytest.mark.parametrize("sampling", KINDS)
def test_no_step_waits_for_the_tokens_of_the_one_before(sampling: dict[str, Any]) -> None:
    engine, noted = noting_engine(max_num_seqs=3)
    requests = [asked(str(i), 5, 6, **sampling if i != 1 else {}) for i in range(3)]
    assert_as_reference(requests, run(engine, requests))
    assert noted == ["submit", *["submit", "collect"] * 5, "collect"], "six steps, none computed for nothing"


def test_bad_words_of_several_tokens_are_found_without_waiting() -> None:
    [free] = run(llama_reference(), [asked("r", 5, 12)]).values()
    words = tuple(tuple(free.token_ids[i : i + 2]) for i in range(0, 10, 2))
    engine, noted = noting_engine(max_num_seqs=1)
    request = asked("r", 5, 12, words=words)
    answers = run(engine, [request])
    assert_as_reference([request], answers)
    assert answers["r"].token_ids != free.token_ids and noted[:4] == ["submit", "submit", "collect", "submit"]


def test_no_more_than_two_steps_are_in_flight_while_a_long_prompt_is_computed() -> None:
    engine, noted = noting_engine(max_num_seqs=1, max_num_batched_tokens=8)
    request = asked("r", 40, 2)
    assert_as_reference([request], run(engine, [request]))
    assert noted == ["submit", *["submit", "collect"] * 5, "collect"]


def test_draft_tokens_wait_for_the_step_before() -> None:
    """How many tokens a verification brings decides what comes next."""
    engine, noted = noting_engine(max_num_seqs=1, speculative_config=SPECULATIVE[1])
    request = asked("r", 30, 40, logit_bias={7: 100.0})  # an answer that repeats itself
    assert_as_reference([request], run(engine, [request]))
    assert engine.stats.num_accepted_tokens > 20 and noted.count("submit") < 20


def test_an_end_that_nobody_foresaw_costs_one_step() -> None:
    """Its result is not seen, not even by a new request of the same name."""
    [told] = run(llama_reference(), [asked("r", 5, 9)]).values()
    stop = next(i for i, token in enumerate(told.token_ids) if i > 1 and told.token_ids.index(token) == i)
    request = asked("r", 5, 9, stop_token_ids=[told.token_ids[stop]])
    engine, noted = noting_engine(max_num_seqs=1)
    engine.add(request)
    tokens: list[int] = []
    while True:
        outputs = engine.step()
        tokens += [token for output in outputs for token in output.new_token_ids]
        if any(output.finish_reason for output in outputs):
            break
    assert tokens == told.token_ids[: stop + 1]
    assert Counter(noted) == {"submit": stop + 2, "collect": stop + 1}
    assert engine.has_unfinished and engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks
    other = asked("r", 7, 3)
    assert_as_reference([other], run(engine, [other]))


def test_blocks_with_tokens_that_were_in_flight_can_be_found() -> None:
    engine, _ = noting_engine(max_num_seqs=1, block_size=4)
    first = asked("r", 9, 20)
    [told] = run(engine, [first]).values()
    again = EngineRequest(
        request_id="again",
        prompt_token_ids=[*first.prompt_token_ids, *told.token_ids],
        sampling=SamplingParams(temperature=0),
        max_tokens=3,
        seed=0,
    )
    assert_as_reference([again], run(engine, [again]))
    assert engine.stats.num_prefix_hits == 28


def test_who_leaves_while_a_step_is_in_flight_is_not_heard_of_again() -> None:
    engine, _ = noting_engine(max_num_seqs=2)
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


def asked(
    name: str, length: int, max_tokens: int, words: tuple[tuple[int, ...], ...] = (), **sampling: Any
) -> EngineRequest:
    prompt = [(7 * j + len(name) + sum(map(ord, name))) % 90 for j in range(length)]
    return EngineRequest(
        request_id=name,
        prompt_token_ids=prompt,
        sampling=SamplingParams(**({"temperature": 0} | sampling)),
        max_tokens=max_tokens,
        seed=5,
        bad_words_token_ids=words,
    )
