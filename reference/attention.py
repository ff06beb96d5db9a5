"""Attention: each token takes a weighted mean of the values before it, weighted by how well keys match its query.

Vaswani et al., "Attention is all you need" (2017); fewer key-value heads than query heads: Ainslie et al., "GQA"
(2023); windows: Jiang et al., "Mistral 7B" (2023); soft caps: "Gemma 2" (2024).
"""

from __future__ import annotations

import torch
from torch import nn

from reference.kv_cache import KVCache
from reference.norm import RMSNorm
from reference.rope import Rope, rotate
from tandem.models.model_config import ModelConfig

MAX_SCORES = 1 << 24  # scores held at once; bounds memory, not results


class Attention(nn.Module):
    """Self-attention of one layer."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        c = config
        self.config = c
        self.layer = layer
        self.q_size, self.kv_size = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        if c.fused_projections:
            self.qkv_proj = nn.Linear(c.hidden_size, self.q_size + 2 * self.kv_size, bias=c.qkv_bias)
        else:
            self.q_proj = nn.Linear(c.hidden_size, self.q_size, bias=c.qkv_bias)
            self.k_proj = nn.Linear(c.hidden_size, self.kv_size, bias=c.qkv_bias)
            self.v_proj = nn.Linear(c.hidden_size, self.kv_size, bias=c.qkv_bias)
        self.o_proj = nn.Linear(self.q_size, c.hidden_size, bias=c.o_bias)
        if c.qk_norm != "none":
            per_head = c.qk_norm == "head"
            self.q_norm = RMSNorm(c.head_dim if per_head else self.q_size, c)
            self.k_norm = RMSNorm(c.head_dim if per_head else self.kv_size, c)

    def forward(self, x: torch.Tensor, p: torch.Tensor, rope: Rope, kv: KVCache) -> torch.Tensor:
        """Attend from the tokens ``x`` [T, D] at the positions ``p`` [T] to all up to them; extends ``kv``."""
        c = self.config
        q, k, v = self._project(x)  # [T, H·d], [T, H_kv·d], [T, H_kv·d]
        if c.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (self._heads(y) for y in (q, k, v))  # [H, T, d], [H_kv, T, d], [H_kv, T, d]
        if c.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = rope.angles(p)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = kv.extend(self.layer, k, v)  # [H_kv, S, d], S tokens so far
        group = c.num_heads // c.num_kv_heads  # query heads that share a key-value head
        k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)  # [H, S, d]
        rows = max(1, MAX_SCORES // (c.num_heads * k.shape[1]))
        pieces = zip(torch.split(q, rows, dim=1), torch.split(p, rows), strict=True)
        o = torch.cat([self._attend(q_piece, p_piece, k, v) for q_piece, p_piece in pieces], dim=1)  # [H, T, d]
        return self.o_proj(o.transpose(0, 1).flatten(1))  # type: ignore[no-any-return]  # [T, D]

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.config.fused_projections:
            return torch.split(self.qkv_proj(x), [self.q_size, self.kv_size, self.kv_size], dim=-1)
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(len(x), -1, self.config.head_dim).transpose(0, 1)  # [T, H·d] → [H, T, d]

    def _attend(self, q: torch.Tensor, p: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Softmax(q·k) v for the queries ``q`` [H, T, d] at ``p`` [T] over ``k`` and ``v`` [H, S, d]."""
        c = self.config
        s = q @ k.transpose(1, 2) * c.attention_scale  # [H, T, S]
        if c.attention_softcap is not None:
            s = c.attention_softcap * torch.tanh(s / c.attention_softcap)
        j = torch.arange(k.shape[1], device=q.device)  # [S]
        distance = p[:, None] - j  # [T, S]
        visible = distance >= 0
        window = c.windows[self.layer]
        if window is not None:
            visible &= distance < window
        s = s.masked_fill(~visible, float("-inf"))
        w = torch.softmax(s, dim=-1, dtype=torch.float32).to(q.dtype)
        return w @ v  # [H, T, d]
