"""Gumbel noise from Philox-4x32-10 for many (token, position, choice, seed) at once, in plain torch.

The definition and its source stand in ``SamplingParams``; ``tl.philox`` computes the same.
"""

from __future__ import annotations

import torch

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
NOISE_MIN, NOISE_MAX = -2.82, 16.64  # -log(-log u) at the smallest and the greatest u


def gumbel(
    token_ids: torch.Tensor, positions: torch.Tensor, choices: torch.Tensor, seeds: torch.Tensor
) -> torch.Tensor:
    """Noise of each entry.

    Args:
        token_ids, positions, choices: int64 [N], each in [0, 2**32).
        seeds: int64 [N], the 64-bit keys as two's complement.

    Returns:
        float32 [N].
    """
    c0, c1, c2 = token_ids, positions, choices
    c3 = torch.zeros_like(c0)
    k0, k1 = seeds & _LOW, (seeds >> 32) & _LOW
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1  # wraps in int64, which keeps all 64 bits
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    u = ((c0 >> 9).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(u))
