"""Products with weights, each weight in the layout that is fastest on its device."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from optimized.kernels import matmul
from optimized.kernels.native import Library


class Product(Protocol):
    """Owns a weight: x [T, inputs] → x Wᵀ + b [T, outputs]."""

    weight: torch.Tensor

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor: ...


class Plain:
    """The weight as checkpoints have it."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, self.weight, bias)


class Reordered:
    """As oneDNN wants it on a CPU: it reads such a weight twice as fast."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")
        return y


class Packed:
    """For our own product, which reads it faster still."""

    def __init__(self, weight: torch.Tensor, library: Library) -> None:
        self.weight = matmul.pack(weight)
        self._num_outputs, self._library = len(weight), library

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return matmul.matmul(x, self.weight, self._num_outputs, bias, self._library)


class Linear:
    """x Wᵀ + b for a weight [outputs, inputs]; owns the weight in whatever layout is fastest."""

    def __init__(self, weight: torch.Tensor, library: Library, bias: torch.Tensor | None = None) -> None:
        self._library, self._bias = library, bias
        self._product: Product
        if matmul.is_best(weight, library):
            self._product = Packed(weight, library)
            return
        self._product = Reordered(weight) if _can_reorder(weight) else Plain(weight)
        if not library.is_loaded:
            library.when_loaded(self._pack)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, inputs] → [T, outputs]."""
        return self._product(x, self._bias)

    def _pack(self) -> None:
        """Let our own product take over. In another thread than that which multiplies meanwhile."""
        weight = self._product.weight
        if matmul.is_best(weight, self._library):
            self._product = Packed(weight.to_dense() if weight.is_mkldnn else weight, self._library)


def linear(weights: dict[str, torch.Tensor], name: str, library: Library) -> Linear:
    """The product with a tensor of the checkpoint, taken out of ``weights`` with its bias, if it has one."""
    return Linear(weights.pop(f"{name}.weight"), library, weights.pop(f"{name}.bias", None))


def _can_reorder(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if weight.dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return False
