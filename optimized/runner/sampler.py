"""Tokens for the rows that a step has brought to their end, all of them together.

The definition is in ``SamplingParams``. What a request does not use costs nothing: its row is only argmaxed or
sampled. Nothing here waits for the device until ``PendingTokens.take``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from optimized.kernels import sample as op
from optimized.kernels.edit_logits import NEVER
from optimized.kernels.native import Library
from optimized.runner.edits import NOT_FINITE, OVERFLOW, Check, Edited, Edits
from optimized.runner.grammars import RowGrammars
from optimized.runner.logprobs import Given, Reports, report
from optimized.runner.packing import ToHost, to_device
from optimized.runner.rows import Rows
from tandem.engine import LogprobColumns

_KINDS = (torch.float32, torch.int64, torch.float64, torch.float32, *[torch.int64] * 3)  # of ``kernels.sample.Rows``


class Asked(NamedTuple):
    """A row of logits: the row of the runner it belongs to, and the position in the output that is sampled."""

    row: int
    position: int


class Sampled(NamedTuple):
    """A token and its report, or why there is none."""

    token_id: int
    logprobs: LogprobColumns | None = None
    error: str | None = None


class PendingTokens:
    """Tokens on their way to the host, and with them what is wrong with their rows.

    Args:
        tokens: int64 [N], see the attribute.
        checks: of the rows.
        reports: on those rows that are asked for one.
        counts: of each of these rows in order, how many further tokens it asks for.

    Attributes:
        tokens: int64 [N], on the device of the logits. Whatever is in a row, its token is one of the vocabulary.
    """

    def __init__(
        self, tokens: torch.Tensor, checks: list[Check], reports: Reports | None, counts: dict[int, int]
    ) -> None:
        self.tokens = tokens
        self._checks, self._counts = checks, counts
        self._copy = ToHost((tokens, *(check.greatest for check in checks), *(reports or ())))

    def take(self) -> list[Sampled]:
        """Wait for them."""
        ids, *arrays = self._copy.arrays()
        greatest, columns = arrays[: len(self._checks)], arrays[len(self._checks) :]
        errors = self._errors([x.tolist() for x in greatest])
        reports: dict[int, LogprobColumns] = {}
        if columns:
            all_reports = Reports(*columns)
            reports = {
                number: all_reports.columns(i, i + 1, count) for i, (number, count) in enumerate(self._counts.items())
            }
        return [Sampled(token_id, reports.get(i), errors.get(i)) for i, token_id in enumerate(ids.tolist())]

    def _errors(self, greatest: list[list[float]]) -> dict[int, str]:
        """The first error of each row that has one."""
        errors: dict[int, str] = {}
        for check, values in zip(self._checks, greatest, strict=True):
            if not all(map(math.isfinite, values)):
                wrong = (i for i, value in zip(check.rows, values, strict=True) if not math.isfinite(value))
                errors = dict.fromkeys(wrong, check.error) | errors
        return errors


class Sampler:
    """Samples for rows whose parameters it finds in ``rows`` and ``edits``.

    Args:
        rows: sampling parameters by row.
        edits: masks and penalties by row.
        grammars: masks of rows that follow one.
        logprobs_mode: ``raw_`` or ``processed_``, ``logprobs`` or ``logits``.
        library: the CPU kernels.
    """

    def __init__(self, rows: Rows, edits: Edits, grammars: RowGrammars, logprobs_mode: str, library: Library) -> None:
        self._rows, self._edits, self._grammars, self._library = rows, edits, grammars, library
        self._processed = logprobs_mode.startswith("processed_")
        self._normalizes = logprobs_mode.endswith("_logprobs")

    def sample(self, logits: torch.Tensor, asked: Sequence[Asked]) -> PendingTokens:
        """Sample a token from each row of ``logits`` float32 [N, V], which may be overwritten."""
        counts = self._reported(asked)
        seen: torch.Tensor | None = None
        if counts and not self._processed:
            seen = logits.index_select(0, self._ints(list(counts), logits))
        edited = [Edited(i, a.row, a.position) for i, a in enumerate(asked) if a.row in self._edits]
        checks = self._grammars.mask(logits, [a.row for a in asked])
        if edited:
            checks += self._edits.apply(logits, edited)
        random = [i for i, a in enumerate(asked) if a.row in self._rows.random] if self._rows.random else []
        tokens, greatest = self._choose(logits, asked, random, list(counts) if self._processed else [])
        if edited:
            numbers = self._edits.penalized(edited)
            checks.append(Check(OVERFLOW, numbers, greatest.index_select(0, self._ints(numbers, logits))))
            self._edits.sampled(edited, tokens)
        checks.append(Check(NOT_FINITE, list(range(len(asked))), greatest))
        reports = None
        if counts:
            at = self._ints(list(counts), logits)
            seen = logits.index_select(0, at) if seen is None else seen
            num_top, given = self._others(asked, counts, logits.device)
            reports = report(seen, tokens.index_select(0, at), num_top, self._normalizes, given)
        return PendingTokens(tokens, checks, reports, counts)

    def _reported(self, asked: Sequence[Asked]) -> dict[int, int]:
        """The rows of logits to report on, and how many further tokens each asks for."""
        logprobs = self._rows.logprobs
        return {i: logprobs[a.row] for i, a in enumerate(asked) if a.row in logprobs} if logprobs else {}

    def _others(
        self, asked: Sequence[Asked], counts: dict[int, int], device: torch.device
    ) -> tuple[int, Given | None]:
        """How many of the most likely tokens are wanted at most, and the tokens that some rows want instead."""
        reported = self._rows.reported
        given = {place: reported[asked[i].row] for place, i in enumerate(counts) if asked[i].row in reported}
        if not given:
            return max(counts.values()), None
        num_top = max((count for i, count in counts.items() if asked[i].row not in reported), default=0)
        ids = torch.nn.utils.rnn.pad_sequence(list(given.values()), batch_first=True)
        return num_top, Given(*to_device([torch.tensor(list(given)), ids], device))

    def _choose(
        self, logits: torch.Tensor, asked: Sequence[Asked], random: list[int], processed: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens int64 [N], the best ones of rows that are not ``random``, and the greatest logits [N].

        What the filters leave of rows that are random and ``processed`` replaces their logits.
        """
        rows = op.Rows(*to_device(self._parameters(asked, bool(random)), logits.device))
        tokens, least, greatest = op.sample(logits, rows, self._library)
        filtered = sorted({*random} & {*processed})
        if filtered:
            at = self._ints(filtered, logits)
            given = logits[at]
            z = given / rows.temperature[at, None]
            top = z.amax(-1, keepdim=True)
            kept = (z >= least[at, None]) & (torch.exp(z - top) >= rows.min_p[at, None])
            # a temperature that lets z overflow stands for greedy
            logits[at] = torch.where(torch.isfinite(top), z.masked_fill(~kept, NEVER), given)
        return tokens, greatest

    def _parameters(self, asked: Sequence[Asked], any_random: bool) -> list[torch.Tensor]:
        """The columns of ``kernels.sample.Rows``, on the host; zeros are greedy."""
        if not any_random:
            return [torch.zeros(len(asked), dtype=kind) for kind in _KINDS]
        at = torch.tensor([a.row for a in asked])
        positions = torch.tensor([a.position for a in asked])
        r = self._rows
        columns = (r.temperature, r.top_k, r.top_p, r.min_p, r.seeds)
        return [*(column[at] for column in columns), positions, r.choices[at]]

    @staticmethod
    def _ints(values: list[int], like: torch.Tensor) -> torch.Tensor:
        return to_device([torch.tensor(values, dtype=torch.int64)], like.device)[0]
