"""The feed-forward half of a layer: one gated MLP, or several of which a router picks a few for each token.

Shazeer, "GLU variants improve transformer" (2020); Jiang et al., "Mixtral of experts" (2024).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tandem.models.model_config import Activation, ModelConfig, MoeConfig


def activate(x: torch.Tensor, name: Activation) -> torch.Tensor:
    """The gate's nonlinearity."""
    if name == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


class MLP(nn.Module):
    """down(act(gate(x)) · up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        if c.fused_projections:
            self.gate_up_proj = nn.Linear(c.hidden_size, 2 * c.intermediate_size, bias=c.mlp_bias)
        else:
            self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
            self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, D] → [T, D]."""
        if self.config.fused_projections:
            g, u = self.gate_up_proj(x).chunk(2, dim=-1)  # [T, I] each
        else:
            g, u = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(activate(g, self.config.activation) * u)  # type: ignore[no-any-return]


class Expert(nn.Module):
    """A gated MLP under the names that the checkpoint gives its matrices."""

    def __init__(self, hidden_size: int, moe: MoeConfig, activation: Activation) -> None:
        super().__init__()
        self.names = (moe.gate_name, moe.up_name, moe.down_name)
        self.activation = activation
        self.add_module(moe.gate_name, nn.Linear(hidden_size, moe.intermediate_size, bias=False))
        self.add_module(moe.up_name, nn.Linear(hidden_size, moe.intermediate_size, bias=False))
        self.add_module(moe.down_name, nn.Linear(moe.intermediate_size, hidden_size, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, D] → [T, D]."""
        gate, up, down = (self.get_submodule(name) for name in self.names)
        return down(activate(gate(x), self.activation) * up(x))  # type: ignore[no-any-return]


class MixtureOfExperts(nn.Module):
    """Each token's mean over its most probable experts, weighted by their probabilities."""

    def __init__(self, config: ModelConfig, moe: MoeConfig) -> None:
        super().__init__()
        self.moe = moe
        self.gate = nn.Linear(config.hidden_size, moe.num_experts, bias=False)
        self.experts = nn.ModuleList(
            [Expert(config.hidden_size, moe, config.activation) for _ in range(moe.num_experts)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, D] → [T, D]."""
        probabilities = torch.softmax(self.gate(x), dim=-1, dtype=torch.float32)  # [T, E]
        w, chosen = probabilities.topk(self.moe.num_experts_per_tok, dim=-1)  # [T, K] each
        if self.moe.norm_topk_prob:
            w = w / w.sum(-1, keepdim=True)
        w = w.to(x.dtype)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, rank = (chosen == e).nonzero(as_tuple=True)  # the tokens that chose e, and as their which choice
            if len(t):
                y[t] += w[t, rank, None] * expert(x[t])
        return y
