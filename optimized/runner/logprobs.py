"""Reports on tokens: their log-probabilities and ranks, and the most likely tokens. Computed where the logits are."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tandem.engine import LogprobColumns

LOWEST_LOGPROB = -9999.0
_LOW = 0xFFFFFFFF


class Given(NamedTuple):
    """Reports that are on given tokens instead of the most likely.

    Attributes:
        rows: int64 [M], their places among the N reports.
        token_ids: int64 [M, G]; shorter lists are filled up with any ids.
    """

    rows: torch.Tensor
    token_ids: torch.Tensor


class Reports(NamedTuple):
    """On N tokens, each with K others: the most likely ones, or those given.

    Attributes:
        token_ids: int64 [N].
        logprobs: float32 [N].
        ranks: int32 [N].
        top_ids: int64 [N, K], the most likely first, lower ids first among equals; or as given.
        top_logprobs: float32 [N, K].
    """

    token_ids: torch.Tensor
    logprobs: torch.Tensor
    ranks: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor

    def columns(self, start: int, end: int, num_top: int) -> LogprobColumns:
        """Reports [start, end) with ``num_top`` ≤ K others each; of arrays on the host."""
        rows = slice(start, end)
        return LogprobColumns(
            min(num_top, self.top_ids.shape[1]),
            _bytes(self.token_ids[rows].to(torch.int32)),
            _bytes(self.logprobs[rows]),
            _bytes(self.ranks[rows]),
            _bytes(self.top_ids[rows, :num_top].to(torch.int32)),
            _bytes(self.top_logprobs[rows, :num_top]),
        )


def report(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int, normalizes: bool = True, given: Given | None = None
) -> Reports:
    """On the tokens ``token_ids`` int64 [N] at the rows of ``logits`` [N, V]. Nothing waits for the device.

    Args:
        num_top: the most likely tokens to report, where none are given.
        normalizes: report log-probabilities, not the logits.
    """
    logprobs = torch.log_softmax(logits, dim=-1) if normalizes else logits
    chosen = logprobs.gather(1, token_ids[:, None])  # [N, 1]
    # as bytes they are counted many times faster
    ranks = 1 + (logprobs > chosen).view(torch.uint8).sum(-1, dtype=torch.int32)
    top_ids = _top(logprobs, min(num_top, logprobs.shape[1]))
    if given is not None:
        top_ids = _replace(top_ids, given)
    top = logprobs.gather(1, top_ids)
    return Reports(token_ids, chosen[:, 0].clamp(min=LOWEST_LOGPROB), ranks, top_ids, top.clamp(min=LOWEST_LOGPROB))


def _top(logprobs: torch.Tensor, count: int) -> torch.Tensor:
    """Ids [N, K] of the greatest of each row, lower ids first among equals.

    ``topk`` promises no order among equals, nor which of those equal to the last it takes. So it is asked for the
    greatest of integers that hold both: the value's bits, in the order of the numbers, and below them the id's.
    """
    if count == 0:
        return torch.empty((len(logprobs), 0), dtype=torch.int64, device=logprobs.device)
    bits = (logprobs + 0.0).view(torch.int32)  # -0 becomes 0, whose bits are those of its equal
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() << 32
    ids = torch.arange(logprobs.shape[1], device=logprobs.device)
    best = (order | (_LOW - ids)).topk(count, dim=-1).values
    return _LOW - (best & _LOW)


def _replace(top_ids: torch.Tensor, given: Given) -> torch.Tensor:
    """``top_ids`` [N, K] with the given ones where there are some, and zeros behind what is shorter."""
    width = max(top_ids.shape[1], given.token_ids.shape[1])
    ids = torch.nn.functional.pad(top_ids, (0, width - top_ids.shape[1]))
    ids[given.rows, : given.token_ids.shape[1]] = given.token_ids
    return ids


def _bytes(x: torch.Tensor) -> bytes:
    raw: bytes = x.contiguous().numpy().tobytes()
    return raw
