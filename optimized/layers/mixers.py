"""What mixes the tokens of a sequence in a layer, by kind.

A mixer owns the layer's weights for it; what it remembers of earlier tokens is the cache's business, which has a
layer of the same kind (``cache.paged_cache.LAYERS``).

Letters in shapes: T tokens of the step, D hidden size, H heads, H_kv key-value heads, d head size.
"""

from __future__ import annotations

from typing import Protocol

import torch

from optimized.cache.kv_cache import Attend
from optimized.kernels.native import Library
from optimized.layers.linear import linear
from optimized.layers.norm import Norm
from tandem.models.model_config import Mixer as MixerKind
from tandem.models.model_config import ModelConfig


class Mixer(Protocol):
    """[T, D] → [T, D]."""

    def __call__(self, x: torch.Tensor, attend: Attend) -> torch.Tensor: ...


class Attention:
    """Grouped-query attention (Ainslie et al., "GQA", 2023); some families norm queries and keys."""

    def __init__(self, config: ModelConfig, layer: int, weights: dict[str, torch.Tensor], library: Library) -> None:
        prefix = f"model.layers.{layer}.self_attn."
        self._config, self._layer = config, layer
        self._qkv = linear(weights, f"{prefix}qkv_proj", library)
        self._o = linear(weights, f"{prefix}o_proj", library)
        self._q_norm, self._k_norm = (
            None if config.qk_norm == "none" else Norm(weights.pop(f"{prefix}{name}.weight"), config, library)
            for name in ("q_norm", "k_norm")
        )

    def __call__(self, x: torch.Tensor, attend: Attend) -> torch.Tensor:
        """[T, D] → [T, D]."""
        c = self._config
        heads = self._qkv(x).view(x.shape[0], -1, c.head_dim)  # [T, H + 2 H_kv, d]
        q, k, v = heads.split_with_sizes((c.num_heads, c.num_kv_heads, c.num_kv_heads), 1)
        if self._q_norm and self._k_norm:
            is_full = c.qk_norm == "full"  # over all heads together
            q, k = (
                norm(y.flatten(1)).view(y.shape) if is_full else norm(y)
                for norm, y in ((self._q_norm, q), (self._k_norm, k))
            )
        return self._o(attend(self._layer, q, k, v))


MIXERS: dict[MixerKind, type[Attention]] = {"attention": Attention}
