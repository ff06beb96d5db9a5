"""What a runner keeps of each row from step to step: its block table and its sampling parameters, as columns."""

from __future__ import annotations

import torch

from optimized.scheduling.plan import RowStart, RowWork


class Rows:
    """State of all rows, on the host. A row's columns are written when it starts; its table grows with its work.

    Args:
        num_rows: sequences at once.
        max_blocks: of one of them.

    Attributes:
        starts: what the row was started with; None if nobody has it.
        tables: int32 [num_rows, max_blocks].
        random: rows that are not greedy.
        logprobs: rows that report on their tokens, and how many further tokens each reports.
        reported: those of them that report given tokens instead of the most likely: their ids, int64 [K].
        temperature, top_k, top_p, min_p, seeds, choices: [num_rows], as ``kernels.sample.Rows`` has them.
    """

    def __init__(self, num_rows: int, max_blocks: int) -> None:
        self.starts: list[RowStart | None] = [None] * num_rows
        self.tables = torch.zeros((num_rows, max_blocks), dtype=torch.int32)
        self.random: set[int] = set()
        self.logprobs: dict[int, int] = {}
        self.reported: dict[int, torch.Tensor] = {}
        self.temperature = torch.zeros(num_rows)
        self.top_k = torch.zeros(num_rows, dtype=torch.int64)
        self.top_p = torch.ones(num_rows, dtype=torch.float64)
        self.min_p = torch.zeros(num_rows)
        self.seeds = torch.zeros(num_rows, dtype=torch.int64)
        self.choices = torch.zeros(num_rows, dtype=torch.int64)
        self._num_blocks = [0] * num_rows

    def start(self, start: RowStart) -> None:
        """A sequence takes the row."""
        row, p = start.row, start.sampling
        self.starts[row] = start
        self._num_blocks[row] = 0
        self._add_blocks(row, start.block_ids)
        self.temperature[row] = p.temperature
        if p.logprobs is not None:
            self.logprobs[row] = p.logprobs
        if p.logprob_token_ids is not None:
            self.reported[row] = torch.tensor(p.logprob_token_ids)
        if p.temperature > 0:
            self.random.add(row)
            self.top_k[row], self.top_p[row], self.min_p[row] = p.top_k, p.top_p, p.min_p
            self.seeds[row] = start.seed - (1 << 64) if start.seed >= 1 << 63 else start.seed
            self.choices[row] = start.choice_index

    def end(self, row: int) -> None:
        """Its sequence has left."""
        self.starts[row] = None
        self.random.discard(row)
        self.logprobs.pop(row, None)
        self.reported.pop(row, None)

    def extend(self, work: RowWork) -> None:
        """Its table grows."""
        self._add_blocks(work.row, work.new_blocks)

    def started(self, row: int) -> RowStart:
        """What a row in use was started with."""
        start = self.starts[row]
        assert start is not None, f"row {row} has work, but nobody has started it"
        return start

    def _add_blocks(self, row: int, block_ids: list[int]) -> None:
        if block_ids:
            known = self._num_blocks[row]
            self._num_blocks[row] = known + len(block_ids)
            self.tables[row, known : known + len(block_ids)] = torch.tensor(block_ids, dtype=torch.int32)
