"""Rows drawn by the kernels' function, and one by one as on a CPU: same tokens, reports and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimized import sampler
from optimized.sequence import Sequence
from tandem.engine import EngineRequest
from tests.equivalence.comparison import assert_same_report, best_two
from tests.equivalence.helpers import engine_requests, token_ids
from tests.equivalence.tolerances import TIE
from tests.reference.families import VOCAB

broken = st.sampled_from([float("nan"), float("inf")])
Row = tuple[torch.Tensor, EngineRequest, list[int]]


@st.composite
def rows(draw: st.DrawFn) -> Row:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = 4 * torch.randn(VOCAB, generator=generator)
    if draw(st.booleans()):
        logits = (2 * logits).round() / 2
    if draw(st.integers(0, 9)) == 0:
        logits[draw(token_ids)] = draw(broken)
    return logits, draw(engine_requests()), draw(st.lists(token_ids, max_size=6))


@settings(max_examples=3 * settings().max_examples)
@given(batch=st.lists(rows(), min_size=1, max_size=6), mode=st.sampled_from(["raw_logprobs", "processed_logprobs"]))
def test_a_batch_is_sampled_as_its_rows_alone(batch: list[Row], mode: str) -> None:
    sequences = []
    for _, request, output in batch:
        sequences.append(Sequence(request, (0, 0)))
        sequences[-1].token_ids += output
    together = sampler.sample(torch.stack([row for row, _, _ in batch]), sequences, mode)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "use_triton", lambda x: False)
        alone = [
            sampler.sample(row[None].clone(), [sequence], mode)[0]
            for (row, _, _), sequence in zip(batch, sequences, strict=True)
        ]
    for got, want, (row, request, output) in zip(together, alone, batch, strict=True):
        assert got.error == want.error
        if got.error is not None:
            continue
        if got.token_id != want.token_id:
            best, second = best_two(row, request, output)
            assert best - second < TIE
            continue
        assert_same_report(got.logprobs, want.logprobs)
