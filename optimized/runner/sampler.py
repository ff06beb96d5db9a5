"""One token for each sequence that a step has brought to its end, all of them together.

The definition is in ``SamplingParams``. What a request does not use costs nothing: its row is only argmaxed or drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence as Sized
from typing import NamedTuple

import torch

from optimized.kernels.sample import Rows
from optimized.kernels.sample import sample as sample_rows
from optimized.runner.packing import ToHost, to_device
from optimized.scheduling.sequence import Sequence
from tandem.engine import EngineRequest, TokenLogprobs
from tandem.sampling_params import SamplingParams

NEVER = float("-inf")
LOWEST_LOGPROB = -9999.0
NOT_FINITE = "the model produced logits that are not finite numbers"
NO_TOKEN_LEFT = "allowed_token_ids, bad_words and min_tokens together leave no token to generate"
OVERFLOW = "repetition_penalty makes the logits overflow"
_KINDS = (torch.float32, torch.int64, torch.float64, torch.float32, *[torch.int64] * 3)  # of ``Rows``


class Sampled(NamedTuple):
    """A row's token and report, or why there is none."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None


class _Check(NamedTuple):
    """``error`` is that of each of ``rows`` whose greatest logit is not finite; it is NaN if any of the row is."""

    error: str
    rows: Sized[int]
    greatest: torch.Tensor


class Drawing:
    """Tokens on their way to the host, and with them what is wrong with their rows.

    Args:
        tokens: int64 [N], see the attribute.
        checks: of the rows.
        seen: the logits of the rows to report on, in order of ``counts``.
        counts: how many of the most likely tokens the report of a row tells.

    Attributes:
        tokens: int64 [N], on the device of the logits. Whatever is in a row, its token is one of the vocabulary.
    """

    def __init__(
        self, tokens: torch.Tensor, checks: list[_Check], seen: torch.Tensor | None, counts: dict[int, int]
    ) -> None:
        self.tokens = tokens
        self._checks, self._seen, self._counts = checks, seen, counts
        self._copy = ToHost((tokens, *(check.greatest for check in checks)))

    def take(self) -> list[Sampled]:
        """Wait for them. Reports are computed only now, and waited for."""
        ids, *found = self._copy.values()
        errors, reports = _errors(self._checks, found), {}
        if self._seen is not None:
            told = report(self._seen, [ids[row] for row in self._counts], list(self._counts.values()))
            reports = dict(zip(self._counts, told, strict=True))
        return [Sampled(token_id, reports.get(i), errors.get(i)) for i, token_id in enumerate(ids)]


def sample(logits: torch.Tensor, sequences: list[Sequence], logprobs_mode: str) -> Drawing:
    """Begin to draw the next token of each sequence. On a GPU nothing here waits for it.

    Args:
        logits: float32 [N, V], one row a sequence; may be overwritten.
        sequences: N of them.
        logprobs_mode: ``raw_logprobs`` or ``processed_logprobs``.
    """
    special = [i for i, s in enumerate(sequences) if not s.is_plain]
    reported = [i for i in special if sequences[i].request.sampling.logprobs is not None]
    processed = logprobs_mode == "processed_logprobs"
    seen = logits.index_select(0, _ints(reported, logits)) if reported and not processed else None

    edited = [i for i in special if _edits(sequences[i])]
    checks = []
    if edited:
        rows = _ints(edited, logits)
        checks.append(_Check(NOT_FINITE, edited, logits.index_select(0, rows).amax(dim=-1)))
        _apply_masks(logits, sequences, edited)
        checks.append(_Check(NO_TOKEN_LEFT, edited, logits.index_select(0, rows).amax(dim=-1)))
        _apply_penalties(logits, sequences, edited)
    drawn = [i for i in special if sequences[i].request.sampling.temperature > 0]
    tokens, greatest = _draw(logits, sequences, drawn, reported if processed else [])
    if edited:
        checks.append(_Check(OVERFLOW, edited, greatest.index_select(0, rows)))
    checks.append(_Check(NOT_FINITE, range(len(sequences)), greatest))
    if reported and processed:
        seen = logits.index_select(0, _ints(reported, logits))
    counts = {i: sequences[i].request.sampling.logprobs or 0 for i in reported}
    return Drawing(tokens, checks, seen, counts)


def warm_up(logits: torch.Tensor) -> None:
    """Compile what ``sample`` launches for rows like ``logits`` [N, V]; on a CPU nothing is compiled."""
    request = EngineRequest(
        request_id="", prompt_token_ids=[0], sampling=SamplingParams(top_k=2, top_p=0.5), max_tokens=1, seed=0
    )
    sample(logits, [Sequence(request, (0, 0)) for _ in logits], "raw_logprobs").take()


def _errors(checks: list[_Check], found: list[list[float]]) -> dict[int, str]:
    """The first error of each row that has one; ``found`` are the checks' greatest logits."""
    errors: dict[int, str] = {}
    for check, greatest in zip(checks, found, strict=True):
        for row, value in zip(check.rows, greatest, strict=True):
            if not math.isfinite(value):
                errors.setdefault(row, check.error)
    return errors


# ---------------------------------------------------------------------- steps 2 and 3


def _edits(sequence: Sequence) -> bool:
    """Whether masks, biases or penalties can change this sequence's logits now."""
    s, request = sequence.request.sampling, sequence.request
    return bool(
        s.allowed_token_ids is not None
        or request.bad_words_token_ids
        or s.logit_bias
        or sequence.num_output_tokens < s.min_tokens
        or s.repetition_penalty != 1
        or s.frequency_penalty
        or s.presence_penalty
    )


def _apply_masks(logits: torch.Tensor, sequences: list[Sequence], rows: list[int]) -> None:
    banned: tuple[list[int], list[int]] = ([], [])
    biased: tuple[list[int], list[int], list[float]] = ([], [], [])
    for row in rows:
        sequence = sequences[row]
        s, request = sequence.request.sampling, sequence.request
        if s.allowed_token_ids is not None:
            allowed = _ints(list(s.allowed_token_ids), logits)
            kept = logits[row, allowed]
            logits[row] = NEVER
            logits[row, allowed] = kept
        never = [word[-1] for word in request.bad_words_token_ids if _ends_with(sequence, word[:-1])]
        if sequence.num_output_tokens < s.min_tokens:
            never += [*request.eos_token_ids, *s.stop_token_ids]
        banned[0].extend([row] * len(never))
        banned[1].extend(never)
        for token_id, bias in (s.logit_bias or {}).items():
            biased[0].append(row)
            biased[1].append(token_id)
            biased[2].append(min(max(bias, -100.0), 100.0))
    if banned[0]:
        logits[_ints(banned[0], logits), _ints(banned[1], logits)] = NEVER
    if biased[0]:
        at = (_ints(biased[0], logits), _ints(biased[1], logits))
        logits[at] += _on_device(biased[2], torch.float32, logits)


def _ends_with(sequence: Sequence, start: tuple[int, ...]) -> bool:
    if not start:
        return True
    if len(start) > sequence.num_output_tokens:
        return False
    return sequence.token_ids[-len(start) :] == list(start)


def _apply_penalties(logits: torch.Tensor, sequences: list[Sequence], rows: list[int]) -> None:
    for row in rows:
        sequence = sequences[row]
        s = sequence.request.sampling
        if s.repetition_penalty != 1:
            seen = _ints(sorted(set(sequence.token_ids)), logits)
            z = logits[row, seen]
            logits[row, seen] = torch.where(z > 0, z / s.repetition_penalty, z * s.repetition_penalty)
        if (s.frequency_penalty or s.presence_penalty) and sequence.num_output_tokens:
            counts = Counter(sequence.output_ids)
            ids = _ints(list(counts), logits)
            count = _on_device(list(counts.values()), torch.float32, logits)
            logits[row, ids] -= s.frequency_penalty * count + s.presence_penalty


# ---------------------------------------------------------------------- steps 4 and 5


def _draw(
    logits: torch.Tensor, sequences: list[Sequence], drawn: list[int], processed: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int64 [N], the best ones of rows that are not ``drawn``, and the greatest logits [N].

    What the filters leave of rows that are drawn and ``processed`` replaces their logits.
    """
    rows = Rows(*to_device(_parameters(sequences, drawn), logits.device))
    tokens, least, greatest = sample_rows(logits, rows)
    filtered = sorted({*drawn} & {*processed})
    if filtered:
        at = _ints(filtered, logits)
        given = logits[at]
        z = given / rows.temperature[at, None]
        top = z.amax(-1, keepdim=True)
        kept = (z >= least[at, None]) & (torch.exp(z - top) >= rows.min_p[at, None])
        # a temperature that lets z overflow stands for greedy
        logits[at] = torch.where(torch.isfinite(top), z.masked_fill(~kept, NEVER), given)
    return tokens, greatest


def _parameters(sequences: list[Sequence], drawn: list[int]) -> list[torch.Tensor]:
    """The columns of ``Rows``, on the host; zeros are greedy."""
    if not drawn:
        return [torch.zeros(len(sequences), dtype=kind) for kind in _KINDS]
    columns: list[list[float]] = [[0] * len(sequences) for _ in _KINDS]
    for i in drawn:
        sequence, request = sequences[i], sequences[i].request
        p = request.sampling
        key = (_signed(request.seed), sequence.num_output_tokens, request.choice_index)
        for column, value in zip(columns, (p.temperature, p.top_k, p.top_p, p.min_p, *key), strict=True):
            column[i] = value
    return [torch.tensor(column, dtype=kind) for column, kind in zip(columns, _KINDS, strict=True)]


def _signed(seed: int) -> int:
    return seed - (1 << 64) if seed >= 1 << 63 else seed


# ---------------------------------------------------------------------- log-probabilities


def report(logits: torch.Tensor, token_ids: list[int], counts: list[int]) -> list[TokenLogprobs]:
    """Reports on the tokens at the rows of ``logits`` [N, V], each with so many of the most likely tokens."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, _ints(token_ids, logits)[:, None])  # [N, 1]
    ranks = (1 + _count(logprobs > chosen)).tolist()
    top_ids, top_values = _top(logprobs, min(max(counts), logprobs.shape[1]))
    return [
        TokenLogprobs(
            token_id, max(value, LOWEST_LOGPROB), rank, ids[:n], [max(v, LOWEST_LOGPROB) for v in values[:n]]
        )
        for token_id, (value,), rank, ids, values, n in zip(
            token_ids, chosen.tolist(), ranks, top_ids, top_values, counts, strict=True
        )
    ]


def _top(logprobs: torch.Tensor, count: int) -> tuple[list[list[int]], list[list[float]]]:
    """The ``count`` greatest of each row, lower ids first among equals."""
    if count == 0:
        return [[] for _ in logprobs], [[] for _ in logprobs]
    values, ids = logprobs.topk(count, dim=-1)
    # topk promises no order among equals, nor which of those equal to the last it takes
    tied_out = _count(logprobs == values[:, -1:]) > _count(values == values[:, -1:])
    for row in tied_out.nonzero().squeeze(-1).tolist():
        candidates = (logprobs[row] >= values[row, -1]).nonzero().squeeze(-1)
        order = logprobs[row, candidates].argsort(descending=True, stable=True)[:count]
        ids[row], values[row] = candidates[order], logprobs[row, candidates[order]]
    ids, by_id = ids.sort(dim=-1)
    values, order = values.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    return ids.gather(1, order).tolist(), values.tolist()


def _count(x: torch.Tensor) -> torch.Tensor:
    """How many of each row of ``x`` [N, V] are true, int32 [N]. As bytes they are counted many times faster."""
    return x.view(torch.uint8).sum(-1, dtype=torch.int32)


def _ints(values: list[int], like: torch.Tensor) -> torch.Tensor:
    return _on_device(values, torch.int64, like)


def _on_device(values: list[int] | list[float], dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """On the device of ``like``, without waiting for it."""
    return to_device([torch.tensor(values, dtype=dtype)], like.device)[0]
