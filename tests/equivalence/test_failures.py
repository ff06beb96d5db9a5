"""A step that raises: the culprit fails, and nobody else notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from optimized import OptimizedEngine
from optimized.runner.remote import RemoteRunner
from optimized.runner.runner import Runner, RunnerInfo
from optimized.scheduling.plan import Plan, RowResult
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.answers import run
from tests.equivalence.helpers import assert_as_reference, create_runner, llama_config, llama_optimized

BAD = 77  # a token that no innocent request has
Condition = Callable[[Plan], bool]


class Failing:
    """A runner that raises on some plans, before it carries them out or when their results are asked for."""

    def __init__(self, runner: Runner, is_bad: Condition, late: bool) -> None:
        self._runner, self._is_bad, self._late = runner, is_bad, late
        self._in_flight: list[bool] = []
        self.num_resets = 0

    @property
    def info(self) -> RunnerInfo:
        return self._runner.info

    def submit(self, plan: Plan) -> None:
        is_bad = self._is_bad(plan)
        if is_bad and not self._late:
            raise RuntimeError("planted")
        self._in_flight.append(is_bad)
        self._runner.submit(plan)

    def collect(self) -> list[RowResult]:
        if self._in_flight.pop(0):
            raise RuntimeError("planted")
        return self._runner.collect()

    def reset(self) -> None:
        self.num_resets += 1
        self._in_flight.clear()
        self._runner.reset()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


def failing_engine(is_bad: Condition, late: bool = False, kind: str = "gpu") -> tuple[OptimizedEngine, Failing]:
    runner = Failing(create_runner(llama_config(), kind), is_bad, late)
    return OptimizedEngine(llama_config(), runner=runner), runner


def asked(name: str, prompt: list[int], max_tokens: int = 12) -> EngineRequest:
    sampling = SamplingParams(temperature=0, repetition_penalty=1.1, prompt_logprobs=1, logit_bias={BAD: -100.0})
    return EngineRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, max_tokens=max_tokens, seed=0)


def innocent(count: int) -> list[EngineRequest]:
    return [asked(str(i), [(3 * j + i) % 70 for j in range(30 + i)]) for i in range(count)]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ["twins", "gpu", "process"])
def test_the_culprit_fails_alone(kind: str, late: bool) -> None:
    engine, runner = failing_engine(lambda plan: any(BAD in work.token_ids for work in plan.work), late, kind)
    requests = innocent(6)
    bad = [asked(f"bad{i}", [1, 2, BAD] * (i + 1)) for i in range(2)]
    answers = run(engine, [*requests[:3], bad[0], *requests[3:], bad[1]])
    for request in bad:
        answer = answers[request.request_id]
        assert answer.finish_reason == "error" and answer.error == "the engine failed on this request: RuntimeError"
    assert_as_reference(requests, answers)
    engine.scheduler.check_integrity()
    assert runner.num_resets == engine.stats.num_failed_steps > 2
    again = innocent(3)
    assert_as_reference(again, run(engine, again))
    engine.close()


def test_who_fails_only_in_company_is_tried_alone_and_then_given_up() -> None:
    engine, runner = failing_engine(lambda plan: len(plan.work) > 2)
    requests = innocent(5)
    answers = run(engine, requests)
    failed = [request for request in requests if answers[request.request_id].finish_reason == "error"]
    assert len(failed) >= 3 and runner.num_resets == 2
    assert_as_reference([request for request in requests if request not in failed], answers)
    [alone] = innocent(1)
    assert_as_reference([alone], run(engine, [alone]))


def test_one_failure_that_never_comes_again_costs_nobody_an_answer() -> None:
    left = [1]
    engine, _ = failing_engine(lambda plan: len(plan.work) == 5 and bool(left) and bool(left.pop()))
    requests = innocent(5)
    assert_as_reference(requests, run(engine, requests))
    assert engine.stats.num_failed_steps == 1


def test_who_leaves_while_suspected_is_not_waited_for() -> None:
    engine, _ = failing_engine(lambda plan: any(BAD in work.token_ids for work in plan.work))
    requests = innocent(3)
    for request in (*requests, asked("bad", [BAD])):
        engine.add(request)
    engine.step()
    assert engine.stats.num_failed_steps == 1
    for name in ("bad", "0"):
        engine.abort(name)
    heard: dict[str, list[int]] = {}
    while engine.has_unfinished:
        for output in engine.step():
            assert output.error is None
            heard.setdefault(output.request_id, []).extend(output.new_token_ids)
    assert {name: len(tokens) for name, tokens in heard.items()} == {"1": 12, "2": 12}


def test_a_runner_that_is_lost_ends_the_engine() -> None:
    engine = llama_optimized("process")
    assert isinstance(engine.runner, RemoteRunner)
    [request] = innocent(1)
    engine.add(request)
    engine.step()
    engine.runner.process.kill()
    with pytest.raises((EOFError, ConnectionError)):
        while engine.has_unfinished:
            engine.step()
    engine.close()
