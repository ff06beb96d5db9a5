"""A few rows times a weight on a CPU, as fast as the weight is read. Its twin is oneDNN's product."""

from __future__ import annotations

import ctypes

import torch

from optimized.kernels.native import INT, POINTER, Library, declare

MAX_ROWS = 4
WIDTH = 64  # outputs of a block of oneDNN's layout
_NATIVE = declare("tandem_matvec", POINTER, POINTER, INT, INT, POINTER, INT, INT, INT, POINTER)


class Blocks:
    """A weight as oneDNN has reordered it for bfloat16: blocks of 64 outputs, in them pairs of inputs, then outputs.

    Attributes:
        address: of the first block, as long as ``packed`` lives.
        num_outputs, num_inputs: of the weight.
        padded_inputs: of a block.
    """

    def __init__(self, packed: torch.Tensor, num_outputs: int, num_inputs: int) -> None:
        self._packed = packed
        self.address: int = torch.ops.mkldnn.data_ptr(packed)
        self.num_outputs, self.num_inputs = num_outputs, num_inputs
        num_bytes: int = torch.ops.mkldnn._nbytes(packed)
        self.padded_inputs = num_bytes // (2 * WIDTH * -(-num_outputs // WIDTH))

    @classmethod
    def of(cls, weight: torch.Tensor, packed: torch.Tensor) -> Blocks | None:
        """None if oneDNN, which promises nothing, has chosen another layout; the first and last blocks tell.

        Args:
            weight: [outputs, inputs].
            packed: what ``mkldnn._reorder_linear_weight`` has made of it.
        """
        num_outputs, num_inputs = weight.shape
        if weight.dtype != torch.bfloat16 or num_inputs % 2 or not hasattr(torch.ops.mkldnn, "data_ptr"):
            return None
        blocks = cls(packed, num_outputs, num_inputs)
        size = WIDTH * blocks.padded_inputs * 2
        count = -(-num_outputs // WIDTH)
        if blocks.padded_inputs < num_inputs or torch.ops.mkldnn._nbytes(packed) != count * size:
            return None
        for number in {0, count - 1}:
            rows = weight[number * WIDTH : (number + 1) * WIDTH].view(torch.int16)
            want = torch.zeros(WIDTH, num_inputs, dtype=torch.int16)
            want[: len(rows)] = rows
            raw = ctypes.string_at(blocks.address + number * size, size)
            got = torch.frombuffer(bytearray(raw), dtype=torch.int16).view(-1, WIDTH, 2)[: num_inputs // 2]
            if not torch.equal(got, want.view(WIDTH, -1, 2).transpose(0, 1)):
                return None
        return blocks


def is_ready(x: torch.Tensor, library: Library) -> bool:
    """Whether the kernel is there, for so many rows."""
    return x.shape[0] <= MAX_ROWS and library.find(_NATIVE) is not None


def matvec(x: torch.Tensor, weight: Blocks, bias: torch.Tensor | None, library: Library) -> torch.Tensor:
    """x Wᵀ + b in float32, rounded once.

    Args:
        x: bfloat16 [T, inputs], 1 ≤ T ≤ 4; rows may lie apart.
        bias: bfloat16 [outputs].

    Returns:
        [T, outputs]; a row does not depend on the others.
    """
    run = library.find(_NATIVE)
    assert run is not None and x.dtype == torch.bfloat16 and x.stride(1) == 1
    num_rows = x.shape[0]
    y = torch.empty((num_rows, weight.num_outputs), dtype=x.dtype)
    run(
        weight.address, x.data_ptr(), x.stride(0), num_rows, None if bias is None else bias.data_ptr(),
        weight.num_outputs, weight.num_inputs, weight.padded_inputs, y.data_ptr(),
    )  # fmt: skip
    return y
