"""The decoder. Module and parameter names are the checkpoint's; families differ by the flags of ``ModelConfig``.

One sequence at a time, so tensors have no batch dimension. Letters in shapes: T new tokens, S tokens so far, D hidden
size, H heads, H_kv key-value heads, d head size, R rotated channels, I intermediate size, E experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from reference.attention import Attention
from reference.kv_cache import KVCache
from reference.mlp import MLP, MixtureOfExperts
from reference.norm import RMSNorm
from reference.rope import Rope
from tandem.models.model_config import ModelConfig


class Layer(nn.Module):
    """Two residual equations; a family places its norms before, after, or on both sides of attention and MLP."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.self_attn = Attention(config, layer)
        if config.moe is not None and config.sparse_layers[layer]:
            self.feed_forward_name = config.moe.block_name
            self.add_module(self.feed_forward_name, MixtureOfExperts(config, config.moe))
        else:
            self.feed_forward_name = "mlp"
            self.mlp = MLP(config)
        for name in config.norm_names:
            if name is not None:
                self.add_module(name, RMSNorm(config.hidden_size, config))

    def forward(self, x: torch.Tensor, p: torch.Tensor, rope: Rope, kv: KVCache) -> torch.Tensor:
        """[T, D] → [T, D] at the positions ``p`` [T]; extends ``kv`` by this layer's keys and values."""
        before_attn, after_attn, before_mlp, after_mlp = (self._norm(name) for name in self.config.norm_names)
        feed_forward = self.get_submodule(self.feed_forward_name)
        r = self.config.residual_scale
        x = x + r * after_attn(self.self_attn(before_attn(x), p, rope, kv))
        x = x + r * after_mlp(feed_forward(before_mlp(x)))
        return x

    def _norm(self, name: str | None) -> nn.Module:
        return nn.Identity() if name is None else self.get_submodule(name)


class Decoder(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config, layer) for layer in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config)


class Model(nn.Module):
    """A language model with weights.

    Args:
        config: the architecture.
        weights: every tensor of ``config.tensor_shapes()``; they are kept, not copied. Their dtype is that of the
            activations, their device that of the computation.
        max_model_len: the engine's.
    """

    def __init__(self, config: ModelConfig, weights: dict[str, torch.Tensor], max_model_len: int) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):  # shapes without memory; the weights take their places below
            self.model = Decoder(config)
            if not config.tie_word_embeddings:
                self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.load_state_dict(weights, strict=True, assign=True)
        self.requires_grad_(False)
        embedding = self.model.embed_tokens.weight
        self.dtype, self.device = embedding.dtype, embedding.device
        ropes = {rope: Rope(rope, max_model_len, self.device) for rope in (config.rope, config.local_rope) if rope}
        self.ropes = [ropes[config.rope_of(layer)] for layer in range(config.num_layers)]

    def new_cache(self) -> KVCache:
        """An empty cache for one sequence."""
        return KVCache(self.config, self.dtype, self.device)

    def forward(
        self, token_ids: torch.Tensor, kv: KVCache, seen: Callable[[torch.Tensor], None] = lambda x: None
    ) -> torch.Tensor:
        """Compute the tokens [T] that follow those in ``kv``; returns their hidden states [T, D], extends ``kv``.

        ``seen`` is shown the residual stream after the embedding and after each layer.
        """
        scale = torch.tensor(self.config.embedding_scale, dtype=self.dtype, device=self.device)
        x = self.model.embed_tokens(token_ids) * scale  # [T, D]
        seen(x)
        p = torch.arange(kv.num_tokens, kv.num_tokens + len(token_ids), device=self.device)  # [T]
        for layer, rope in zip(self.model.layers, self.ropes, strict=True):
            x = layer(x, p, rope, kv)
            seen(x)
        kv.advance(len(token_ids))
        return self.model.norm(x)  # type: ignore[no-any-return]

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of the next token, float32 [T, V], from hidden states [T, D]."""
        c = self.config
        w = self.model.embed_tokens.weight if c.tie_word_embeddings else self.lm_head.weight  # [V, D]
        z = (x @ w.T).float() / c.logit_divisor
        if c.logit_softcap is not None:
            z = c.logit_softcap * torch.tanh(z / c.logit_softcap)
        return z
