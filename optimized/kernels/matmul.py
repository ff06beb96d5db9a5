"""Products with a weight in bfloat16 on a CPU. A row's result does not depend on the rows beside it.

The weight is packed once, in blocks of 64 outputs: in them pairs of inputs, then outputs, so that a vector of weights
is multiplied by a pair of inputs that all its lanes share: ``VDPBF16PS`` of AVX512_BF16 where the CPU has it, else
products in float32.

Times faster on one core of a Zen 5: than oneDNN 1.3 for one row, 1.1 for 16, 1.0 to 1.04 from 64 on; without
AVX512_BF16 1.5 to 3.6; with AVX2 alone, where oneDNN has no bfloat16, than PyTorch's own product 1.3 to 4.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F

from optimized.kernels.native import INT, POINTER, Library, declare

WIDTH = 64  # outputs of a block
_NATIVE = declare("tandem_matmul", POINTER, POINTER, INT, INT, POINTER, INT, INT, POINTER)


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Blocks [⌈outputs / 64⌉, inputs / 2, 64, 2] of a weight [outputs, inputs]; the last is filled up with zeros."""
    num_outputs, num_inputs = weight.shape
    blocks = F.pad(weight, (0, 0, 0, -num_outputs % WIDTH)).view(-1, WIDTH, num_inputs // 2, 2)
    return blocks.transpose(1, 2).contiguous()


def is_best(weight: torch.Tensor, library: Library) -> bool:
    """Whether nothing multiplies by such a weight faster, as far as is known: measured on x86 without AMX."""
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or weight.shape[1] % 2:
        return False
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return library.is_loaded and is_x86 and not torch.cpu._is_amx_tile_supported()


def matmul(
    x: torch.Tensor, weight: torch.Tensor, num_outputs: int, bias: torch.Tensor | None, library: Library
) -> torch.Tensor:
    """x Wᵀ + b in float32, rounded once.

    Args:
        x: bfloat16 [T, inputs]; rows may lie apart.
        weight: from ``pack``, of so many outputs.
        bias: bfloat16 [outputs].

    Returns:
        [T, outputs].
    """
    run = library.find(_NATIVE)
    assert run is not None and x.dtype == torch.bfloat16 and x.stride(1) == 1
    num_rows = x.shape[0]
    y = torch.empty((num_rows, num_outputs), dtype=x.dtype)
    run(
        weight.data_ptr(), x.data_ptr(), x.stride(0), num_rows, None if bias is None else bias.data_ptr(),
        num_outputs, weight.shape[1], y.data_ptr(),
    )  # fmt: skip
    return y
