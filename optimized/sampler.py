"""One token for each sequence that a step has brought to its end, all of them together.

The definition is in ``SamplingParams``. What a request does not use costs nothing: its row is only argmaxed or drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Sized
from typing import NamedTuple

import torch

from optimized.kernels.compat import use_triton
from optimized.kernels.draw import draw
from optimized.kernels.row_best import row_best
from optimized.kernels.sample import sample as sample_rows
from optimized.packing import to_device
from optimized.sequence import Sequence
from tandem.engine import EngineRequest, TokenLogprobs
from tandem.sampling_params import SamplingParams

NEVER = float("-inf")
LOWEST_LOGPROB = -9999.0
MASS_TOKENS = 1024  # that top-p orders first
NOT_FINITE = "the model produced logits that are not finite numbers"
NO_TOKEN_LEFT = "allowed_token_ids, bad_words and min_tokens together leave no token to generate"
OVERFLOW = "repetition_penalty makes the logits overflow"


class Sampled(NamedTuple):
    """A row's token and report, or why there is none."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None


def sample(logits: torch.Tensor, sequences: list[Sequence], logprobs_mode: str) -> list[Sampled]:
    """The next token of each sequence.

    On a GPU nothing waits for it but the last copy, of the tokens and of what is wrong with them; reports of
    log-probabilities, for rows that ask for them, come after it.

    Args:
        logits: float32 [N, V], one row a sequence; may be overwritten.
        sequences: N of them.
        logprobs_mode: ``raw_logprobs`` or ``processed_logprobs``.
    """
    greatest, best = _greatest(logits)
    checks = [_Check(NOT_FINITE, range(len(sequences)), greatest)]
    reported = [i for i, s in enumerate(sequences) if s.request.sampling.logprobs is not None]
    processed = logprobs_mode == "processed_logprobs"
    raw = logits.index_select(0, _ints(reported, logits)) if reported and not processed else None

    edited = [i for i, s in enumerate(sequences) if _edits(s)]
    if edited:
        rows = _ints(edited, logits)
        _apply_masks(logits, sequences, edited)
        checks.append(_Check(NO_TOKEN_LEFT, edited, logits.index_select(0, rows).amax(dim=-1)))
        _apply_penalties(logits, sequences, edited)
        greatest, best = _greatest(logits)
        checks.append(_Check(OVERFLOW, edited, greatest.index_select(0, rows)))
    drawn = [i for i, s in enumerate(sequences) if s.request.sampling.temperature > 0]
    if use_triton(logits):
        tokens = _draw_by_kernel(logits, greatest, sequences, reported if processed else [])
    else:
        assert best is not None
        tokens = _draw_in_torch(logits, best, sequences, drawn, processed)
    found = torch.cat((tokens, *(torch.isfinite(check.greatest).long() for check in checks))).tolist()
    ids, errors = found[: len(sequences)], _errors(checks, found[len(sequences) :])
    reports = _reports(logits if raw is None else raw, sequences, reported, ids, raw is not None)
    return [Sampled(ids[i], reports.get(i), errors.get(i)) for i in range(len(sequences))]


def _greatest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of each row the greatest logit, and on a CPU its place: on a GPU the kernel that draws finds that."""
    return (logits.amax(dim=-1), None) if use_triton(logits) else row_best(logits)


def warm_up(logits: torch.Tensor) -> None:
    """Compile what ``sample`` launches for rows like ``logits`` [N, V]; on a CPU nothing is compiled."""
    request = EngineRequest(
        request_id="", prompt_token_ids=[0], sampling=SamplingParams(top_k=2, top_p=0.5), max_tokens=1, seed=0
    )
    sample(logits, [Sequence(request, (0, 0)) for _ in logits], "raw_logprobs")


class _Check(NamedTuple):
    """``error`` is that of each of ``rows`` whose greatest logit is not finite; it is NaN if any of the row is."""

    error: str
    rows: Sized[int]
    greatest: torch.Tensor


def _errors(checks: list[_Check], passed: list[int]) -> dict[int, str]:
    """The first error of each row that has one; ``passed`` are the checks' results, one behind the other."""
    errors: dict[int, str] = {}
    row_and_error = [(row, check.error) for check in checks for row in check.rows]
    for (row, error), is_right in zip(row_and_error, passed, strict=True):
        if not is_right:
            errors.setdefault(row, error)
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


def _draw_by_kernel(
    logits: torch.Tensor, greatest: torch.Tensor, sequences: list[Sequence], processed: list[int]
) -> torch.Tensor:
    """Tokens int64 [N]; what the filters leave of the rows ``processed`` replaces their logits."""
    params = [s.request.sampling for s in sequences]
    temperature, top_k, top_p, min_p, seeds, positions, choices = to_device(
        (
            torch.tensor([p.temperature for p in params], dtype=torch.float32),
            torch.tensor([p.top_k for p in params]),
            torch.tensor([p.top_p for p in params], dtype=torch.float64),
            torch.tensor([p.min_p for p in params], dtype=torch.float32),
            torch.tensor([_signed(s.request.seed) for s in sequences]),
            torch.tensor([s.num_output_tokens for s in sequences]),
            torch.tensor([s.request.choice_index for s in sequences]),
        ),
        logits.device,
    )
    # a row that is no numbers gets an error, and until then any token
    temperature = torch.where(torch.isfinite(greatest), temperature, 0)
    tokens, least = sample_rows(logits, temperature, top_k, top_p, min_p, seeds, positions, choices)
    drawn = [i for i in processed if params[i].temperature > 0]
    if drawn:
        rows = _ints(drawn, logits)
        z = logits[rows] / temperature[rows, None]
        kept = (z >= least[rows, None]) & (torch.exp(z - z.amax(-1, keepdim=True)) >= min_p[rows, None])
        logits[rows] = z.masked_fill(~kept, NEVER)
    return tokens


def _draw_in_torch(
    logits: torch.Tensor, tokens: torch.Tensor, sequences: list[Sequence], drawn: list[int], processed: bool
) -> torch.Tensor:
    """Tokens int64 [N], of which those of rows that are not ``drawn`` are known: the best, the first of equals.

    With ``processed``, what the filters leave of rows that are drawn replaces their logits.
    """
    if drawn:
        z, rows = _filtered(logits, sequences, drawn)
        chosen = [sequences[i] for i in drawn]
        tokens[rows] = draw(
            z,
            _ints([_signed(s.request.seed) for s in chosen], z),
            _ints([s.num_output_tokens for s in chosen], z),
            _ints([s.request.choice_index for s in chosen], z),
        )
        if processed:
            logits[rows] = z
    return tokens


def _filtered(logits: torch.Tensor, sequences: list[Sequence], drawn: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """``z`` [M, V] of the rows that are drawn, with dropped tokens at -inf; and the rows' numbers [M]."""
    params = [sequences[i].request.sampling for i in drawn]
    rows = _ints(drawn, logits)
    z = logits[rows] / torch.tensor([p.temperature for p in params], device=logits.device)[:, None]
    vocab = z.shape[1]
    by_k = [i for i, p in enumerate(params) if 0 < p.top_k < vocab]
    if by_k:
        k = _ints([params[i].top_k for i in by_k], z)
        best = z[by_k].topk(int(k.max()), dim=-1).values
        least = best.gather(1, k[:, None] - 1)
        z[by_k] = z[by_k].masked_fill(z[by_k] < least, NEVER)
    by_p = [i for i, p in enumerate(params) if p.top_p < 1]
    if by_p:
        top_p = torch.tensor([params[i].top_p for i in by_p], dtype=torch.float64, device=z.device)
        z[by_p] = z[by_p].masked_fill(z[by_p] < _least_within_mass(z[by_p], top_p), NEVER)
    by_min = [i for i, p in enumerate(params) if p.min_p > 0]
    if by_min:
        min_p = torch.tensor([params[i].min_p for i in by_min], device=z.device)[:, None]
        part = z[by_min]
        z[by_min] = part.masked_fill(torch.exp(part - part.amax(-1, keepdim=True)) < min_p, NEVER)
    return z, rows


def _least_within_mass(z: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """For each row of ``z`` [M, V] the least value that top-p keeps, [M, 1].

    The last token in order that has less than ``top_p`` [M] before it is kept, and with it all that tie with it.
    """
    total = torch.logsumexp(z.double(), dim=-1, keepdim=True)
    count, vocab = MASS_TOKENS, z.shape[1]
    while True:  # most distributions have nearly all of their mass in few tokens: ordering those is enough
        ordered = z.topk(min(count, vocab), dim=-1).values
        p = torch.exp(ordered.double() - total)
        num_kept = (p.cumsum(-1) - p < top_p[:, None]).sum(-1, keepdim=True)
        if count >= vocab or bool((num_kept < count).all()):
            return ordered.gather(1, (num_kept - 1).clamp(min=0))
        count *= 16


def _signed(seed: int) -> int:
    return seed - (1 << 64) if seed >= 1 << 63 else seed


# ---------------------------------------------------------------------- log-probabilities


def _reports(
    logits: torch.Tensor, sequences: list[Sequence], rows: list[int], ids: list[int], is_subset: bool
) -> dict[int, TokenLogprobs]:
    if not rows:
        return {}
    chosen = logits if is_subset else logits.index_select(0, _ints(rows, logits))
    counts = [sequences[i].request.sampling.logprobs or 0 for i in rows]
    return dict(zip(rows, report(chosen, [ids[i] for i in rows], counts), strict=True))


def report(logits: torch.Tensor, token_ids: list[int], counts: list[int]) -> list[TokenLogprobs]:
    """Reports on the tokens at the rows of ``logits`` [N, V], each with so many of the most likely tokens."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, _ints(token_ids, logits)[:, None])  # [N, 1]
    ranks = (1 + (logprobs > chosen).sum(-1)).tolist()
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
    tied_out = (logprobs == values[:, -1:]).sum(-1) > (values == values[:, -1:]).sum(-1)
    for row in tied_out.nonzero().squeeze(-1).tolist():
        candidates = (logprobs[row] >= values[row, -1]).nonzero().squeeze(-1)
        order = logprobs[row, candidates].argsort(descending=True, stable=True)[:count]
        ids[row], values[row] = candidates[order], logprobs[row, candidates[order]]
    ids, by_id = ids.sort(dim=-1)
    values, order = values.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    return ids.gather(1, order).tolist(), values.tolist()


def _ints(values: list[int], like: torch.Tensor) -> torch.Tensor:
    return _on_device(values, torch.int64, like)


def _on_device(values: list[int] | list[float], dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """On the device of ``like``, without waiting for it."""
    return to_device([torch.tensor(values, dtype=dtype)], like.device)[0]
