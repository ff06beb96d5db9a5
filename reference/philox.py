"""Random numbers as a function: Philox-4x32-10.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). There is no state to advance: the same key
and counter give the same words anywhere, which is what makes a seeded request repeatable in any batch.
"""

from __future__ import annotations

import torch

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and sqrt(3) - 1, in 32 bits
ROUNDS = 10

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox(counter: Words, seed: int) -> Words:
    """Four 32-bit words for each counter.

    Args:
        counter: four int64 tensors of one shape (or broadcastable) with values in [0, 2**32).
        seed: the 64-bit key, low word first.

    Returns:
        Four int64 tensors with values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(ROUNDS):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3


def gumbel_noise(token_ids: torch.Tensor, seed: int, position: int, choice_index: int) -> torch.Tensor:
    """The noise of the tokens [N] at one output position, float32 [N] in (-2.9, 16.7).

    -log(-log u) of a uniform u is Gumbel distributed, and the argmax of log-probability plus Gumbel noise is a draw
    from the distribution: Gumbel, "Statistical theory of extreme values" (1954).
    """
    fixed = [torch.full_like(token_ids, value) for value in (position, choice_index, 0)]
    w = philox((token_ids, fixed[0], fixed[1], fixed[2]), seed)[0]
    return -torch.log(-torch.log(uniform(w)))


def uniform(w: torch.Tensor) -> torch.Tensor:
    """A number in (0, 1), float32, from a 32-bit word: the middle of one of 2**23 equal parts, exact in 24 bits."""
    return ((w >> 9).float() + 0.5) * 2.0**-23


def _multiply(a: int, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low word of a 32 by 32 bit product.

    The product may wrap around in int64; its bits are right all the same, and the mask drops the copied sign.
    """
    product = a * b
    return (product >> 32) & MASK, product & MASK
