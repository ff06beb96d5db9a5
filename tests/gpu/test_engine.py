"""The engine as it is on this GPU, decodes captured, against the reference engine beside it."""

from __future__ import annotations

import warnings

import pytest
import torch

from optimized.cache.paged_cache import PagedCache
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.answers import run
from tests.equivalence.helpers import llama_optimized
from tests.paged.helpers import assert_as_told, foreseeable, poison
from tests.reference.families import VOCAB

pytestmark = pytest.mark.gpu


def requests() -> list[EngineRequest]:
    return [
        EngineRequest(
            request_id=str(i),
            prompt_token_ids=[(3 * j + i % 4) % VOCAB for j in range(10 + 3 * i)],
            sampling=SamplingParams(
                temperature=i % 3 / 2, top_p=0.9, logprobs=2, prompt_logprobs=1 if i % 4 else None
            ),
            max_tokens=10 + i,
            seed=i,
        )
        for i in range(12)
    ]


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("enforce_eager", [False, True])
def test_it_answers_as_the_reference(enforce_eager: bool, overlaps: bool) -> None:
    """Whether its steps wait for each other, as reports make them, or not."""
    optimized = llama_optimized(max_num_seqs=9, max_num_batched_tokens=64, enforce_eager=enforce_eager)
    assert optimized.info.device.startswith("cuda") and isinstance(optimized.cache, PagedCache)
    assert (optimized._graphs is None) == enforce_eager
    poison(optimized)
    asked = [foreseeable(request) for request in requests()] if overlaps else requests()
    assert_as_told(asked, run(optimized, asked))
    optimized.close()


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
