"""The sampler against the definition in float64: filtered distributions, draws, reports and errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from reference.sampling import LOWEST_LOGPROB, SamplingError, apply_filters, draw, report, sample
from tandem.engine import EngineRequest
from tandem.sampling_params import SamplingParams
from tests.reference import definition

V = 12
TIE = 1e-5
token_ids = st.integers(0, V - 1)
# eighths in a narrow range: ties everywhere, and float32 computes steps 2 and 3 without rounding
tied_logits = st.lists(st.integers(-24, 24).map(lambda i: i / 8), min_size=V, max_size=V)
any_logits = st.lists(st.floats(-30, 30, width=32), min_size=V, max_size=V)
holes = st.lists(token_ids, max_size=3)


def make_request(prompt: list[int] | None = None, **fields: Any) -> EngineRequest:
    names = {"seed", "choice_index", "eos_token_ids", "bad_words_token_ids"}
    own = {key: fields.pop(key) for key in names & fields.keys()}
    sampling = SamplingParams(**fields)
    return EngineRequest(
        request_id="r", prompt_token_ids=prompt or [0], sampling=sampling, max_tokens=64, **({"seed": 0} | own)
    )


@st.composite
def requests(draw: st.DrawFn) -> EngineRequest:
    sometimes = st.one_of
    word = st.lists(token_ids, min_size=1, max_size=3).map(tuple)
    fields = {
        "temperature": draw(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])),
        "top_k": draw(sometimes(st.just(0), st.integers(1, V + 2))),
        "top_p": draw(sometimes(st.just(1.0), st.floats(0.01, 0.99))),
        "min_p": draw(sometimes(st.just(0.0), st.floats(0.001, 1.0))),
        "repetition_penalty": draw(st.sampled_from([1.0, 0.5, 2.0, 4.0])),
        "frequency_penalty": draw(st.sampled_from([0.0, -1.5, 0.25, 2.0])),
        "presence_penalty": draw(st.sampled_from([0.0, -0.5, 1.0])),
        "min_tokens": draw(st.integers(0, 4)),
        "stop_token_ids": tuple(draw(st.lists(token_ids, max_size=2))),
        "allowed_token_ids": draw(st.none() | st.lists(token_ids, min_size=1, max_size=V)),
        "logit_bias": draw(st.none() | st.dictionaries(token_ids, st.sampled_from([-100.0, -1.5, 0.5, 100.0]))),
        "logprobs": V,
    }
    return make_request(
        draw(st.lists(token_ids, min_size=1, max_size=4)),
        seed=draw(st.integers(0, 2**64 - 1)),
        choice_index=draw(st.integers(0, 3)),
        eos_token_ids=tuple(draw(st.lists(token_ids, max_size=2))),
        bad_words_token_ids=tuple(draw(st.lists(word, max_size=3))),
        **fields,
    )


def with_holes(logits: list[float], at: list[int]) -> list[float]:
    return [definition.NONE if v in at else value for v, value in enumerate(logits)]


@settings(max_examples=20 * settings().max_examples)
@given(
    logits=st.one_of(tied_logits, any_logits), at=holes, request=requests(), output=st.lists(token_ids, max_size=5)
)
def test_sampler_follows_the_definition(
    logits: list[float], at: list[int], request: EngineRequest, output: list[int]
) -> None:
    raw = with_holes(logits, at)
    z = definition.processed(raw, request, output)
    row = torch.tensor(raw)
    if max(z) == definition.NONE:
        with pytest.raises(SamplingError):
            sample(row, request, output, "processed_logprobs")
        return
    margin, gap = math.inf, math.inf
    if request.sampling.temperature == 0:
        expected = z.index(max(z))
        near = [v for v, value in enumerate(z) if value > max(z) - TIE]
        gap = 0.0 if len(near) > 1 and any(z[v] != max(z) for v in near) else math.inf
    else:
        z, margin = definition.filtered(z, request)
        expected, gap = definition.sampled(z, request, len(output))
    assume(margin > 1e-6)
    got = sample(row, request, output, "processed_logprobs")
    assert got.token_id == expected or gap < TIE
    check_report(got, z)
    same = sample(row, request, output, "raw_logprobs")
    assert same.token_id == got.token_id
    check_report(same, raw)
    assert torch.equal(row, torch.tensor(raw)), "the logits were changed"


def check_report(got: Any, z: list[float]) -> None:
    """The report says what ``log_softmax(z)`` says, in the right order."""
    total = math.log(math.fsum(math.exp(value - max(z)) for value in z))
    expected = [max(value - max(z) - total, LOWEST_LOGPROB) for value in z]
    told = got.logprobs
    assert told.token_id == got.token_id
    assert told.logprob == pytest.approx(expected[told.token_id], abs=1e-4)
    assert sorted(told.top_ids) == list(range(V))
    for v, logprob in zip(told.top_ids, told.top_logprobs, strict=True):
        assert logprob == pytest.approx(expected[v], abs=1e-4)
    assert told.top_logprobs == sorted(told.top_logprobs, reverse=True)
    chosen = np.float32(z[got.token_id])
    assert abs(told.rank - 1 - sum(np.float32(value) > chosen for value in z)) <= sum(
        0 < abs(value - z[got.token_id]) < TIE for value in z
    )


@given(logits=tied_logits, num_top=st.integers(0, V + 3))
def test_equal_tokens_are_reported_by_id(logits: list[float], num_top: int) -> None:
    told = report(torch.log_softmax(torch.tensor(logits), -1), 5, num_top)
    assert told.top_ids == sorted(range(V), key=lambda v: (-logits[v], v))[:num_top]
    assert told.rank == 1 + sum(value > logits[5] for value in logits)


@pytest.mark.parametrize(
    ("varying", "top_k", "top_p", "min_p"),
    [("seed", 0, 1.0, 0.0), ("seed", 9, 0.95, 0.05), ("position", 0, 1.0, 0.0), ("choice_index", 0, 1.0, 0.0)],
)
def test_draws_fit_the_distribution(varying: str, top_k: int, top_p: float, min_p: float) -> None:
    n = 10_000
    z = apply_filters(torch.linspace(-2, 2, 20) / 0.9, top_k, top_p, min_p)
    p = torch.softmax(z.double(), -1).numpy()
    fixed = {"seed": 0xDEADBEEF12345678, "position": 3, "choice_index": 1}
    tokens = [draw(z, **(fixed | {varying: i})) for i in range(n)]
    counts = np.bincount(tokens, minlength=len(p))
    assert counts[p == 0].sum() == 0
    assert chisquare(counts[p > 0], n * p[p > 0]).pvalue > 1e-4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_numbers_end_the_request(bad: float, temperature: float) -> None:
    request = make_request(temperature=temperature, allowed_token_ids=[1])
    with pytest.raises(SamplingError, match="not finite"):
        sample(torch.tensor([0.0, 1.0, bad]), request, [], "raw_logprobs")
    with pytest.raises(SamplingError, match="not finite"):
        sample(torch.full((3,), -math.inf), request, [], "raw_logprobs")


def test_masks_that_leave_nothing_end_the_request() -> None:
    request = make_request(allowed_token_ids=[1], bad_words_token_ids=((1,),))
    with pytest.raises(SamplingError, match="no token"):
        sample(torch.zeros(3), request, [], "raw_logprobs")


@pytest.mark.parametrize("penalty", [0.01, 100.0])
def test_a_penalty_that_overflows_ends_the_request(penalty: float) -> None:
    request = make_request([0, 1, 2], temperature=0.0, repetition_penalty=penalty, logprobs=1)
    with pytest.raises(SamplingError, match="repetition_penalty"):
        sample(torch.full((3,), 3e38 if penalty < 1 else -3e38), request, [], "raw_logprobs")


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 1e-300])
def test_a_vanishing_temperature_is_greedy(temperature: float) -> None:
    for logits in ([5.0, 7.0, 6.0], [-5.0, -3.0, -4.0], [0.0, 1.0, 0.5], [-1.0, 0.0, -2.0]):
        assert sample(torch.tensor(logits), make_request(temperature=temperature), [], "raw_logprobs").token_id == 1


def test_penalties_come_after_the_bias() -> None:
    """A bias makes the logit negative, so repetition multiplies; the other order would divide first."""
    request = make_request([1], temperature=0.0, logit_bias={1: -3.0}, repetition_penalty=2.0, logprobs=2)
    got = sample(torch.tensor([-3.5, 1.0]), request, [], "processed_logprobs")
    assert got.token_id == 0  # 1 - 3 = -2, doubled: -4; the other order gives 1/2 - 3 = -2.5


def test_a_filter_works_on_what_the_one_before_left() -> None:
    """Top-p of the two tokens that top-k leaves keeps only the first; of all four it would keep two."""
    z = torch.log(torch.tensor([0.4, 0.25, 0.2, 0.15]))
    assert torch.isfinite(apply_filters(z, 2, 0.6, 0.0)).tolist() == [True, False, False, False]
    assert torch.isfinite(apply_filters(z, 0, 0.6, 0.0)).tolist() == [True, True, False, False]
