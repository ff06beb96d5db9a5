"""Mixture of experts: each token through its experts, as two grouped products over places sorted by expert.

A place is a pair (token, one of its K experts). Sorting places by expert lets a tile of rows share an expert's
matrix. How many tiles each expert needs is known only on the device, so the grid has an upper bound of them, and a
table says whose rows a tile takes; tiles past the end return at once. Nothing waits for the host, and a CUDA graph
can hold it all. Each place writes a row of its own, and a token's K rows are added in their order: results repeat.

Letters in shapes: T tokens, K experts of a token, E experts, D hidden size, I intermediate size of an expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from optimized.kernels import activation as activations
from optimized.kernels.compat import ceil_div, jit, next_power_of_2, tl, use_triton
from optimized.kernels.native import Library
from tandem.models.model_config import Activation

TILES = (16, 32, 64, 128)  # rows


@dataclass(frozen=True, slots=True)
class Routing:
    """Where the places of a step go.

    Attributes:
        order: int32 [T · K], the places by expert, and by number within an expert.
        starts: int32 [E + 1], where each expert's places begin in ``order``.
        tiles: int32 [B, 2], the expert of each tile and its first place in ``order``; expert -1 is unused.
        rows: of a tile.
    """

    order: torch.Tensor
    starts: torch.Tensor
    tiles: torch.Tensor
    rows: int


def experts(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    chosen: torch.Tensor,
    share: torch.Tensor,
    activation: Activation,
    library: Library,
) -> torch.Tensor:
    """sum over a token's experts of share · down(act(gate(x)) · up(x)).

    Args:
        x: [T, D], contiguous.
        gate_up: [E, 2I, D]; down: [E, D, I]; both contiguous.
        chosen: int64 [T, K], each token's experts.
        share: float32 [T, K], their weights.
        activation: of the gate.
        library: the CPU kernels, for the activation of the twin.

    Returns:
        [T, D].
    """
    num_tokens, k = chosen.shape
    if not use_triton(x):
        return _twin(x, gate_up, down, chosen, share, activation, library)
    if not num_tokens:
        return torch.zeros_like(x)
    routing = route(chosen, len(gate_up))
    hidden = torch.empty((num_tokens * k, gate_up.shape[1]), dtype=x.dtype, device=x.device)
    _multiply(x, gate_up, hidden, routing, divisor=k, share=None)
    y = torch.empty((num_tokens * k, x.shape[1]), dtype=x.dtype, device=x.device)
    _multiply(activations.gated(hidden, activation, library), down, y, routing, divisor=1, share=share)
    return y.view(num_tokens, k, -1).sum(dim=1)


def route(chosen: torch.Tensor, num_experts: int) -> Routing:
    """Sort places by expert and cut each expert's into tiles, on the device of ``chosen`` [T, K]."""
    num_places = chosen.numel()
    rows = tile_rows(num_places, num_experts)
    ordered, order = chosen.flatten().sort(stable=True)
    each = torch.arange(num_experts + 1, device=chosen.device)
    starts = torch.searchsorted(ordered, each)  # [E + 1]
    ends = ((starts.diff() + rows - 1) // rows).cumsum(0)  # [E], of each expert's tiles
    size = ceil_div(num_places, rows) + min(num_experts, num_places)
    tile = torch.arange(size, device=chosen.device)
    expert = torch.searchsorted(ends, tile, right=True)  # [B]; E for what is unused
    before = torch.where(expert > 0, ends[expert.clamp(min=1) - 1], 0)
    first = starts[expert] + (tile - before) * rows
    table = torch.stack((torch.where(expert < num_experts, expert, -1), first), dim=1)
    return Routing(order.int(), starts.int(), table.int(), rows)


def tile_rows(num_places: int, num_experts: int) -> int:
    """Rows of a tile: about as many as an expert gets, since a tile that is not full wastes its products."""
    return min(TILES[-1], max(TILES[0], next_power_of_2(ceil_div(num_places, num_experts))))


def tokens_by_tile(num_experts: int, num_experts_per_token: int) -> list[int]:
    """How many tokens have tiles of each size."""
    return [rows * num_experts // num_experts_per_token for rows in TILES]


def configuration(dtype: torch.dtype, rows: int) -> tuple[int, int, int, int]:
    """BLOCK_N, BLOCK_K, warps and pipeline stages. With few rows the weights' way is the bottleneck: deep tiles."""
    if dtype == torch.float32:
        return 64, 32, 4, 2
    if rows <= 32:
        return 64, 128, 4, 4
    return (128, 64, 4, 3) if rows == 64 else (128, 64, 8, 3)


def _twin(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    chosen: torch.Tensor,
    share: torch.Tensor,
    activation: Activation,
    library: Library,
) -> torch.Tensor:
    y = torch.zeros((*chosen.shape, x.shape[1]), dtype=x.dtype, device=x.device)
    for expert in range(len(gate_up)):
        token, place = (chosen == expert).nonzero(as_tuple=True)
        hidden = activations.gated(x[token] @ gate_up[expert].T, activation, library)
        y[token, place] = ((hidden @ down[expert].T).float() * share[token, place, None]).to(x.dtype)
    return y.sum(dim=1)


def _multiply(
    x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, routing: Routing, divisor: int, share: torch.Tensor | None
) -> None:
    """Row ``place`` of ``y`` from row ``place // divisor`` of ``x``, through the place's expert."""
    _, n, k = weight.shape
    block_n, block_k, num_warps, num_stages = configuration(x.dtype, routing.rows)
    _grouped_matmul_kernel[(ceil_div(n, block_n), len(routing.tiles))](
        x,
        weight,
        y,
        routing.order,
        routing.starts,
        routing.tiles,
        share,
        n,
        k,
        DIVISOR=divisor,
        HAS_SHARE=share is not None,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        BLOCK_M=routing.rows,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=num_warps,
        num_stages=num_stages,
    )


@jit()
def _grouped_matmul_kernel(  # type: ignore[no-untyped-def]
    p_x,
    p_weight,
    p_y,
    p_order,
    p_starts,
    p_tiles,
    p_share,
    n,
    k,
    DIVISOR: tl.constexpr,
    HAS_SHARE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    i_tile = tl.program_id(1)
    i_expert = tl.load(p_tiles + 2 * i_tile)
    if i_expert < 0:
        return
    i_row = tl.load(p_tiles + 2 * i_tile + 1) + tl.arange(0, BLOCK_M)
    m_m = i_row < tl.load(p_starts + i_expert + 1)
    i_place = tl.load(p_order + i_row, mask=m_m, other=0).to(tl.int64)
    i_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = i_n < n
    o_k = tl.arange(0, BLOCK_K)
    p_x += (i_place // DIVISOR)[:, None] * k + o_k[None, :]
    p_weight += i_expert.to(tl.int64) * n * k + i_n[None, :].to(tl.int64) * k + o_k[:, None]

    b_y = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for o_start in range(0, k, BLOCK_K):
        m_k = o_start + o_k < k
        b_x = tl.load(p_x + o_start, mask=m_m[:, None] & m_k[None, :], other=0.0)
        b_weight = tl.load(p_weight + o_start, mask=m_n[None, :] & m_k[:, None], other=0.0)
        b_y = tl.dot(b_x, b_weight, b_y, input_precision=PRECISION)

    if HAS_SHARE:
        b_y = b_y * tl.load(p_share + i_place, mask=m_m, other=0.0)[:, None]
    tl.store(p_y + i_place[:, None] * n + i_n[None, :], b_y, mask=m_m[:, None] & m_n[None, :])
