"""The gated activations of an MLP: act(gate) · up (Shazeer, "GLU variants improve transformer", 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from optimized.kernels.compat import ceil_div, jit, next_power_of_2, tl, use_triton
from optimized.kernels.native import INT, POINTER, TYPES, Library, declare
from tandem.models.model_config import Activation

_BLOCK = 1024
_NATIVE = declare("tandem_gated", INT, INT, POINTER, INT, INT, INT, POINTER)
_NAMES: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh")


def gated(x: torch.Tensor, name: Activation, library: Library) -> torch.Tensor:
    """act(gate) · up in float32, each of the two results rounded to the dtype of ``x``.

    Args:
        x: [T, 2I], gate and up beside each other; rows may lie apart, channels are contiguous.
        name: ``gelu`` is the exact one, ``gelu_tanh`` Hendrycks and Gimpel's approximation ("GELUs", 2016).
        library: the CPU kernels.

    Returns:
        [T, I], contiguous.
    """
    num_rows, size = x.shape[0], x.shape[1] // 2
    run = library.find(_NATIVE, x.dtype)
    if not use_triton(x) and run is None:
        return _twin(x, name)
    y = torch.empty((num_rows, size), dtype=x.dtype, device=x.device)
    if not use_triton(x):
        assert run is not None
        run(TYPES[x.dtype], _NAMES.index(name), x.data_ptr(), x.stride(0), num_rows, size, y.data_ptr())
    elif y.numel():
        block = min(_BLOCK, next_power_of_2(size))
        _gated_kernel[(num_rows, ceil_div(size, block))](
            x, y, x.stride(0), SIZE=size, NAME=name, BLOCK=block, num_warps=4
        )
    return y


def _twin(x: torch.Tensor, name: Activation) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    if name == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh" if name == "gelu_tanh" else "none") * up


@jit()
def _gated_kernel(  # type: ignore[no-untyped-def]
    p_x, p_y, stride_x, SIZE: tl.constexpr, NAME: tl.constexpr, BLOCK: tl.constexpr
):
    i_row = tl.program_id(0).to(tl.int64)
    o_i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_i = o_i < SIZE
    b_gate = tl.load(p_x + i_row * stride_x + o_i, mask=m_i, other=0.0).to(tl.float32)
    b_up = tl.load(p_x + i_row * stride_x + SIZE + o_i, mask=m_i, other=0.0)
    if NAME == "silu":
        b_gate = b_gate / (1 + tl.exp(-b_gate))
    elif NAME == "gelu_tanh":  # (1 + tanh(z)) / 2 = 1 / (1 + exp(-2z)), z = sqrt(2 / pi) (x + 0.044715 x³)
        b_gate = b_gate / (1 + tl.exp(-1.5957691216057308 * (b_gate + 0.044715 * b_gate * b_gate * b_gate)))
    else:
        b_gate = b_gate * 0.5 * (1 + tl.erf(b_gate * 0.7071067811865476))
    b_y = b_gate.to(b_up.dtype).to(tl.float32) * b_up.to(tl.float32)
    tl.store(p_y + i_row * SIZE + o_i, b_y, mask=m_i)
