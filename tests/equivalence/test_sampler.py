"""The batched sampler against the reference's, row by row: same token, same report, same errors."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimized.kernels import sample as op
from optimized.runner.sampler import sample
from optimized.scheduling.sequence import Sequence
from reference.sampling import SamplingError
from reference.sampling import sample as sample_one
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.equivalence.comparison import assert_same_report, best_two
from tests.equivalence.helpers import engine_requests, token_ids, use_kernels
from tests.equivalence.tolerances import TIE
from tests.reference.families import VOCAB

MODES = ["raw_logprobs", "processed_logprobs"]
eighths = st.integers(-40, 40).map(lambda i: i / 8)  # ties everywhere
row_of_logits = st.one_of(
    st.lists(eighths, min_size=VOCAB, max_size=VOCAB),
    st.integers(0, 2**31).map(
        lambda seed: (4 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))).tolist()
    ),
)
broken = st.sampled_from([float("nan"), float("inf")])


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[float], EngineRequest, list[int]]:
    logits = draw(row_of_logits)
    if draw(st.integers(0, 9)) == 0:
        logits[draw(token_ids)] = draw(broken)
    return logits, draw(engine_requests()), draw(st.lists(token_ids, max_size=6))


def sequence_of(request: EngineRequest, output: list[int]) -> Sequence:
    sequence = Sequence(request, (0, 0))
    sequence.token_ids += output
    return sequence


@settings(max_examples=5 * settings().max_examples)
@given(
    batch=st.lists(rows(), min_size=1, max_size=6),
    mode=st.sampled_from(MODES),
    kernels=st.booleans(),
    ordered=st.sampled_from([1, 20, 1024]),
)
def test_a_batch_is_sampled_as_its_rows_alone(batch: list, mode: str, kernels: bool, ordered: int) -> None:
    use_kernels(kernels)
    logits = torch.tensor([row for row, _, _ in batch])
    sequences = [sequence_of(request, output) for _, request, output in batch]
    with mock.patch.object(op, "_ORDERED", ordered):
        sampled = sample(logits, sequences, mode).take()
    for got, (row, request, output) in zip(sampled, batch, strict=True):
        try:
            want = sample_one(torch.tensor(row), request, output, mode)
        except SamplingError as error:
            assert got.error == str(error)
            continue
        assert got.error is None
        if got.token_id != want.token_id:
            best, second = best_two(torch.tensor(row), request, output)
            assert best - second < TIE
            continue
        assert (got.logprobs is None) == (want.logprobs is None)
        assert_same_report(got.logprobs, want.logprobs)
        if want.logprobs is not None:
            assert got.logprobs.rank == want.logprobs.rank and got.logprobs.top_ids == want.logprobs.top_ids


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_temperature_that_overflows_is_greedy(mode: str, kernels: bool) -> None:
    use_kernels(kernels)
    row = torch.tensor([1.0, 3e34, 2e34, -3e34])
    sampling = SamplingParams(temperature=1e-5, top_k=2, min_p=0.5, logprobs=3)
    request = EngineRequest(request_id="", prompt_token_ids=[1], sampling=sampling, max_tokens=9, seed=1)
    [got] = sample(row[None].clone(), [sequence_of(request, [])], mode).take()
    want = sample_one(row, request, [], mode)
    assert got.token_id == want.token_id == 1
    assert_same_report(got.logprobs, want.logprobs)


@pytest.mark.parametrize("mode", MODES)
def test_neighbours_do_not_change_a_row(mode: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(64, VOCAB, generator=generator)
    requests = [varied(i) for i in range(64)]
    together = sample(logits.clone(), [sequence_of(r, []) for r in requests], mode).take()
    alone = [sample(logits[i : i + 1].clone(), [sequence_of(r, [])], mode).take()[0] for i, r in enumerate(requests)]
    assert [t.token_id for t in together] == [a.token_id for a in alone]


def varied(i: int) -> EngineRequest:
    sampling = SamplingParams(temperature=(i % 3) / 2, top_k=i % 7, top_p=1 - (i % 5) / 10, min_p=(i % 4) / 20)
    return EngineRequest(request_id="", prompt_token_ids=[1], sampling=sampling, max_tokens=9, seed=i * 12345)
