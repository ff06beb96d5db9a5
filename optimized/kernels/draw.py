"""Step 5 of ``SamplingParams``, the draw, on a CPU: Gumbel noise for tokens that could win, and the best."""

from __future__ import annotations

import torch

from optimized.native import INT, POINTER, Function
from optimized.philox import NOISE_MAX, NOISE_MIN, gumbel

_NATIVE = Function("tandem_draw", POINTER, INT, INT, INT, *[POINTER] * 4)


def draw(z: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
    """One token for each row, int64 [M], the lowest of equals.

    Args:
        z: float32 [M, V], logits divided by the temperature; -inf is never drawn.
        seeds, positions, choices: int64 [M]; seeds as two's complement.
    """
    if _NATIVE.run is None or z.stride(1) != 1:
        return _twin(z, seeds, positions, choices)
    tokens = torch.empty(len(z), dtype=torch.int64)
    _NATIVE.run(
        z.data_ptr(), z.stride(0), len(z), z.shape[1],
        seeds.data_ptr(), positions.data_ptr(), choices.data_ptr(), tokens.data_ptr(),
    )  # fmt: skip
    return tokens


def _twin(z: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
    """A token that could not win with the greatest noise against the least noise of the likeliest needs none."""
    z = z - z.amax(dim=-1, keepdim=True)
    rows, tokens = torch.nonzero(z >= NOISE_MIN - NOISE_MAX, as_tuple=True)
    scores = torch.full_like(z, float("-inf"))
    scores[rows, tokens] = z[rows, tokens] + gumbel(tokens, positions[rows], choices[rows], seeds[rows])
    return scores.argmax(dim=-1)
