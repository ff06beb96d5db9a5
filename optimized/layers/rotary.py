"""Cosines and sines of all positions, as tables. ``RopeConfig`` defines each type as a function of position."""

from __future__ import annotations

import math

import torch

from tandem.models.model_config import ModelConfig, RopeConfig

Table = tuple[torch.Tensor, torch.Tensor]  # cosine and sine, each float32 [max_model_len, R/2]


def rotary_tables(config: ModelConfig, max_model_len: int, device: torch.device) -> list[Table]:
    """The table of each layer; layers that rotate alike share one."""
    ropes = [config.rope_of(layer) for layer in range(config.num_layers)]
    tables = {rope: rotary_table(rope, max_model_len) for rope in set(ropes)}
    on_device = {rope: (cos.to(device), sin.to(device)) for rope, (cos, sin) in tables.items()}
    return [on_device[rope] for rope in ropes]


def rotary_table(c: RopeConfig, max_model_len: int) -> Table:
    """Cosine and sine, each float32 [max_model_len, R/2] for R rotated channels."""
    position = torch.arange(max_model_len, dtype=torch.float32)
    if c.type == "dynamic":
        seen = torch.arange(1, max_model_len + 1, dtype=torch.float64).clamp(min=c.original_max_len)
        base = c.theta * (c.factor * seen / c.original_max_len - c.factor + 1) ** (c.rotary_dim / (c.rotary_dim - 2))
        angle = position[:, None] * _inverse(base.float()[:, None], c.rotary_dim)
    else:
        angle = torch.outer(position, _stretched(c, max_model_len))
    m = _attention_factor(c)
    return angle.cos() * m, angle.sin() * m


def _inverse(base: float | torch.Tensor, dim: int) -> torch.Tensor:
    return torch.as_tensor(base ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim))


def _stretched(c: RopeConfig, max_model_len: int) -> torch.Tensor:
    inverse = _inverse(c.theta, c.rotary_dim)
    if c.type == "linear":
        return inverse / c.factor
    if c.type == "longrope":
        return inverse / torch.tensor(c.long_factor if max_model_len > c.original_max_len else c.short_factor)
    if c.type == "llama3":
        wavelength = 2 * math.pi / inverse
        smooth = (c.original_max_len / wavelength - c.low_freq_factor) / (c.high_freq_factor - c.low_freq_factor)
        return torch.lerp(inverse / c.factor, inverse, smooth.clamp(0, 1))
    if c.type == "yarn":
        return torch.lerp(inverse, inverse / c.factor, _yarn_ramp(c))
    return inverse


def _yarn_ramp(c: RopeConfig) -> torch.Tensor:
    """0 for pairs that stay as they are, 1 for those that are stretched by the whole factor."""
    bounds = [
        c.rotary_dim * math.log(c.original_max_len / (beta * 2 * math.pi)) / (2 * math.log(c.theta))
        for beta in (c.beta_fast, c.beta_slow)
    ]
    if c.truncate:
        bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
    low, high = max(bounds[0], 0), min(bounds[1], c.rotary_dim - 1)
    if low == high:
        high += 0.001
    return ((torch.arange(c.rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)


def _attention_factor(c: RopeConfig) -> float:
    if c.attention_factor is not None:
        return c.attention_factor
    if c.type == "longrope" and c.factor > 1:
        return math.sqrt(1 + math.log(c.factor) / math.log(c.original_max_len))
    if c.type == "yarn" and c.factor > 1:
        scale = [0.1 * m * math.log(c.factor) + 1 for m in (c.mscale or 0, c.mscale_all_dim or 0)]
        return scale[0] / scale[1] if c.mscale and c.mscale_all_dim else 0.1 * math.log(c.factor) + 1
    return 1.0
