"""Administration between steps changes no answer but those it is meant to change; on both engines."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reference import ReferenceEngine
from tandem.config import ModelOptions, resolve
from tandem.engine import Engine, EngineRequest
from tandem.errors import CheckpointError
from tandem.sampling_params import SamplingParams
from tests.equivalence.answers import Answer, run
from tests.equivalence.comparison import assert_same
from tests.equivalence.helpers import LLAMA, assert_as_reference, llama_config, llama_optimized, llama_reference
from tests.reference.families import VOCAB, build, save

ENGINES = ["reference", "twins", "gpu", "process"]


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made: Any = (
        ReferenceEngine(llama_config())
        if request.param == "reference"
        else llama_optimized(request.param, max_num_seqs=3, max_num_batched_tokens=40, block_size=4)
    )
    yield made
    made.close()


def requests() -> list[EngineRequest]:
    return [
        EngineRequest(
            request_id=str(i),
            prompt_token_ids=[(5 * j + i) % VOCAB for j in range(20 + 3 * i)],
            sampling=SamplingParams(
                temperature=i % 2, logprobs=1, prompt_logprobs=1 if i == 2 else None, presence_penalty=i % 3 / 2
            ),
            max_tokens=12,
            seed=i,
        )
        for i in range(5)
    ]


def step(engine: Engine, answers: dict[str, Answer], count: int) -> None:
    for _ in range(count):
        for output in engine.step():
            answers[output.request_id].take(output)


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
@pytest.mark.parametrize("level", [1, 2])
def test_who_is_in_the_middle_of_an_answer_sleeps_and_goes_on(engine: Engine, level: int) -> None:
    answers = {request.request_id: Answer() for request in requests()}
    for request in requests()[:4]:
        engine.add(request)
    for pause in range(6):
        step(engine, answers, pause)
        engine.sleep(level)
        engine.sleep(level)
        assert engine.stats.is_asleep and not engine.has_unfinished and list(engine.step()) == []
        if pause == 2:
            engine.add(requests()[4])
            engine.abort("1")
        engine.wake_up()
        assert not engine.stats.is_asleep
    while engine.has_unfinished:
        step(engine, answers, 1)
    assert_as_reference([request for request in requests() if request.request_id != "1"], answers)


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_other_weights_are_served_from_the_next_step_on(engine: Engine, tmp_path: Path) -> None:
    save(build("llama", LLAMA, seed=9), tmp_path)
    config = resolve(ModelOptions(model=str(tmp_path), dtype="float32")).engine
    other = ReferenceEngine(config)
    before = run(engine, requests())
    engine.replace_weights(str(tmp_path))
    answers = run(engine, requests())
    for request in requests():
        assert_same(other, request, answers[request.request_id], run(other, [request])[request.request_id])
    assert any(before[i].token_ids != answers[i].token_ids for i in answers)
    engine.sleep(2)
    engine.wake_up()
    [request] = requests()[:1]
    assert_same(other, request, run(engine, [request])["0"], run(other, [request])["0"])


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_weights_that_do_not_fit_leave_those_that_were(engine: Engine, tmp_path: Path) -> None:
    save(build("llama", LLAMA | {"hidden_size": 64}, seed=9), tmp_path)
    answers = {request.request_id: Answer() for request in requests()}
    for request in requests():
        engine.add(request)
    step(engine, answers, 3)
    for path in (str(tmp_path), str(tmp_path / "missing"), tempfile.gettempdir()):
        with pytest.raises(CheckpointError):
            engine.replace_weights(path)
    while engine.has_unfinished:
        step(engine, answers, 1)
    assert_as_reference(requests(), answers)


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_forgotten_prefixes_are_computed_again(engine: Engine) -> None:
    run(engine, requests())
    engine.reset_prefix_cache()
    hits = engine.stats.num_prefix_hits
    assert_as_reference(requests(), run(engine, requests()))
    assert engine.stats.num_prefix_hits == hits


def test_the_reference_is_one_of_them() -> None:
    assert llama_reference().info.vocab_size == VOCAB
