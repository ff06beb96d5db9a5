"""What the tests of all ops share."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TypeVar
from unittest import mock

import torch
from hypothesis import strategies as st

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}  # of a row's greatest absolute value, or of 1 if that is less

Result = TypeVar("Result")
dtypes = st.sampled_from(sorted(TOLERANCE, key=str))


def kernel_and_twin(module: ModuleType, call: Callable[[], Result]) -> tuple[Result, Result]:
    """What ``call`` returns with the kernel, and with its plain-torch twin."""
    kernel = call()
    with mock.patch.object(module, "use_triton", lambda x: False):
        return kernel, call()


def assert_close(actual: torch.Tensor, oracle: torch.Tensor, what: str) -> None:
    """``actual`` against a float64 ``oracle``: the worst row of the last dimension counts."""
    assert actual.shape == oracle.shape, f"{what}: {tuple(actual.shape)} instead of {tuple(oracle.shape)}"
    if not actual.numel():
        return
    assert bool(torch.isfinite(actual).all()), f"{what}: not finite"
    error = (actual.double() - oracle).abs().amax(-1) / oracle.abs().amax(-1).clamp(min=1)
    limit = TOLERANCE[actual.dtype]
    assert error.max() <= limit, f"{what}: row {int(error.argmax())} is off by {error.max():.2e} > {limit:.0e}"
