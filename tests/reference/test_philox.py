"""The generator against its published vectors, and the noise against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.philox import gumbel_noise, philox, uniform
from tests.reference.definition import noise_of, philox4x32

# kat_vectors of Random123, the authors' library: philox4x32 with 10 rounds; counter, key, result
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
words = st.integers(0, 2**32 - 1)


def run(counter: list[int], seed: int) -> list[int]:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    return [int(word) for word in philox((c0, c1, c2, c3), seed)]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, result: str) -> None:
    low, high = (int(word, 16) for word in key.split())
    expected = [int(word, 16) for word in result.split()]
    words_in = [int(word, 16) for word in counter.split()]
    assert run(words_in, low | high << 32) == expected
    assert list(philox4x32(words_in, low, high)) == expected


@given(counter=st.tuples(words, words, words, words), seed=st.integers(0, 2**64 - 1))
def test_any_counter_and_key(counter: tuple[int, int, int, int], seed: int) -> None:
    assert run(list(counter), seed) == list(philox4x32(counter, seed & 0xFFFFFFFF, seed >> 32))


@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 2**20), choice=st.integers(0, 127))
def test_noise_is_what_the_definition_says(seed: int, position: int, choice: int) -> None:
    ids = torch.tensor([0, 1, 2, 31999, 151935])
    noise = gumbel_noise(ids, seed, position, choice)
    assert noise.dtype == torch.float32
    for token_id, value in zip(ids.tolist(), noise.tolist(), strict=True):
        assert value == pytest.approx(noise_of(token_id, seed, position, choice), abs=2e-6, rel=2e-6)


def test_uniform_numbers_are_exact_and_never_zero_or_one() -> None:
    ends = uniform(torch.tensor([0, 511, 512, 2**32 - 1]))
    assert ends.tolist() == [2.0**-24, 2.0**-24, 3 * 2.0**-24, 1 - 2.0**-24]
    noise = -torch.log(-torch.log(ends))
    assert noise[0] > -2.9 and noise[-1] < 16.7


def test_every_part_of_the_counter_and_key_matters() -> None:
    ids = torch.arange(64)
    rows = [gumbel_noise(ids, *which) for which in [(1, 0, 0), (2, 0, 0), (1 + 2**32, 0, 0), (1, 1, 0), (1, 0, 1)]]
    for i, row in enumerate(rows):
        assert all(not torch.equal(row, other) for other in rows[i + 1 :])
