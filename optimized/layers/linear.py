"""Products with weights. On a CPU oneDNN wants them reordered once; then it reads them twice as fast."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from optimized.kernels import matvec
from optimized.kernels.native import Library


class Linear:
    """x Wᵀ + b for a weight [outputs, inputs]; owns the weight in whatever layout is fastest."""

    def __init__(self, weight: torch.Tensor, library: Library, bias: torch.Tensor | None = None) -> None:
        self._library = library
        self._packed = _can_pack(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1) if self._packed else weight
        self._blocks = matvec.Blocks.of(weight, self._weight) if self._packed else None
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, inputs] → [T, outputs]."""
        if self._blocks is not None and matvec.is_ready(x, self._library):
            return matvec.matvec(x, self._blocks, self._bias, self._library)
        if self._packed:
            y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
            return y
        return F.linear(x, self._weight, self._bias)


def linear(weights: dict[str, torch.Tensor], name: str, library: Library) -> Linear:
    """The product with a tensor of the checkpoint, taken out of ``weights`` with its bias, if it has one."""
    return Linear(weights.pop(f"{name}.weight"), library, weights.pop(f"{name}.bias", None))


def _can_pack(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if weight.dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return False
