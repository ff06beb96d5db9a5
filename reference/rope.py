"""Rotary position embedding: a query and a key, each turned by its position, so that their product sees the distance.

Su et al., "RoFormer: enhanced transformer with rotary position embedding" (2021). The extensions to longer contexts
only change the frequencies (and, for some, scale the vectors):

- linear      Chen et al., "Extending context window of large language models via position interpolation" (2023)
- dynamic     the "dynamic NTK" proposal of 2023, written down in the YaRN paper, appendix B
- yarn        Peng et al., "YaRN: efficient context window extension of large language models" (2023)
- llama3      Grattafiori et al., "The Llama 3 herd of models" (2024); the formula is in Meta's published code
- longrope    Ding et al., "LongRoPE: extending LLM context window beyond 2 million tokens" (2024)

The definition of each as a function of position alone stands in ``RopeConfig``.
"""

from __future__ import annotations

import math

import torch

from tandem.models.model_config import RopeConfig


class Rope:
    """Tables of one rotary embedding.

    Args:
        config: see ``RopeConfig``.
        max_model_len: the engine's; decides between the two sets of frequencies of ``longrope``.
        device: of the tables.
    """

    def __init__(self, config: RopeConfig, max_model_len: int, device: torch.device) -> None:
        self.config = config
        self.frequencies = _scaled_frequencies(config, max_model_len).to(device)  # [R/2]
        self.magnitude = _magnitude(config)

    def angles(self, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine for the positions ``p`` [T], each float32 [T, R/2] for R rotated channels."""
        f = self.frequencies  # [R/2]
        if self.config.type == "dynamic":
            f = _dynamic_frequencies(self.config, p)  # [T, R/2]: each position has a base of its own
        a = p.float()[:, None] * f  # [T, R/2]
        return a.cos() * self.magnitude, a.sin() * self.magnitude


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the channel pairs (i, i + R/2) of ``x`` [H, T, d] by the angles [T, R/2]; channels from R on pass through.

    Computed in float32, returned in the dtype of ``x``.
    """
    half = cos.shape[-1]
    a, b, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


def _frequencies(theta: float | torch.Tensor, rotary_dim: int) -> torch.Tensor:
    """theta^(-2i/R) for the pairs i = 0 … R/2 - 1."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    if isinstance(theta, torch.Tensor):
        exponents = exponents.to(theta.device)
    return torch.as_tensor(1.0 / theta**exponents)


def _scaled_frequencies(c: RopeConfig, max_model_len: int) -> torch.Tensor:
    f = _frequencies(c.theta, c.rotary_dim)
    if c.type == "linear":
        return f / c.factor
    if c.type == "llama3":
        return _llama3(c, f)
    if c.type == "yarn":
        return _yarn(c, f)
    if c.type == "longrope":
        return f / torch.tensor(c.long_factor if max_model_len > c.original_max_len else c.short_factor)
    return f


def _dynamic_frequencies(c: RopeConfig, p: torch.Tensor) -> torch.Tensor:
    n = (p + 1).clamp(min=c.original_max_len).double()  # [T], the length each position sees
    growth = c.factor * n / c.original_max_len - (c.factor - 1)
    theta = c.theta * growth ** (c.rotary_dim / (c.rotary_dim - 2))
    return _frequencies(theta.float()[:, None], c.rotary_dim)  # [T, R/2]


def _llama3(c: RopeConfig, f: torch.Tensor) -> torch.Tensor:
    """Keep short wavelengths, stretch long ones by the factor, blend between."""
    turns = c.original_max_len * f / (2 * math.pi)  # how often each pair turns within the original context
    s = (turns - c.low_freq_factor) / (c.high_freq_factor - c.low_freq_factor)
    s = s.clamp(0, 1)
    return (1 - s) * f / c.factor + s * f


def _yarn(c: RopeConfig, f: torch.Tensor) -> torch.Tensor:
    """Keep pairs that turn over ``beta_fast`` times in the original context, stretch those below ``beta_slow``."""

    def pair_that_turns(times: float) -> float:
        return c.rotary_dim * math.log(c.original_max_len / (times * 2 * math.pi)) / (2 * math.log(c.theta))

    low, high = pair_that_turns(c.beta_fast), pair_that_turns(c.beta_slow)
    if c.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, c.rotary_dim - 1)
    if low == high:
        high += 0.001  # a step in place of a ramp
    ramp = ((torch.arange(len(f), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return f / c.factor * ramp + f * (1 - ramp)


def _magnitude(c: RopeConfig) -> float:
    """What cosine and sine are multiplied by: longer contexts flatten the softmax, this sharpens it again."""
    if c.attention_factor is not None:
        return c.attention_factor
    if c.type == "yarn":
        if c.mscale and c.mscale_all_dim:
            return _yarn_mscale(c.factor, c.mscale) / _yarn_mscale(c.factor, c.mscale_all_dim)
        return _yarn_mscale(c.factor, 1.0)
    if c.type == "longrope" and c.factor > 1:
        return math.sqrt(1 + math.log(c.factor) / math.log(c.original_max_len))
    return 1.0


def _yarn_mscale(factor: float, m: float) -> float:
    return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0
