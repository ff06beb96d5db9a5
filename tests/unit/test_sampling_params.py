"""Sampling parameters refuse what the definition does not cover."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tandem import SamplingParams
from tandem.errors import RequestError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("param", "bad"),
    [
        ("n", [0, -1]),
        ("temperature", [-0.1, NAN, INF]),
        ("top_p", [0.0, -0.5, 1.01, NAN]),
        ("top_k", [-2]),
        ("min_p", [-0.1, 1.1, NAN]),
        ("repetition_penalty", [0.0, -1.0, 0.009, 101.0, NAN, INF]),
        ("frequency_penalty", [-2.1, 2.1, NAN]),
        ("presence_penalty", [-2.1, 2.1, NAN]),
        ("max_tokens", [-1]),
        ("min_tokens", [-1, 17]),
        ("stop", ["", ["a", ""]]),
        ("bad_words", [[""]]),
        ("allowed_token_ids", [[]]),
        ("logit_bias", [{1: 100.1}, {1: NAN}]),
        ("logprobs", [-1]),
        ("prompt_logprobs", [-1]),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(param: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(RequestError, match=param) as refusal:
            SamplingParams(**{param: value})
        assert refusal.value.param == param


def test_spellings_of_the_same_parameters_are_equal() -> None:
    assert SamplingParams(stop="x", top_k=-1) == SamplingParams(stop=["x"], top_k=0)
    assert SamplingParams(temperature=1e-6) == SamplingParams(temperature=0)
    assert SamplingParams(seed=-1) == SamplingParams(seed=2**64 - 1)


def test_parameters_travel_unchanged() -> None:
    params = SamplingParams(n=3, logit_bias={7: 1.5}, stop=["a"], allowed_token_ids=[1, 2], seed=2**64 - 1)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params
