"""A small Llama to train, and the two optimizers that train it.

The mathematics and the parameter names are those of `LlamaForCausalLM` with tied embeddings, so the
trained `state_dict` is the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The sizes of the model; the defaults give 3.7 million parameters, 7.3 MB in bfloat16."""

    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 384
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 64
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    max_positions: int = 2048


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and shared key/value heads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Attend over each row: x [B, T, hidden] -> [B, T, hidden]; mask [T, T] is -inf above the diagonal."""
        B, T, _ = x.shape
        D = self.shape.head_dim
        q = rotate(self.q_proj(x).view(B, T, -1, D).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(B, T, -1, D).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(B, T, -1, D).transpose(1, 2)
        # Written out, because the fused CPU kernel takes 40 % of the time on rows this short.
        q = q.reshape(B, self.shape.num_kv_heads, -1, D) * D**-0.5  # [B, KV, G * T, D]: a group's heads in a row
        scores = (q @ k.transpose(2, 3)).view(B, -1, T, T) + mask
        p = torch.softmax(scores, dim=-1, dtype=x.dtype)
        y = (p.view(B, self.shape.num_kv_heads, -1, T) @ v).view(B, -1, T, D)  # [B, H, T, D]
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """The gated feed-forward layer: down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position on its own."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Add attention, then the feed-forward layer, to the residual stream."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Decoder(nn.Module):
    """Embedding, layers and the final norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class Llama(nn.Module):
    """The whole model; its output projection is the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        cos, sin = rotations(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                # Small at the end of a branch: at first each layer hardly changes the residual stream.
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.005 if residual else 0.04)

    def hidden(self, ids: Tensor) -> Tensor:
        """The normed last hidden states of right-padded rows: ids [B, T] -> [B, T, hidden]."""
        x = self.model.embed_tokens(ids).bfloat16()
        T = ids.shape[1]
        cos, sin = self.cos[:T].bfloat16(), self.sin[:T].bfloat16()  # type: ignore[index]
        mask = torch.full((T, T), float("-inf"), dtype=torch.bfloat16).triu(1)
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        return self.model.norm(x)  # type: ignore[no-any-return]

    def loss(self, ids: Tensor, weights: Tensor) -> Tensor:
        """The summed cross-entropy of the tokens whose weight is not 0.

        ids and weights are [B, T]; a weight belongs to the token it stands under, not to its successor.
        """
        taught = weights[:, 1:] > 0
        h = self.hidden(ids[:, :-1])[taught]  # [N, hidden]
        logits = F.linear(h, self.model.embed_tokens.weight).float()
        losses = F.cross_entropy(logits, ids[:, 1:][taught], reduction="none")
        return (losses * weights[:, 1:][taught]).sum()


def rotations(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary positions, each [positions, head_dim]."""
    frequencies = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
    angles = torch.outer(torch.arange(shape.max_positions).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + head_dim / 2) of x [B, H, T, head_dim] by its position's angle."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def orthogonalize(G: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, by five Newton-Schulz steps (Jordan et al., Muon, 2024)."""
    X = G.bfloat16()
    wide = X.shape[0] <= X.shape[1]
    X = X if wide else X.T
    X = X / (torch.linalg.vector_norm(X) + 1e-7)
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    Y: Tensor = X if wide else X.T
    return Y.float()


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized, for the matrices of the layers.

    Where several processes train together, each orthogonalizes its share of the matrices for all of them.
    """

    def __init__(self, weights: list[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01):
        super().__init__(weights, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one update from the gradients."""
        for group in self.param_groups:
            weights: list[Tensor] = group["params"]
            updates = self._updates(weights, group["momentum"])
            for weight, update in zip(weights, updates, strict=True):
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["decay"])
                weight.add_(update, alpha=-group["lr"] * scale)

    def _updates(self, weights: list[Tensor], momentum: float) -> list[Tensor]:
        share, of = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        flat = torch.zeros(sum(weight.numel() for weight in weights))
        parts = torch.split(flat, [weight.numel() for weight in weights])
        updates: list[Tensor] = [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]
        for i, (weight, update) in enumerate(zip(weights, updates, strict=True)):
            assert weight.grad is not None
            average = self.state[weight].setdefault("average", torch.zeros_like(weight))
            average.lerp_(weight.grad, 1 - momentum)
            if i % of == share:
                update.copy_(orthogonalize(weight.grad.lerp(average, momentum)))
        if of > 1:
            dist.all_reduce(flat)
        return updates
