"""Unwritten memory is NaN: an op that returns what it did not compute fails loudly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from optimized.kernels.compat import INTERPRETED


@pytest.fixture(scope="session", autouse=True)
def interpreter_and_poison() -> Iterator[None]:
    assert INTERPRETED, "run through tests/kernels/test_equal_to_twin.py, or with TRITON_INTERPRET=1"
    empty = torch.empty

    def poisoned(*size: Any, **options: Any) -> torch.Tensor:
        x = empty(*size, **options)
        return x.fill_(float("nan") if x.is_floating_point() else -(1 << 30))

    with mock.patch("torch.empty", poisoned):
        yield
