"""RMSNorm: whole rows and heads of a projection, with an addition and without."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from optimized.kernels import rms_norm as op
from optimized.kernels.native import Library
from tests.kernels.interpreted.checks import assert_close, dtypes, kernel_and_twin


@given(
    num_tokens=st.integers(0, 5),
    num_heads=st.sampled_from([None, 1, 3]),
    size=st.sampled_from([1, 5, 64, 100, 512, 1500]),
    added_scale=st.sampled_from([None, 1.0, 0.22]),
    late_rounding=st.booleans(),
    magnitude=st.sampled_from([1e-3, 1.0, 30.0]),
    dtype=dtypes,
    seed=st.integers(0, 1 << 30),
)
def test_worst_row(
    num_tokens: int,
    num_heads: int | None,
    size: int,
    added_scale: float | None,
    late_rounding: bool,
    magnitude: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x, added = (wide_rows(num_tokens, num_heads, size, magnitude, dtype) for _ in "xa")
    weight = torch.randn(size) + 1
    weight = weight if late_rounding else weight.to(dtype)
    eps = 1e-5

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        if added_scale is None:
            return op.rms_norm(x, weight, eps, Library(), late_rounding=late_rounding)
        return op.rms_norm(
            x, weight, eps, Library(), late_rounding=late_rounding, added=added, added_scale=added_scale
        )

    total = x.double() if added_scale is None else x.double() + (added.double() * added_scale)
    for (y, s), what in zip(kernel_and_twin(op, call), ("kernel", "twin"), strict=True):
        assert_close(s, total, what)
        z = s.double()
        assert_close(y, z / (z.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double(), what)


def wide_rows(
    num_tokens: int, num_heads: int | None, size: int, magnitude: float, dtype: torch.dtype
) -> torch.Tensor:
    """[T, D] or [T, H, D], a part of longer rows."""
    if num_heads is None:
        return (torch.randn(num_tokens, size + 3) * magnitude).to(dtype)[:, 1 : 1 + size]
    return (torch.randn(num_tokens, num_heads + 2, size) * magnitude).to(dtype)[:, 1 : 1 + num_heads]
