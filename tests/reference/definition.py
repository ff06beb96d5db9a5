"""The definition of sampling in ``SamplingParams``, once more: in float64 and plain Python, one token at a time.

Written from the text alone, as slow and as literal as possible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tandem.engine import EngineRequest

NONE = float("-inf")


def philox4x32(counter: Sequence[int], key_low: int, key_high: int) -> tuple[int, int, int, int]:
    """Ten rounds, in the notation of the paper: (L1, R1, L0, R0) with the keys bumped between rounds."""
    r0, l0, r1, l1 = counter
    for i in range(10):
        if i:
            key_low, key_high = (key_low + 0x9E3779B9) % 2**32, (key_high + 0xBB67AE85) % 2**32
        p0, p1 = r0 * 0xD2511F53, r1 * 0xCD9E8D57
        r0, l0, r1, l1 = (p1 // 2**32) ^ l0 ^ key_low, p1 % 2**32, (p0 // 2**32) ^ l1 ^ key_high, p0 % 2**32
    return r0, l0, r1, l1


def noise_of(token_id: int, seed: int, t: int, choice_index: int) -> float:
    w = philox4x32((token_id, t, choice_index, 0), seed % 2**32, seed // 2**32)[0]
    u = (w // 2**9 + 0.5) / 2**23
    return -math.log(-math.log(u))


def forbidden(v: int, request: EngineRequest, output: list[int]) -> bool:
    s = request.sampling
    if s.allowed_token_ids is not None and v not in s.allowed_token_ids:
        return True
    for word in request.bad_words_token_ids:
        start = list(word[:-1])
        ends_with_start = not start or (len(output) >= len(start) and output[-len(start) :] == start)
        if word[-1] == v and ends_with_start:
            return True
    return len(output) < s.min_tokens and (v in request.eos_token_ids or v in s.stop_token_ids)


def processed(logits: list[float], request: EngineRequest, output: list[int]) -> list[float]:
    """Steps 2 and 3."""
    s = request.sampling
    z = []
    for v, value in enumerate(logits):
        if forbidden(v, request, output):
            value = NONE
        value += (s.logit_bias or {}).get(v, 0.0)
        if v in request.prompt_token_ids or v in output:
            value = value / s.repetition_penalty if value > 0 else value * s.repetition_penalty
        count = output.count(v)
        z.append(value - s.frequency_penalty * count - s.presence_penalty * (count > 0))
    return z


def softmax(z: list[float]) -> list[float]:
    top = max(z)
    e = [math.exp(value - top) for value in z]
    total = math.fsum(e)
    return [value / total for value in e]


def filtered(z: list[float], request: EngineRequest) -> tuple[list[float], float]:
    """Step 4: what is left, and the least relative distance of any token from a filter's threshold."""
    s = request.sampling
    z = [value / s.temperature for value in z]
    margin = math.inf
    if s.top_k > 0:
        kth = sorted(z, reverse=True)[min(s.top_k, len(z)) - 1]
        z = [value if value >= kth else NONE for value in z]
    if s.top_p < 1:
        p = softmax(z)
        mass = [math.fsum(q for q, other in zip(p, z, strict=True) if other > value) for value in z]
        margin = min([margin, *(abs(m - s.top_p) for m in mass)])
        z = [value if m < s.top_p else NONE for value, m in zip(z, mass, strict=True)]
    if s.min_p > 0:
        top = max(z)
        ratio = [math.exp(value - top) for value in z]
        # the top token's ratio is exactly one in any arithmetic
        margin = min([margin, *(abs(r - s.min_p) for r in ratio if r < 1)])
        z = [value if r >= s.min_p else NONE for value, r in zip(z, ratio, strict=True)]
    return z, margin


def sampled(z: list[float], request: EngineRequest, t: int) -> tuple[int, float]:
    """Step 5: the token, and the gap to the second best."""
    top = max(z)
    scores = [
        NONE if value == NONE else value - top + noise_of(v, request.seed, t, request.choice_index)
        for v, value in enumerate(z)
    ]
    best, second = (sorted(scores, reverse=True) + [NONE])[:2]
    return scores.index(best), best - second
