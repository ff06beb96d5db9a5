"""Beam search: the most likely answers as a whole, found by keeping the best beginnings.

It stands above the engines. A step asks for the most likely next tokens of every beginning, each a request for one
token; what beginnings have in common is found in the prefix cache. Scores are sums of raw log-probabilities over the
generated tokens, divided by their number to the power of ``length_penalty`` (Wu et al., 2016, without its offset).
The end of sequence counts in the sum and not in the number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from tandem.engine import EngineOutput, EngineRequest, FinishReason
from tandem.errors import RequestFailedError
from tandem.process.client import EngineClient, OutputStream
from tandem.sampling_params import SamplingParams


class BeamParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to search.

    Attributes:
        width: beginnings that are kept, and answers that are found.
        length_penalty: above 0 prefers long answers, below 0 short ones.
    """

    width: int
    length_penalty: float = 1.0


class Beam(msgspec.Struct, frozen=True):
    """An answer, or the beginning of one.

    Attributes:
        logprob: sum of those of its tokens.
        finish_reason: None of a beginning.
    """

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None


class BeamSearch:
    """The search for one prompt; it waits for nothing.

    Args:
        request: of the prompt's first choice. Of its sampling parameters only stop tokens count.
    """

    def __init__(self, request: EngineRequest, params: BeamParams) -> None:
        self._request, self._params = request, params
        self._sampling = SamplingParams(temperature=0, max_tokens=1, logprobs=2 * params.width)
        self._beams = [Beam()]
        self._ended: list[Beam] = []
        self.num_steps = 0

    @property
    def is_done(self) -> bool:
        """Whether no beginning can become one of the best answers any more."""
        if not self._beams:
            return True
        if len(self._ended) < self._params.width:
            return False
        worst = self._score(sorted(self._ended, key=self._score)[-self._params.width])
        return all(self._most(beam) <= worst for beam in self._beams)

    def requests(self) -> list[EngineRequest]:
        """One for each beginning, in order."""
        prompt = self._request.prompt_token_ids
        return [
            msgspec.structs.replace(
                self._request,
                request_id=f"{self._request.request_id}-{self.num_steps}-{i}",
                prompt_token_ids=[*prompt, *beam.token_ids],
                sampling=self._sampling,
                max_tokens=1,
                choice_index=0,
                eos_token_ids=(),
            )
            for i, beam in enumerate(self._beams)
        ]

    def take(self, outputs: Mapping[str, EngineOutput]) -> None:
        """Go a token further with the outputs of ``requests``, by id.

        Raises:
            RequestFailedError: the engine failed on one of them.
        """
        grown: list[Beam] = []
        for request, beam in zip(self.requests(), self._beams, strict=True):
            output = outputs[request.request_id]
            if output.logprobs is None or output.finish_reason == "error":
                raise RequestFailedError(output.error or "the engine could not finish this request")
            (entry,) = output.logprobs
            grown += map(_grower(beam), entry.top_ids, entry.top_logprobs)
        grown.sort(key=lambda beam: -beam.logprob)  # stable: of equals the one of the better beginning
        self.num_steps += 1
        self._beams = []
        for beam in grown[: 2 * self._params.width]:
            ended = self._end_of(beam)
            if ended is not None:
                self._ended.append(ended)
            elif len(self._beams) < self._params.width:
                self._beams.append(beam)

    def best(self) -> list[Beam]:
        """The answers, the best first; as many as the search is wide, if there were so many."""
        return sorted(self._ended, key=self._score, reverse=True)[: self._params.width]

    def _end_of(self, beam: Beam) -> Beam | None:
        """The beam as an answer, if it is one."""
        request, last = self._request, beam.token_ids[-1]
        if last in request.eos_token_ids:
            return msgspec.structs.replace(beam, finish_reason="stop")
        if last in request.sampling.stop_token_ids:
            return msgspec.structs.replace(beam, finish_reason="stop", stop_token_id=last)
        if len(beam.token_ids) >= request.max_tokens:
            return msgspec.structs.replace(beam, finish_reason="length")
        return None

    def _score(self, beam: Beam) -> float:
        length = len(beam.token_ids) - (beam.finish_reason == "stop")
        return beam.logprob / math.pow(max(1, length), self._params.length_penalty)

    def _most(self, beam: Beam) -> float:
        """A bound of the scores that a beginning can still reach: further tokens add nothing to its sum at best."""
        lengths = (len(beam.token_ids), self._request.max_tokens)
        return max(beam.logprob / math.pow(max(1, length), self._params.length_penalty) for length in lengths)


def _grower(beam: Beam) -> Callable[[int, float], Beam]:
    """A function that adds a token and its log-probability."""
    return lambda token_id, logprob: Beam((*beam.token_ids, token_id), beam.logprob + logprob)


class BeamStream:
    """Searches for all prompts of a request, as a stream of outputs: the answers of a prompt come when it is done.

    Args:
        requests: all choices of all prompts, as many choices as the search is wide.

    Raises:
        EngineError: the engine cannot take them now.
    """

    def __init__(self, client: EngineClient, requests: Sequence[EngineRequest], params: BeamParams) -> None:
        self._client = client
        firsts = [number for number, request in enumerate(requests) if request.choice_index == 0]
        self._choices = [[r.request_id for r in requests[first : first + params.width]] for first in firsts]
        self._searches = {i: BeamSearch(requests[first], params) for i, first in enumerate(firsts)}
        self._seen: dict[int, EngineOutput] = {}  # the first output of each prompt
        self._outputs: dict[str, EngineOutput] = {}  # of the step under way
        self._found: list[EngineOutput] = []
        self._error: Exception | None = None
        self._listener: Callable[[], None] | None = None
        self._stream = self._submit()

    @property
    def finished(self) -> bool:
        """Whether all answers have been taken; False while there is an error to raise."""
        return not self._searches and not self._found and self._error is None

    def listen(self, listener: Callable[[], None]) -> None:
        """As ``OutputStream.listen``."""
        self._listener = listener

    def take(self) -> list[EngineOutput]:
        """The answers of the prompts that are done. Raises as ``OutputStream.take``."""
        found, self._found = self._found, []
        if self._error is not None and not found:
            raise self._error
        return found

    def abort(self, request_ids: Iterable[str] | None = None) -> None:
        """Stop; part of a search cannot be stopped, and goes on."""
        if request_ids is None:
            self._searches.clear()
            self._stream.abort()

    def _submit(self) -> OutputStream:
        stream = self._client.submit([r for search in self._searches.values() for r in search.requests()])
        stream.listen(self._advance)
        return stream

    def _advance(self) -> None:
        """Take outputs; once all of a step are there, go a token further."""
        if not self._searches:
            return
        try:
            self._outputs |= {output.request_id: output for output in self._stream.take()}
            if self._stream.finished:
                self._step()
        except Exception as error:  # the listener's to handle
            self._error = error
        if self._listener is not None and (self._found or self._error):
            self._listener()

    def _step(self) -> None:
        outputs, self._outputs = self._outputs, {}
        for i, search in self._searches.items():
            self._seen.setdefault(i, outputs[search.requests()[0].request_id])
            search.take(outputs)
        for i in [i for i, search in self._searches.items() if search.is_done]:
            self._found += self._answers(i)
            del self._searches[i]
        if self._searches:
            self._stream = self._submit()

    def _answers(self, prompt: int) -> list[EngineOutput]:
        first = self._seen[prompt]
        return [
            EngineOutput(
                request_id,
                list(beam.token_ids),
                finish_reason=beam.finish_reason,
                stop_token_id=beam.stop_token_id,
                num_cached_tokens=first.num_cached_tokens,
                scheduled_time=first.scheduled_time,
            )
            for request_id, beam in zip(self._choices[prompt], self._searches[prompt].best(), strict=True)
        ]
