"""Mixture of experts over a batch of tokens: sorted by expert, each expert multiplies its tokens at once."""

from __future__ import annotations

import torch

from optimized.kernels.activation import gated
from optimized.linear import Linear
from tandem.model_config import Activation, MoeConfig


class MoeLayer:
    """Router and experts of one layer (Shazeer et al., "Outrageously large neural networks", 2017)."""

    def __init__(self, weights: dict[str, torch.Tensor], prefix: str, moe: MoeConfig, activation: Activation) -> None:
        self._moe = moe
        self._activation = activation
        self._router = Linear(weights.pop(f"{prefix}gate.weight"))
        self._gate_up, self._down = [], []
        for expert in range(moe.num_experts):
            gate, up, down = (
                weights.pop(f"{prefix}experts.{expert}.{name}.weight")
                for name in (moe.gate_name, moe.up_name, moe.down_name)
            )
            self._gate_up.append(Linear(torch.cat((gate, up))))
            self._down.append(Linear(down))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, D] → [T, D]."""
        k = self._moe.num_experts_per_tok
        share, chosen = torch.softmax(self._router(x).float(), dim=-1).topk(k, dim=-1)  # [T, K]
        if self._moe.norm_topk_prob:
            share = share / share.sum(-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)  # places (token, choice), by expert
        counts = chosen.flatten().bincount(minlength=self._moe.num_experts).tolist()
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
        return self._down[expert](gated(self._gate_up[expert](x), self._activation))
