"""Root mean square normalisation: Zhang and Sennrich, "Root mean square layer normalization" (2019)."""

from __future__ import annotations

import torch
from torch import nn

from tandem.models.model_config import ModelConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) · (weight + offset) over the last dimension, the mean in float32."""

    def __init__(self, size: int, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.config = config

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        c = self.config
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + c.norm_eps)
        if c.norm_float32:
            return (y * (self.weight.float() + c.norm_offset)).to(x.dtype)
        return y.to(x.dtype) * (self.weight + c.norm_offset)
