"""From logits to a token: the definition in ``SamplingParams``, step by step, for one row. All in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from reference.philox import gumbel_noise
from tandem.engine import EngineRequest, TokenLogprobs
from tandem.errors import NO_TOKEN_LEFT

NEVER = float("-inf")
LOWEST_LOGPROB = -9999.0


class SamplingError(Exception):
    """No token can be chosen; ends the request. The message is one line for the user."""


class Sample(NamedTuple):
    """A token and, if the request asks for it, its report."""

    token_id: int
    logprobs: TokenLogprobs | None


def sample(
    logits: torch.Tensor,
    request: EngineRequest,
    output_ids: list[int],
    logprobs_mode: str,
    follows: torch.Tensor | None = None,
) -> Sample:
    """Choose the token that follows ``output_ids``.

    Args:
        logits: [V]; left as they are.
        request: whose sampling parameters, seed and prompt count.
        output_ids: what it has generated so far.
        logprobs_mode: ``raw_`` or ``processed_``, ``logprobs`` or ``logits``.
        follows: bool [V], what the request's grammar lets follow; None if it has none.

    Raises:
        SamplingError: the logits are not numbers, the masks leave no token, or a penalty overflows.
    """
    check_logits(logits)
    raw = logits.float()
    z = apply_penalties(apply_masks(raw, request, output_ids, follows), request, output_ids)
    if not torch.isfinite(z.max()):
        raise SamplingError("repetition_penalty makes the logits overflow")
    s = request.sampling
    if s.temperature == 0:
        token_id = _first_argmax(z)
    else:
        tempered = z / s.temperature
        if not torch.isfinite(tempered.max()):  # logits so large that float32 overflows: the limit
            token_id = _first_argmax(z)
        else:
            z = apply_filters(tempered, s.top_k, s.top_p, s.min_p)
            token_id = draw(z, request.seed, len(output_ids), request.choice_index)
    if s.logprobs is None:
        return Sample(token_id, None)
    reported = raw if logprobs_mode.startswith("raw_") else z
    if logprobs_mode.endswith("_logprobs"):
        reported = torch.log_softmax(reported, dim=-1)
    return Sample(token_id, report(reported, token_id, s.logprobs, s.logprob_token_ids))


def check_logits(logits: torch.Tensor) -> None:
    """Step 1's errors, for a row [V] or rows [T, V].

    Raises:
        SamplingError: a logit is NaN or +inf, or a row is all -inf.
    """
    # the maximum is NaN if any logit is, and infinite in just the other two cases
    if not torch.isfinite(logits.amax(dim=-1)).all():
        raise SamplingError("the model produced logits that are not finite numbers")


def apply_masks(
    logits: torch.Tensor, request: EngineRequest, output_ids: list[int], follows: torch.Tensor | None = None
) -> torch.Tensor:
    """Step 2: a copy of the logits [V] with forbidden tokens at -inf and biases added.

    Raises:
        SamplingError: no token is left.
    """
    s = request.sampling
    z = logits.clone()
    if follows is not None:
        z[~follows] = NEVER
    if s.allowed_token_ids is not None:
        allowed = torch.zeros_like(z, dtype=torch.bool)
        allowed[list(s.allowed_token_ids)] = True
        z[~allowed] = NEVER
    for word in request.bad_words_token_ids:
        *start, last = word
        if output_ids[len(output_ids) - len(start) :] == start:
            z[last] = NEVER
    if len(output_ids) < s.min_tokens:
        z[[*request.eos_token_ids, *s.stop_token_ids]] = NEVER
    for token_id, bias in (s.logit_bias or {}).items():
        z[token_id] += min(max(bias, -100.0), 100.0)
    if z.max() == NEVER:
        raise SamplingError(NO_TOKEN_LEFT)
    return z


def apply_penalties(logits: torch.Tensor, request: EngineRequest, output_ids: list[int]) -> torch.Tensor:
    """Step 3: a copy of the logits [V], lowered (or raised) for tokens that have occurred."""
    s = request.sampling
    z = logits.clone()
    seen = torch.tensor(sorted({*request.prompt_token_ids, *output_ids}), device=z.device)
    z[seen] = torch.where(z[seen] > 0, z[seen] / s.repetition_penalty, z[seen] * s.repetition_penalty)
    if not output_ids:
        return z
    count = torch.bincount(torch.tensor(output_ids, device=z.device), minlength=len(z))  # [V]
    return z - (s.frequency_penalty * count + s.presence_penalty * (count > 0))


def apply_filters(z: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Step 4 after the temperature: a copy of ``z`` [V] with what the filters drop at -inf; ties stay together."""
    if 0 < top_k < len(z):
        z = z.masked_fill(z < z.topk(top_k).values[-1], NEVER)
    if top_p < 1:
        z = z.masked_fill(mass_above(z) >= top_p, NEVER)
    if min_p > 0:
        z = z.masked_fill(torch.exp(z - z.max()) < min_p, NEVER)
    return z


def mass_above(z: torch.Tensor) -> torch.Tensor:
    """For each token, the softmax mass of the tokens strictly more likely than it; float64 [V].

    In float64, so that a sum over a hundred thousand tokens is as good as exact.
    """
    ordered, order = z.double().sort(descending=True)
    p = torch.softmax(ordered, dim=-1)
    before = p.cumsum(-1) - p  # mass in front of each place of the order
    starts_group = torch.cat((torch.ones_like(ordered[:1], dtype=torch.bool), ordered[1:] < ordered[:-1]))
    first = torch.where(starts_group, torch.arange(len(z), device=z.device), 0).cummax(-1).values
    return torch.empty_like(before).scatter_(0, order, before[first])


def draw(z: torch.Tensor, seed: int, position: int, choice_index: int) -> int:
    """Step 5: a token with probability softmax(z) [V], decided by seed, output position and choice index alone."""
    candidates = torch.nonzero(z > NEVER).squeeze(-1)  # [N], ascending
    noise = gumbel_noise(candidates, seed, position, choice_index)
    return int(candidates[_first_argmax(z[candidates] - z.max() + noise)])


def report(logprobs: torch.Tensor, token_id: int, num_top: int, given: Sequence[int] | None = None) -> TokenLogprobs:
    """On one position, from log-probabilities [V]: its token, and the ``given`` ones or the most likely."""
    num_top = min(num_top, len(logprobs))
    top = list(given or ())
    if num_top and given is None:
        # all that tie with the last one, in ascending order, so that a stable sort puts lower ids first
        ids = torch.nonzero(logprobs >= logprobs.topk(num_top).values[-1]).squeeze(-1)
        top = ids[logprobs[ids].argsort(descending=True, stable=True)[:num_top]].tolist()
    chosen = logprobs[token_id]
    return TokenLogprobs(
        token_id=token_id,
        logprob=max(float(chosen), LOWEST_LOGPROB),
        rank=1 + int((logprobs > chosen).sum()),
        top_ids=top,
        top_logprobs=[max(float(logprobs[i]), LOWEST_LOGPROB) for i in top],
    )


def _first_argmax(x: torch.Tensor) -> int:
    """The lowest index of the greatest value; ``argmax`` promises no order among equals."""
    return int(torch.nonzero(x == x.max())[0])
