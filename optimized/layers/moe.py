"""Mixture of experts over a batch of tokens.

On a GPU the experts' matrices are stacked, as ``kernels.moe_matmul`` reads them. On a CPU tokens are sorted by
expert, and each expert multiplies its tokens at once with a matrix packed for it.
"""

from __future__ import annotations

from typing import Protocol

import torch

from optimized.kernels.activation import gated
from optimized.kernels.compat import use_triton
from optimized.kernels.moe_matmul import experts
from optimized.kernels.native import Library
from optimized.layers.linear import Linear
from tandem.models.model_config import Activation, MoeConfig

Weights = dict[str, torch.Tensor]


class MoeLayer:
    """Router and experts of one layer (Shazeer et al., "Outrageously large neural networks", 2017)."""

    def __init__(
        self, weights: Weights, prefix: str, moe: MoeConfig, activation: Activation, library: Library
    ) -> None:
        self._moe = moe
        router = weights.pop(f"{prefix}gate.weight")
        self._router = Linear(router, library)
        kind = StackedExperts if use_triton(router) else PackedExperts
        self._experts: Experts = kind(weights, f"{prefix}experts.", moe, activation, library)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, D] → [T, D]."""
        k = self._moe.num_experts_per_tok
        share, chosen = torch.softmax(self._router(x).float(), dim=-1).topk(k, dim=-1)  # [T, K]
        if self._moe.norm_topk_prob:
            share = share / share.sum(-1, keepdim=True)
        return self._experts(x, chosen, share)


class Experts(Protocol):
    """Tokens ``x`` [T, D] through their experts ``chosen`` [T, K], summed with weights ``share`` [T, K]: [T, D]."""

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, share: torch.Tensor) -> torch.Tensor: ...


class StackedExperts:
    """All experts in two tensors, [E, 2I, D] and [E, D, I]; nothing waits for the device."""

    def __init__(
        self, weights: Weights, prefix: str, moe: MoeConfig, activation: Activation, library: Library
    ) -> None:
        self._activation, self._library = activation, library
        inner, hidden = weights[f"{prefix}0.{moe.gate_name}.weight"].shape
        like = weights[f"{prefix}0.{moe.gate_name}.weight"]
        self._gate_up = like.new_empty((moe.num_experts, 2 * inner, hidden))
        self._down = like.new_empty((moe.num_experts, hidden, inner))
        for expert in range(moe.num_experts):
            self._gate_up[expert, :inner] = weights.pop(f"{prefix}{expert}.{moe.gate_name}.weight")
            self._gate_up[expert, inner:] = weights.pop(f"{prefix}{expert}.{moe.up_name}.weight")
            self._down[expert] = weights.pop(f"{prefix}{expert}.{moe.down_name}.weight")

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        return experts(x, self._gate_up, self._down, chosen, share, self._activation, self._library)


class PackedExperts:
    """Two matrices for each expert, packed as ``Linear`` packs them."""

    def __init__(
        self, weights: Weights, prefix: str, moe: MoeConfig, activation: Activation, library: Library
    ) -> None:
        self._activation, self._library = activation, library
        self._gate_up, self._down = [], []
        for expert in range(moe.num_experts):
            gate, up, down = (
                weights.pop(f"{prefix}{expert}.{name}.weight") for name in (moe.gate_name, moe.up_name, moe.down_name)
            )
            self._gate_up.append(Linear(torch.cat((gate, up)), library))
            self._down.append(Linear(down, library))

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        k = chosen.shape[1]
        order = chosen.flatten().argsort(stable=True)  # places (token, choice), by expert
        counts = chosen.flatten().bincount(minlength=len(self._down)).tolist()
        source = order // k
        inputs = x[source]  # [T · K, D]
        outputs = torch.empty_like(inputs)
        start = 0
        for expert, count in enumerate(counts):
            if count:
                part = slice(start, start + count)
                outputs[part] = self._expert(expert, inputs[part])
                start += count
        outputs *= share.flatten()[order, None].to(x.dtype)
        return torch.zeros_like(x).index_add_(0, source, outputs)

    def _expert(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        return self._down[expert](gated(self._gate_up[expert](x), self._activation, self._library))
