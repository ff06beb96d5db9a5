"""Answers as text: what the front process makes of an engine's token ids."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem.engine import EngineOutput, FinishReason, TokenLogprobs
from tandem.sampling_params import SamplingParams
from tandem.text.detokenizer import Detokenizer
from tandem.text.stop_strings import StopStrings
from tandem.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What one step adds to one choice.

    Attributes:
        index: the choice's number among the ``n`` of its prompt.
        text: new text; may be empty while a character or a stop string is unfinished.
        token_ids: new tokens, the end of sequence included.
        logprobs: one entry a token, if asked for.
        prompt_logprobs: once, with the first delta of choice 0, if asked for.
        finish_reason: set in the last delta.
        stop_reason: the stop string or stop token that ended the answer; None for the end of sequence.
        error: why ``finish_reason`` is ``error``.
        num_cached_tokens, scheduled_time: as in ``EngineOutput``.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    scheduled_time: float = 0.0


class ChoiceDecoder:
    """Follows one choice: engine outputs in, deltas out.

    A stop string is looked for in the text of the tokens after the first ``min_tokens``. When it is found the delta
    carries ``finish_reason="stop"`` although the engine goes on: whoever drives the decoder aborts the request.
    """

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams, index: int) -> None:
        self._index = index
        self._min_tokens = sampling.min_tokens
        self._keep_stop_token = sampling.include_stop_str_in_output
        self._detokenizer = Detokenizer(
            tokenizer, sampling.skip_special_tokens, sampling.spaces_between_special_tokens
        )
        self._stop = StopStrings(tuple(sampling.stop), sampling.include_stop_str_in_output)
        self._num_tokens = 0

    def decode(self, output: EngineOutput) -> ChoiceDelta:
        """The delta of one engine output; its tokens after a stop string are dropped."""
        pieces, used = [], 0
        stop_token_last = output.finish_reason == "stop"
        for token_id in output.new_token_ids:
            used += 1
            hidden = stop_token_last and used == len(output.new_token_ids) and not self._keep_stop_token
            pieces.append("" if hidden else self._push(token_id))
            if self._stop.found is not None:
                break
        finish_reason = output.finish_reason
        stop_reason: int | str | None = output.stop_token_id
        if self._stop.found is not None:
            finish_reason, stop_reason = "stop", self._stop.found
        elif finish_reason is not None:
            pieces.append(self._finish())
            if self._stop.found is not None:
                finish_reason, stop_reason = "stop", self._stop.found
        return ChoiceDelta(
            index=self._index,
            text="".join(pieces),
            token_ids=output.new_token_ids[:used],
            logprobs=None if output.logprobs is None else list(output.logprobs)[:used],
            prompt_logprobs=None if output.prompt_logprobs is None else [None, *output.prompt_logprobs],
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            error=output.error,
            num_cached_tokens=output.num_cached_tokens,
            scheduled_time=output.scheduled_time,
        )

    def _push(self, token_id: int) -> str:
        self._num_tokens += 1
        text = self._detokenizer.push(token_id)
        return text if self._num_tokens <= self._min_tokens else self._stop.push(text)

    def _finish(self) -> str:
        """The unfinished character, which may itself complete a stop string, and the text held back for one."""
        shown = self._stop.push(self._detokenizer.finish())
        return shown if self._stop.found is not None else shown + self._stop.finish()


@dataclass(slots=True)
class CompletionOutput:
    """One finished choice of the offline interface.

    ``logprobs`` maps, for each token, token ids to log-probabilities: the chosen one's and the most likely ones'.
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


@dataclass(slots=True)
class RequestOutput:
    """A prompt and all its choices, of the offline interface.

    ``prompt_logprobs`` has None for the first prompt token and then an entry like those of ``CompletionOutput``.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, float] | None] | None = None
    num_cached_tokens: int = 0
    finished: bool = False


def merge(delta: ChoiceDelta, output: CompletionOutput) -> None:
    """Add a delta to the choice it belongs to."""
    output.text += delta.text
    output.token_ids += delta.token_ids
    if delta.logprobs is not None:
        output.logprobs = (output.logprobs or []) + [as_dict(entry) for entry in delta.logprobs]
    output.finish_reason, output.stop_reason, output.error = delta.finish_reason, delta.stop_reason, delta.error


def as_dict(entry: TokenLogprobs) -> dict[int, float]:
    """Token id to log-probability, the most likely first and the token that stands there always among them."""
    return {**dict(zip(entry.top_ids, entry.top_logprobs, strict=True)), entry.token_id: entry.logprob}
