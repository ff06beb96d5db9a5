"""When two engines agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from reference import ReferenceEngine
from reference.philox import gumbel_noise
from reference.sampling import apply_filters, apply_masks, apply_penalties
from tandem.engine import EngineRequest
from tests.equivalence.answers import Answer
from tests.equivalence.tolerances import LOGPROBS, RARE, TIE


@dataclass
class Tally:
    """How many answers and tokens were compared, how many answers ended early, in a tie, and what differed most."""

    num_answers: int = 0
    num_tokens: int = 0
    num_ties: int = 0
    worst: float = 0.0  # difference of two log-probabilities

    def add(self, other: Tally) -> None:
        """Count what ``other`` has counted, too."""
        self.num_answers += other.num_answers
        self.num_tokens += other.num_tokens
        self.num_ties += other.num_ties
        self.worst = max(self.worst, other.worst)

    def clear(self) -> None:
        """Begin anew."""
        self.num_answers = self.num_tokens = self.num_ties = 0
        self.worst = 0.0

    def differ(self, difference: float) -> None:
        """Two log-probabilities do, by less than the tolerance."""
        assert difference < LOGPROBS, difference
        self.worst = max(self.worst, difference)

    def assert_ties_are_rare(self) -> None:
        """One may always happen; if many do, the comparisons say nothing."""
        assert self.num_ties <= 1 + RARE * self.num_answers, self


TALLY = Tally()  # of the test that runs; see conftest.py
TOTAL = Tally()  # of all tests that passed


def assert_same(reference: ReferenceEngine, request: EngineRequest, got: Answer, want: Answer) -> None:
    """Both engines said the same, up to the first tie that made them part; after it the rest may differ."""
    TALLY.num_answers += 1
    TALLY.num_tokens += len(got.token_ids)
    for i, (a, b) in enumerate(zip(got.token_ids, want.token_ids, strict=False)):
        if a != b:
            assert top_two_gap(reference, request, want.token_ids[:i]) < TIE, f"token {i}: {a} for {b} of {request}"
            TALLY.num_ties += 1
            return
    assert (got.token_ids, got.finish_reason, got.stop_token_id) == (
        want.token_ids,
        want.finish_reason,
        want.stop_token_id,
    ), request
    assert (got.error is None) == (want.error is None)
    if (given := request.sampling.logprob_token_ids) is not None:
        assert all(entry.top_ids == list(given) for entry in (*got.logprobs, *want.logprobs)), request
    for ours, theirs in ((got.logprobs, want.logprobs), (got.prompt_logprobs, want.prompt_logprobs)):
        assert (ours is None) == (theirs is None), request
        for a, b in zip(ours or [], theirs or [], strict=True):
            assert_same_report(a, b)


def assert_same_report(a: Any, b: Any) -> None:
    if a is None or b is None:
        assert a is b is None
        return
    assert a.token_id == b.token_id and len(a.top_ids) == len(b.top_ids), (a, b)
    for x, y in zip((a.logprob, *a.top_logprobs), (b.logprob, *b.top_logprobs), strict=True):
        TALLY.differ(abs(x - y))


def top_two_gap(reference: ReferenceEngine, request: EngineRequest, output: list[int]) -> float:
    """Difference between the two best scores of the reference, noise included, after ``output``."""
    with torch.inference_mode():
        ids = torch.tensor([*request.prompt_token_ids, *output], device=reference.model.device)
        logits = reference.model.logits(reference.model(ids, reference.model.new_cache())[-1:])[0].cpu()
        best, second = best_two(logits, request, output)
        return best - second


def best_two(logits: torch.Tensor, request: EngineRequest, output: list[int]) -> tuple[float, float]:
    """The two best scores of a row [V], noise included, as the reference computes them."""
    z = apply_penalties(apply_masks(logits, request, output), request, output)
    s = request.sampling
    if s.temperature > 0:
        z = apply_filters(z / s.temperature, s.top_k, s.top_p, s.min_p)
        z = z + gumbel_noise(torch.arange(len(z)), request.seed, len(output), request.choice_index)
    best, second = z.topk(2).values.tolist()
    return best, second
