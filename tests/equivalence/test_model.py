"""Every family over random architectures: the whole distribution at every position, however the work was cut up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.answers import run
from tests.equivalence.comparison import assert_same
from tests.equivalence.helpers import pair, poison
from tests.reference.families import FAMILIES, VOCAB, build, configs
from tests.reference.test_transformers import well_conditioned

few = settings(max_examples=max(2, settings().max_examples // 4))
SPLITS = {"max_num_batched_tokens": [4, 19, 512], "block_size": [2, 16, 32], "max_num_seqs": [1, 4, 5]}


@pytest.mark.parametrize("family", FAMILIES)
@few
@given(data=st.data())
def test_family_agrees_with_the_reference(family: str, data: st.DataObject) -> None:
    model = build(family, data.draw(configs(family)), seed=data.draw(st.integers(0, 2**31)))
    scheduler = {name: data.draw(st.sampled_from(values)) for name, values in SPLITS.items()}
    _, reference, optimized = pair(model, kind=data.draw(st.sampled_from(["twins", "kernels", "gpu"])), **scheduler)
    poison(optimized)
    limit = min(96, reference.info.max_model_len)
    ids = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=limit, max_size=limit))
    with torch.inference_mode():
        assume(well_conditioned(model, ids))
    lengths = data.draw(st.lists(st.integers(1, limit), min_size=1, max_size=5))
    requests = [request(i, ids[:length], limit) for i, length in enumerate(lengths)]
    answers = run(optimized, requests)
    for r in requests:
        assert_same(reference, r, answers[r.request_id], run(reference, [r])[r.request_id])


def request(i: int, prompt: list[int], limit: int) -> EngineRequest:
    """Greedy, and reporting the logits of every position up to a constant."""
    fields: dict[str, Any] = {"temperature": 0, "logprobs": VOCAB, "prompt_logprobs": VOCAB}
    sampling = SamplingParams(**fields)
    max_tokens = min(20, limit - len(prompt))
    return EngineRequest(request_id=str(i), prompt_token_ids=prompt, sampling=sampling, max_tokens=max_tokens, seed=0)
