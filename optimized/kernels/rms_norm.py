"""RMSNorm, with the addition before it in the same pass.

Zhang and Sennrich, "Root mean square layer normalization" (2019).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from optimized.kernels.compat import ceil_div, jit, next_power_of_2, tl, use_triton
from optimized.kernels.native import FLOAT, INT, POINTER, TYPES, Library, declare

_PROGRAM_SIZE = 1024  # values that a program takes at least, in whole rows
_NATIVE = declare("tandem_rms_norm", INT, INT, *[POINTER, INT, INT] * 2, POINTER, *[INT] * 3, *[FLOAT] * 2,
                  *[POINTER] * 2)  # fmt: skip


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    library: Library,
    *,
    late_rounding: bool,
    added: torch.Tensor | None = None,
    added_scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """s = x + added_scale · added, and s / sqrt(mean(s²) + eps) · weight; the norm in float32.

    Args:
        x: [..., D], the residual stream, or heads [T, H, d] of a projection; at most three dimensions, the last
            contiguous.
        weight: [D] with the architecture's offset folded in; float32 with ``late_rounding``, else in the dtype of
            ``x``.
        library: the CPU kernels.
        late_rounding: round to the dtype of ``x`` after multiplying by the weight, not before.
        added: as ``x``; None adds nothing.
        added_scale: each of the product and the sum is rounded to the dtype of ``x``.

    Returns:
        The norm and s, both contiguous and in the dtype of ``x``; s is ``x`` itself if nothing is added.
    """
    if not use_triton(x):
        run = library.find(_NATIVE, x.dtype)
        if run is None:
            return _twin(x, weight, eps, late_rounding, added, added_scale)
        return _run_native(run, x, weight, eps, late_rounding, added, added_scale)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    s = x if added is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        _launch(x, weight, eps, late_rounding, added, added_scale, y, s)
    return y, s


def _twin(
    x: torch.Tensor, weight: torch.Tensor, eps: float, late_rounding: bool, added: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    s = x if added is None else (x + added * scale).contiguous()
    y = s.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return ((y * weight).to(x.dtype) if late_rounding else y.to(x.dtype) * weight).contiguous(), s


def _run_native(
    run: Callable[..., None],
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    late_rounding: bool,
    added: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    size = x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype)
    s = x if added is None else torch.empty(x.shape, dtype=x.dtype)
    num_inner = x.shape[-2] if x.dim() == 3 else 1
    run(
        TYPES[x.dtype], late_rounding, x.data_ptr(), *_row_strides(x),
        None if added is None else added.data_ptr(), *_row_strides(x if added is None else added),
        weight.data_ptr(), x.numel() // size, num_inner, size, eps, scale, y.data_ptr(), s.data_ptr(),
    )  # fmt: skip
    return y, s


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    late_rounding: bool,
    added: torch.Tensor | None,
    scale: float,
    y: torch.Tensor,
    s: torch.Tensor,
) -> None:
    size = x.shape[-1]
    inner = x.shape[-2] if x.dim() == 3 else 1  # rows that lie a stride of their own apart
    num_rows = x.numel() // size
    block_d = next_power_of_2(size)
    block_r = max(1, _PROGRAM_SIZE // block_d)
    _rms_norm_kernel[(ceil_div(num_rows, block_r),)](
        x,
        added,
        weight,
        y,
        s,
        *_row_strides(x),
        *_row_strides(x if added is None else added),
        num_rows,
        inner,
        eps,
        scale,
        SIZE=size,
        HAS_ADDED=added is not None,
        LATE_ROUNDING=late_rounding,
        BLOCK_R=block_r,
        BLOCK_D=block_d,
        num_warps=min(16, max(1, block_r * block_d // 512)),
    )


def _row_strides(x: torch.Tensor) -> tuple[int, int]:
    """Of the outer and the inner index of a row."""
    return (x.stride(0), x.stride(1)) if x.dim() == 3 else (x.stride(0), 0)


@jit("num_rows")
def _rms_norm_kernel(  # type: ignore[no-untyped-def]
    p_x,
    p_added,
    p_weight,
    p_y,
    p_s,
    stride_x_outer,
    stride_x_inner,
    stride_added_outer,
    stride_added_inner,
    num_rows,
    inner,
    eps,
    scale,
    SIZE: tl.constexpr,
    HAS_ADDED: tl.constexpr,
    LATE_ROUNDING: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    o_d = tl.arange(0, BLOCK_D)[None, :]
    m_d = o_d < SIZE
    m = (i_row < num_rows) & m_d
    i_outer, i_inner = i_row // inner, i_row % inner
    b_s = tl.load(p_x + i_outer * stride_x_outer + i_inner * stride_x_inner + o_d, mask=m, other=0.0)
    b_weight = tl.load(p_weight + o_d, mask=m_d, other=0.0)
    if HAS_ADDED:
        o_added = i_outer * stride_added_outer + i_inner * stride_added_inner
        b_added = tl.load(p_added + o_added + o_d, mask=m, other=0.0).to(tl.float32)
        b_added = (b_added * scale).to(b_s.dtype)
        b_s = (b_s.to(tl.float32) + b_added.to(tl.float32)).to(b_s.dtype)
        tl.store(p_s + i_row * SIZE + o_d, b_s, mask=m)

    b_y = b_s.to(tl.float32)
    b_y = b_y * tl.rsqrt(tl.sum(b_y * b_y, axis=1, keep_dims=True) / SIZE + eps)
    if not LATE_ROUNDING:
        b_y = b_y.to(b_s.dtype).to(tl.float32)
    b_y = b_y * b_weight.to(tl.float32)
    tl.store(p_y + i_row * SIZE + o_d, b_y, mask=m)
