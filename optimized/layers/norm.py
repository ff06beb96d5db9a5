"""RMSNorm with a layer's weights."""

from __future__ import annotations

import torch

from optimized.kernels.native import Library
from optimized.kernels.rms_norm import rms_norm
from tandem.models.model_config import ModelConfig


class Norm:
    """RMSNorm over the last dimension: Zhang and Sennrich, "Root mean square layer normalization" (2019)."""

    def __init__(self, weight: torch.Tensor, config: ModelConfig, library: Library) -> None:
        self._library = library
        self._eps = config.norm_eps
        self._late_rounding = config.norm_float32
        self._weight = weight.float() + config.norm_offset if config.norm_float32 else weight + config.norm_offset

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.of_sum(x, None, 1)[0]

    def of_sum(self, x: torch.Tensor, y: torch.Tensor | None, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of x + scale · y, and that sum."""
        late = self._late_rounding
        return rms_norm(x, self._weight, self._eps, self._library, late_rounding=late, added=y, added_scale=scale)
