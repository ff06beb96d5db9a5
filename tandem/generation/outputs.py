"""Whole results of the offline interface, made from events."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem.engine import FinishReason, TokenLogprobs
from tandem.events import AnyEvent, ChoiceEnded, TextDelta, TokensSampled


@dataclass(slots=True)
class BeamSearchSequence:
    """One answer of a beam search.

    Attributes:
        tokens: the prompt's and the answer's.
        text: of all of them.
        cum_logprob: of the answer.
    """

    tokens: list[int]
    text: str
    cum_logprob: float
    finish_reason: str | None


@dataclass(slots=True)
class BeamSearchOutput:
    """The answers to one prompt, the best first."""

    sequences: list[BeamSearchSequence]


@dataclass(slots=True)
class CompletionOutput:
    """One finished choice.

    ``logprobs`` maps, for each token, token ids to log-probabilities: the chosen one's, and those of the most likely
    tokens or of ``SamplingParams.logprob_token_ids``.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of the chosen tokens' log-probabilities; None if they were not asked for."""
        if self.logprobs is None:
            return None
        return sum(entry[token_id] for entry, token_id in zip(self.logprobs, self.token_ids, strict=True))

    def add(self, event: AnyEvent) -> None:
        """Take an event of this choice."""
        match event:
            case TokensSampled(_, token_ids, logprobs):
                self.token_ids += token_ids
                if logprobs is not None:
                    self.logprobs = self.logprobs or []
                    self.logprobs += map(as_dict, logprobs)
            case TextDelta(_, text):
                self.text += text
            case ChoiceEnded(_, finish_reason, stop_reason, error):
                self.finish_reason, self.stop_reason, self.error = finish_reason, stop_reason, error


@dataclass(slots=True)
class RequestOutput:
    """A prompt and all its choices.

    ``prompt_logprobs`` has None for the first prompt token and then an entry like those of ``CompletionOutput``.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, float] | None] | None = None
    num_cached_tokens: int = 0
    finished: bool = False


def as_dict(entry: TokenLogprobs) -> dict[int, float]:
    """Token id to log-probability in the order of the report; the token that stands there is always among them."""
    return {**dict(zip(entry.top_ids, entry.top_logprobs, strict=True)), entry.token_id: entry.logprob}
