"""One plan's work as flat tensors: what the model computes, at which positions, for which rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from optimized.scheduling.plan import RowWork


class Chunk(NamedTuple):
    """Consecutive tokens of one row: tokens ``[start, end)`` of the step at positions from ``position`` on."""

    row: int
    start: int
    end: int
    position: int

    @property
    def num_tokens(self) -> int:
        return self.end - self.start

    @property
    def context(self) -> int:
        """Tokens of the row in the cache after the step."""
        return self.position + self.end - self.start


@dataclass(frozen=True, slots=True)
class Batch:
    """T tokens of some rows: first those that add one token each, in order of their rows, then the others.

    Attributes:
        token_ids, positions, rows: int64 [T], on the host; a token that only the runner knows is 0.
        chunks: consecutive.
        num_decodes: how many of the chunks are single tokens; they are the first.
        work: the number in the plan of each chunk's work.
        taken: places of tokens that only the runner knows, and their rows.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    chunks: list[Chunk]
    num_decodes: int
    work: list[int]
    taken: tuple[list[int], list[int]]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def is_decode(self) -> bool:
        """Whether it is single tokens alone."""
        return self.num_decodes == len(self.chunks)


def build_batch(work: list[RowWork]) -> Batch:
    """Lay work out."""
    singles = sorted((w.row, i) for i, w in enumerate(work) if w.num_tokens == 1)
    longer = sorted((w.position + w.num_tokens, i) for i, w in enumerate(work) if w.num_tokens > 1)
    order = [i for _, i in (*singles, *longer)]
    chunks: list[Chunk] = []
    token_ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    taken: tuple[list[int], list[int]] = ([], [])
    for i in order:
        w, start = work[i], len(token_ids)
        token_ids += w.token_ids
        if w.takes_sampled:
            taken[0].append(len(token_ids))
            taken[1].append(w.row)
            token_ids.append(0)
        count = len(token_ids) - start
        chunks.append(Chunk(w.row, start, start + count, w.position))
        positions += range(w.position, w.position + count)
        rows += [w.row] * count
    ids, at, row = (torch.tensor(values, dtype=torch.int64) for values in (token_ids, positions, rows))
    return Batch(ids, at, row, chunks, len(singles), order, taken)


def nothing() -> Batch:
    """A batch without tokens."""
    return build_batch([])
