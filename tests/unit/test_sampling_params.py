"""Sampling parameters refuse what the definition does not cover."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
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
        ("logprob_token_ids", [[], [1, 1], list(range(129)), "12"]),
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


def test_as_many_log_probabilities_are_reported_as_tokens_are_given() -> None:
    assert SamplingParams(logprob_token_ids=[7, 5]) == SamplingParams(logprobs=9, logprob_token_ids=(7, 5))
    assert SamplingParams(logprob_token_ids=[7, 5]).logprobs == 2


def test_parameters_travel_unchanged() -> None:
    params = SamplingParams(
        n=3, logit_bias={7: 1.5}, stop=["a"], allowed_token_ids=[1, 2], seed=2**64 - 1, logprob_token_ids=[5, 4]
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"seed": np.int64(3), "n": np.uint8(2)}, {"seed": 3, "n": 2}),
        ({"seed": 2.0, "max_tokens": np.float32(8), "top_k": 50.0}, {"seed": 2, "max_tokens": 8, "top_k": 50}),
        ({"seed": np.int64(-1)}, {"seed": 2**64 - 1}),
        ({"seed": 2**70 + 5}, {"seed": 5}),
        ({"temperature": np.float32(0.5), "top_p": np.float64(0.25)}, {"temperature": 0.5, "top_p": 0.25}),
        ({"temperature": 1, "min_p": 0}, {"temperature": 1.0, "min_p": 0.0}),
        ({"top_k": 2**40}, {"top_k": 0}),
        ({"stop": None, "stop_token_ids": None, "bad_words": None}, {}),
        ({"stop": {"x"}, "bad_words": ("a", "b")}, {"stop": ("x",), "bad_words": ("a", "b")}),
        (
            {"stop_token_ids": np.array([3, 4]), "allowed_token_ids": [5.0]},
            {"stop_token_ids": (3, 4), "allowed_token_ids": (5,)},
        ),
        ({"logit_bias": {"7": 1, np.int64(8): np.float32(2)}}, {"logit_bias": {7: 1.0, 8: 2.0}}),
    ],
)
def test_what_has_one_meaning_is_taken_for_it(given: dict[str, Any], meant: dict[str, Any]) -> None:
    params, expected = SamplingParams(**given), SamplingParams(**meant)
    assert params == expected
    # also in type: numbers of other libraries neither travel nor compute alike
    for name in SamplingParams.__struct_fields__:
        assert repr(getattr(params, name)) == repr(getattr(expected, name)), name
    assert msgspec.msgpack.encode(params) == msgspec.msgpack.encode(expected)


WRONG: dict[str, list[Any]] = {
    "an integer": [True, "3", 2.5, NAN, INF, b"3", [3], 1j, np.bool_(True), np.float32(0.5), object()],
    "a number": [True, "0.5", b"1", [1.0], {}, 10**400, 1j, np.array([1.0, 2.0])],
    "true or false": [1, 0, "false", None, np.float32(1)],
}
INTEGERS = ("n", "top_k", "seed", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs")
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
SWITCHES = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens")


@pytest.mark.parametrize(
    ("param", "bad"),
    [
        *((param, WRONG["an integer"]) for param in INTEGERS),
        *((param, [2**70, -(2**70)]) for param in INTEGERS if param != "seed"),
        *((param, WRONG["a number"]) for param in NUMBERS),
        *((param, WRONG["true or false"]) for param in SWITCHES),
        ("stop", [b"x", [b"x"], 1, [1], {"x": 1}, ["\ud800"], [None]]),
        ("bad_words", ["abc", b"abc", 1, [1], {"x": 1}, ["\ud800"]]),
        ("stop_token_ids", ["12", 12, {1: 2}, [True], ["1"], [1.5], [None]]),
        ("allowed_token_ids", ["12", 12, [True], ["1"], [NAN]]),
        ("logit_bias", [[1], "x", {"x": 1}, {1.5: 1}, {True: 1}, {1: "x"}, {1: True}, {1: None}, {"7": 1, 7: 2}]),
        ("logit_bias", [{"-1": 1}, {"٧": 1}, {"9" * 5000: 1}]),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(param: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(RequestError, match=f"^{param} must be ") as refusal:
            SamplingParams(**{param: value})
        assert refusal.value.param == param
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


def test_numpy_is_not_needed_to_know_its_numbers() -> None:
    code = "import sys, tandem; tandem.SamplingParams(seed=3.0); print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
