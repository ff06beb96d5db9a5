"""One step's work as tensors: what the model computes, at which positions, for which rows of the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from optimized.scheduling.scheduler import Schedule
from optimized.scheduling.sequence import Sequence


class Chunk(NamedTuple):
    """Consecutive tokens of one sequence: tokens ``[start, end)`` of the step at positions from ``position`` on."""

    sequence: Sequence
    row: int
    start: int
    end: int
    position: int

    @property
    def num_tokens(self) -> int:
        return self.end - self.start

    @property
    def context(self) -> int:
        """Tokens of the sequence in the cache after the step."""
        return self.position + self.end - self.start


class Fill(NamedTuple):
    """Tokens that are known on the device alone, int64 [n], and their places in a step, int64 [n], there too."""

    places: torch.Tensor
    token_ids: torch.Tensor

    def put_into(self, token_ids: torch.Tensor) -> None:
        """Into those of the step, in place."""
        token_ids.index_copy_(0, self.places, self.token_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """T tokens of some sequences: first those that add one token each, in order of their rows, then the others.

    Attributes:
        token_ids, positions, rows: int64 [T]; a token that is still being drawn is 0.
        decodes: the single tokens, chunk i being token i.
        prefills: the longer chunks.
        sampled: chunks whose last token's logits are drawn from, in order.
        drawing: those of ``decodes`` whose token is still being drawn.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    decodes: list[Chunk]
    prefills: list[Chunk]
    sampled: list[Chunk]
    drawing: list[Chunk]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def build_batch(schedule: Schedule) -> Batch:
    """Lay a schedule out, on the host wherever it is computed."""
    singles = sorted((w for w in schedule.work if w.num_tokens == 1), key=lambda w: w.sequence.row)
    longer = [w for w in schedule.work if w.num_tokens > 1]
    chunks: list[Chunk] = []
    token_ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    sampled: list[Chunk] = []
    drawing: list[Chunk] = []
    for work in (*singles, *longer):
        sequence, first, count = work.sequence, work.sequence.num_computed_tokens, work.num_tokens
        chunk = Chunk(sequence, sequence.row, len(token_ids), len(token_ids) + count, first)
        chunks.append(chunk)
        if first < len(sequence.token_ids):
            token_ids += sequence.token_ids[first : first + count]
        else:
            token_ids.append(0)
            drawing.append(chunk)
        positions += range(first, first + count)
        rows += [sequence.row] * count
        if work.samples:
            sampled.append(chunk)
    ids, at, row = (torch.tensor(values, dtype=torch.int64) for values in (token_ids, positions, rows))
    return Batch(ids, at, row, chunks[: len(singles)], chunks[len(singles) :], sampled, drawing)
