"""The keys and values of one request, contiguous, growing as it does."""

from __future__ import annotations

import torch

from tandem.models.model_config import ModelConfig

MIN_CAPACITY = 64


class KVCache:
    """Keys and values of all layers for one sequence.

    Owned by one request and freed with it. Positions [0, num_tokens) are written in every layer; a forward pass
    writes the positions after them layer by layer and then calls :meth:`advance` once.

    Attributes:
        num_tokens: positions that stand in every layer.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.num_kv_heads, 0, config.head_dim)
        self._k = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self._v = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.num_tokens = 0

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new keys and values [H_kv, T, d] of one layer after those that stand there.

        Returns views of all keys and of all values of the layer, each [H_kv, num_tokens + T, d].
        """
        start, end = self.num_tokens, self.num_tokens + k.shape[1]
        self._k[layer] = _with_room(self._k[layer], start, end)
        self._v[layer] = _with_room(self._v[layer], start, end)
        self._k[layer][:, start:end] = k
        self._v[layer][:, start:end] = v
        return self._k[layer][:, :end], self._v[layer][:, :end]

    def advance(self, num_new_tokens: int) -> None:
        """Say that every layer has been extended by so many tokens."""
        self.num_tokens += num_new_tokens


def _with_room(x: torch.Tensor, used: int, needed: int) -> torch.Tensor:
    """``x`` [H, capacity, d], or a larger copy of its ``used`` part; a quarter is added so that copies are rare."""
    if needed <= x.shape[1]:
        return x
    capacity = max(MIN_CAPACITY, needed + needed // 4)
    larger = x.new_empty((x.shape[0], capacity, x.shape[2]))
    larger[:, :used] = x[:, :used]
    return larger


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
