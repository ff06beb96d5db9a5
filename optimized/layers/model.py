"""The decoder over a flat batch of tokens from many sequences. Weights that read the same input are one matrix.

Where tokens stand and what they may see is the cache's business: layers hand queries, keys and values to it.

Letters in shapes: T tokens of the step, D hidden size, H heads, H_kv key-value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

from optimized.cache.kv_cache import Attend
from optimized.kernels.activation import gated
from optimized.kernels.native import Library
from optimized.layers.linear import Linear, linear
from optimized.layers.mixers import MIXERS
from optimized.layers.moe import MoeLayer
from optimized.layers.norm import Norm
from tandem.models.model_config import Activation, ModelConfig


class FeedForward(Protocol):
    """[T, D] → [T, D]."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class Mlp:
    """down(act(gate(x)) · up(x))."""

    def __init__(
        self, weights: dict[str, torch.Tensor], prefix: str, activation: Activation, library: Library
    ) -> None:
        self._gate_up = linear(weights, f"{prefix}gate_up_proj", library)
        self._down = linear(weights, f"{prefix}down_proj", library)
        self._activation, self._library = activation, library

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._down(gated(self._gate_up(x), self._activation, self._library))


class Layer:
    """One layer's weights and its two residual equations."""

    def __init__(self, config: ModelConfig, layer: int, weights: dict[str, torch.Tensor], library: Library) -> None:
        prefix = f"model.layers.{layer}."
        self.config = config
        self._mixer = MIXERS[config.mixers[layer]](config, layer, weights, library)
        self._norms = [
            Norm(weights.pop(f"{prefix}{name}.weight"), config, library) if name else None
            for name in config.norm_names
        ]
        self._feed_forward: FeedForward
        if config.moe is not None and config.sparse_layers[layer]:
            prefix += f"{config.moe.block_name}."
            self._feed_forward = MoeLayer(weights, prefix, config.moe, config.activation, library)
        else:
            self._feed_forward = Mlp(weights, f"{prefix}mlp.", config.activation, library)

    def __call__(self, x: torch.Tensor, y: torch.Tensor | None, attend: Attend) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream and what is yet to be added to it, before the layer → the same two after it.

        Each is [T, D]. The addition waits for the norm behind it, which takes it along in one pass.
        """
        before_attn, after_attn, before_mlp, after_mlp = self._norms
        h, x = self._enter(before_attn, x, y)
        y = self._mixer(h, attend)
        h, x = self._enter(before_mlp, x, after_attn(y) if after_attn else y)
        y = self._feed_forward(h)
        return x, after_mlp(y) if after_mlp else y

    def _enter(self, norm: Norm | None, x: torch.Tensor, y: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """What a branch reads, and the residual stream with ``y`` added."""
        if norm is not None:
            return norm.of_sum(x, y, self.config.residual_scale)
        x = x if y is None else _add(x, y, self.config.residual_scale)
        return x, x


class Model:
    """All weights, and the way from tokens to logits.

    Args:
        config: the architecture.
        weights: as ``fuse`` returns them; emptied, so that packed copies are the only ones.
        library: the CPU kernels, which may be loaded later.
    """

    def __init__(self, config: ModelConfig, weights: dict[str, torch.Tensor], library: Library) -> None:
        self.config = config
        self.embedding = weights.pop("model.embed_tokens.weight")
        self.dtype, self.device = self.embedding.dtype, self.embedding.device
        self._scale = torch.tensor(config.embedding_scale, dtype=self.dtype, device=self.device)
        head = weights.pop("lm_head.weight", self.embedding)
        self._head = Linear(head, library)
        self._norm = Norm(weights.pop("model.norm.weight"), config, library)
        self._layers = [Layer(config, layer, weights, library) for layer in range(config.num_layers)]

    def forward(
        self,
        token_ids: torch.Tensor,
        attend: Attend,
        seen: Callable[[torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Hidden states [T, D] of tokens [T].

        ``seen`` is shown the residual stream after the embedding and after each layer.
        """
        x = F.embedding(token_ids, self.embedding)
        if self.config.embedding_scale != 1:
            x = x * self._scale
        y: torch.Tensor | None = None
        for layer in self._layers:
            if seen:
                seen(self._sum(x, y))
            x, y = layer(x, y, attend)
        if seen:
            seen(self._sum(x, y))
        return self._norm.of_sum(x, y, self.config.residual_scale)[0]

    def _sum(self, x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        return x if y is None else _add(x, y, self.config.residual_scale)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of the next token, float32 [T, V], from hidden states [T, D]."""
        z = self._head(x).float()
        if self.config.logit_divisor != 1:
            z /= self.config.logit_divisor
        if (cap := self.config.logit_softcap) is not None:
            z = torch.tanh(z / cap) * cap
        return z


def _add(x: torch.Tensor, y: torch.Tensor, scale: float) -> torch.Tensor:
    return x + y if scale == 1 else torch.add(x, y * scale)
