"""Do two engines say the same? The tests' question, asked of a user's own model and prompts.

Each prompt is answered greedily by both. Where the answers part, both engines trace that one forward pass, and what
they computed there decides: two candidates so close that rounding alone can swap them are a *tie*, anything else is a
*difference*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from tandem.engine import Engine, EngineRequest
from tandem.sampling_params import SamplingParams

# the largest difference of logits that rounding explains, by dtype of the activations
LOGIT_TOLERANCE = {"float32": 1e-3, "float16": 0.1, "bfloat16": 1.0}
TIE = 1e-5  # a gap below it counts as agreement in any case


class TraceableEngine(Engine, Protocol):
    """An engine whose computation can be looked at; no part of what a server needs."""

    def trace(self, token_ids: list[int]) -> list[Any]:
        """What one forward pass over ``token_ids`` computes; no request notices it.

        Returns:
            Float32 tensors on the CPU: the residual stream [T, D] after the embedding and after each layer, then the
            logits [T, V].
        """
        ...


class Divergence(msgspec.Struct, frozen=True):
    """Where two answers part.

    Attributes:
        position: of the first different output token.
        tokens: the reference's and the other engine's.
        top_two_gap: between the reference's two greatest logits there.
        logit_difference: the largest between the engines there.
    """

    position: int
    tokens: tuple[int, int]
    top_two_gap: float
    logit_difference: float

    def is_tie(self, dtype: str) -> bool:
        """Whether rounding explains it."""
        if self.top_two_gap < TIE:
            return True
        return self.logit_difference <= LOGIT_TOLERANCE[dtype] and self.top_two_gap <= 2 * self.logit_difference


class PromptVerdict(msgspec.Struct, frozen=True):
    """One prompt: ``agree``, ``tie`` or ``differ``."""

    verdict: str
    num_tokens: int
    divergence: Divergence | None = None


class Report(msgspec.Struct, frozen=True):
    """All prompts, and how the engines' computations compare over the first of them.

    Attributes:
        verdict: the worst of the prompts' verdicts.
        dtype: of the activations.
        stream_differences: largest absolute difference of the residual stream after the embedding and after each
            layer, over all positions.
        logit_difference: the same of the logits.
    """

    verdict: str
    dtype: str
    prompts: list[PromptVerdict]
    stream_differences: list[float]
    logit_difference: float


def compare(
    reference: TraceableEngine, other: TraceableEngine, prompts: Sequence[list[int]], max_tokens: int
) -> Report:
    """Send every prompt to both engines, one by one to the reference and all at once to the other."""
    theirs = _answers(other, prompts, max_tokens)
    verdicts = []
    for prompt, their in zip(prompts, theirs, strict=True):
        (ours,) = _answers(reference, [prompt], max_tokens)
        verdicts.append(_judge(reference, other, prompt, ours, their))
    *stream, logits = _differences(reference.trace(list(prompts[0])), other.trace(list(prompts[0])))
    order = ("agree", "tie", "differ")
    worst = max((verdict.verdict for verdict in verdicts), key=order.index)
    return Report(worst, reference.info.dtype, verdicts, stream, logits)


def _judge(
    reference: TraceableEngine, other: TraceableEngine, prompt: list[int], ours: list[int], theirs: list[int]
) -> PromptVerdict:
    position = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if position is None:
        same = len(ours) == len(theirs)
        return PromptVerdict("agree" if same else "differ", len(ours))
    context = [*prompt, *ours[:position]]
    mine, their = (engine.trace(context)[-1][-1] for engine in (reference, other))
    best, second = mine.topk(2).values.tolist()
    divergence = Divergence(
        position, (ours[position], theirs[position]), best - second, float((mine - their).abs().max())
    )
    verdict = "tie" if divergence.is_tie(reference.info.dtype) else "differ"
    return PromptVerdict(verdict, len(ours), divergence)


def _answers(engine: Engine, prompts: Sequence[list[int]], max_tokens: int) -> list[list[int]]:
    answers: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        answers[str(i)] = []
        engine.add(
            EngineRequest(
                request_id=str(i),
                prompt_token_ids=prompt,
                sampling=SamplingParams(temperature=0),
                max_tokens=min(max_tokens, engine.info.max_model_len - len(prompt)),
                seed=0,
            )
        )
    while engine.has_unfinished:
        for output in engine.step():
            answers[output.request_id] += output.new_token_ids
    return list(answers.values())


def _differences(ours: list[Any], theirs: list[Any]) -> list[float]:
    return [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]
