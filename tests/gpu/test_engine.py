"""The engine as it is on this machine, decodes captured where that can be, against the reference engine beside it."""

from __future__ import annotations

import warnings

import pytest
import torch

from optimized import OptimizedEngine
from optimized.runner.local import LocalRunner
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.answers import run
from tests.equivalence.helpers import assert_as_reference, create_optimized, llama_config, llama_optimized, poison
from tests.gpu.measure_engine import Compilations
from tests.reference.families import VOCAB

is_cuda = torch.cuda.is_available()


def requests() -> list[EngineRequest]:
    return [
        EngineRequest(
            request_id=str(i),
            prompt_token_ids=[(3 * j + i % 4) % VOCAB for j in range(10 + 3 * i)],
            sampling=SamplingParams(
                temperature=i % 3 / 2,
                top_p=0.9,
                repetition_penalty=1.1 if i % 5 == 0 else 1.0,
                allowed_token_ids=list(range(10, 60)) if i % 4 == 1 else None,
                logprobs=2,
                logprob_token_ids=[i, 40, 3][: 2 + i % 2] if i % 3 == 2 else None,
                prompt_logprobs=1 if i % 4 else None,
            ),
            max_tokens=10 + i,
            seed=i,
        )
        for i in range(12)
    ]


def engine(enforce_eager: bool) -> OptimizedEngine:
    """As a server would build it on a GPU; laid out as for one where there is none."""
    limits = {"max_num_seqs": 9, "max_num_batched_tokens": 64, "enforce_eager": enforce_eager}
    return create_optimized(llama_config(), "twins" if is_cuda else "gpu", **limits)


@pytest.mark.parametrize("enforce_eager", [False, True])
def test_it_answers_as_the_reference(enforce_eager: bool) -> None:
    optimized = engine(enforce_eager)
    runner = optimized.runner
    assert isinstance(runner, LocalRunner) and runner.info.num_steps_ahead == 1
    assert optimized.info.device.startswith("cuda" if is_cuda else "cpu")
    if is_cuda:
        assert (runner._graphs is None) == enforce_eager
    poison(optimized)
    asked = requests()
    assert_as_reference(asked, run(optimized, asked))
    optimized.close()


@pytest.mark.gpu
def test_nothing_is_compiled_while_serving() -> None:
    """Whatever requests ask for: a step that waits for a compiler holds everybody up."""
    optimized = engine(enforce_eager=False)
    with Compilations() as compilations:
        run(optimized, requests())
    optimized.close()
    assert compilations.count == 0


@pytest.mark.gpu
@pytest.mark.parametrize("repetition_penalty", [1.0, 1.1])
def test_steps_wait_for_their_tokens_alone(repetition_penalty: float) -> None:
    """Which they do through an event, that this mode of PyTorch does not count."""
    optimized = llama_optimized(max_num_seqs=4, enforce_eager=False)
    sampling = SamplingParams(
        temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=repetition_penalty, logit_bias={3: 1.0}
    )
    asked = [
        EngineRequest(request_id=str(i), prompt_token_ids=[i + 1] * 9, sampling=sampling, max_tokens=5, seed=i)
        for i in range(4)
    ]
    run(optimized, asked)  # whatever is done once
    for request in asked:
        optimized.add(request)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            while optimized.has_unfinished:
                optimized.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not [str(warning.message) for warning in caught if "synchronizing" in str(warning.message)]
