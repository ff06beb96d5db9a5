"""Engine outputs in, events out: the part of generation that waits for nothing, with and without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from tandem.engine import EngineOutput, EngineRequest
from tandem.events import (
    AnyEvent,
    ChoiceEnded,
    ChoiceEvent,
    Content,
    PromptScored,
    ReasoningDelta,
    TextDelta,
    TokensSampled,
)
from tandem.sampling_params import SamplingParams
from tandem.text.detokenizer import Detokenizer
from tandem.text.parsers.chain import PlainContent
from tandem.text.parsers.parser import OutputParser
from tandem.text.stop_strings import StopStrings
from tandem.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Reading:
    """How the answers to a request are read.

    Attributes:
        parser: makes that of a choice, by the choice's number.
        markers: texts that parsers must see although special tokens are hidden.
        decodes: tokens are turned into text at all; without that there are no stop strings either.
    """

    parser: Callable[[int], OutputParser] = PlainContent
    markers: frozenset[str] = frozenset()
    decodes: bool = True


PLAIN = Reading()


class ChoiceDecoder:
    """Follows one choice: token ids → text → parser → stop strings → events.

    Special tokens are hidden from the parser where they are from the client, except its markers.

    A stop string is looked for in content only, and only in that of tokens after the first ``min_tokens``. When it is
    found the choice has ended although the engine goes on: whoever drives the decoder aborts the request.
    """

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams, choice: int, reading: Reading) -> None:
        self._choice = choice
        self._min_tokens = sampling.min_tokens
        self._keep_stop_token = sampling.include_stop_str_in_output
        self._detokenizer = Detokenizer(
            tokenizer, sampling.skip_special_tokens, sampling.spaces_between_special_tokens
        )
        self._decodes = reading.decodes
        self._parser = reading.parser(choice)
        self._markers = tokenizer.special_tokens_among(reading.markers) if sampling.skip_special_tokens else {}
        self._stop = StopStrings(tuple(sampling.stop), sampling.include_stop_str_in_output)
        self._num_tokens = 0
        self.num_reasoning_tokens = 0
        self._thinks: bool | None = None  # None before the first content

    def decode(self, output: EngineOutput) -> list[ChoiceEvent]:
        """The events of one engine output; its tokens after a stop string are dropped."""
        content: list[Content] = []
        token_ids, num_used = output.new_token_ids, 0
        hidden = len(token_ids) if output.finish_reason == "stop" and not self._keep_stop_token else 0
        for token_id in token_ids:
            num_used += 1
            self._num_tokens += 1
            if num_used != hidden and self._decodes and (text := self._text(token_id)):
                self._show(self._parser.push(text), content)
            if self._stop.found is not None:
                break
        if output.finish_reason is not None and self._stop.found is None:
            self._finish(content)
        events: list[ChoiceEvent] = []
        if num_used:
            logprobs = None if output.logprobs is None else output.logprobs.head(num_used)
            facts = output.scheduled_time, output.num_cached_tokens
            events.append(TokensSampled(self._choice, token_ids[:num_used], logprobs, *facts))
        events += content
        if (end := self._end(output)) is not None:
            events.append(end)
        return events

    def _text(self, token_id: int) -> str:
        return self._detokenizer.push(token_id) or self._markers.get(token_id, "")

    def _show(self, parsed: Iterable[Content], content: list[Content]) -> None:
        for event in parsed:
            self._count_thoughts(event)
            if not isinstance(event, TextDelta):
                _append_text(content, self._choice, self._stop.finish())
                content.append(event)
                continue
            searched = self._num_tokens > self._min_tokens
            _append_text(content, self._choice, self._stop.push(event.text) if searched else event.text)
            if self._stop.found is not None:
                return

    def _count_thoughts(self, event: Content) -> None:
        """The tokens of thoughts, their markers included, are those up to the first of other content."""
        if isinstance(event, ReasoningDelta):
            self._thinks = self._thinks is not False
            if self._thinks:
                self.num_reasoning_tokens = self._num_tokens
        elif self._thinks is not False:
            if self._thinks:
                self.num_reasoning_tokens = self._num_tokens - 1
            self._thinks = False

    def _finish(self, content: list[Content]) -> None:
        """The unfinished character, which may itself complete a stop string, and the text held back for one."""
        if rest := self._detokenizer.finish():
            self._show(self._parser.push(rest), content)
        if self._stop.found is None:
            self._show(self._parser.finish(), content)
        if self._stop.found is None:
            _append_text(content, self._choice, self._stop.finish())

    def _end(self, output: EngineOutput) -> ChoiceEnded | None:
        facts = output.scheduled_time, output.num_cached_tokens, output.num_preemptions
        if self._stop.found is not None:
            return ChoiceEnded(self._choice, "stop", self._stop.found, None, *facts)
        if output.finish_reason is None:
            return None
        return ChoiceEnded(self._choice, output.finish_reason, output.stop_token_id, output.error, *facts)


class Choices:
    """All choices of one request. Belongs to one thread at a time.

    Attributes:
        has_grammar: they must follow one.
        num_prompt_tokens: of all prompts, each counted once however many choices it has.
        num_output_tokens: of all choices, so far.
        num_reasoning_tokens: of these, those of thoughts.
        num_cached_tokens: of all prompts whose first choice has begun.
    """

    def __init__(self, tokenizer: Tokenizer, requests: Sequence[EngineRequest], reading: Reading = PLAIN) -> None:
        self._tokenizer = tokenizer
        self._reading = reading
        self._requests = requests
        self._prompts = [count - 1 for count in accumulate(int(request.choice_index == 0) for request in requests)]
        self._open = {request.request_id: number for number, request in enumerate(requests)}
        self._decoders: dict[int, ChoiceDecoder] = {}
        firsts = [request for request in requests if request.choice_index == 0]
        self._held: dict[int, list[AnyEvent]] = {
            prompt: [] for prompt, request in enumerate(firsts) if request.sampling.prompt_logprobs is not None
        }
        self.has_grammar = any(request.grammar for request in firsts)
        self.num_prompt_tokens = sum(len(request.prompt_token_ids) for request in firsts)
        self.num_output_tokens = 0
        self.num_reasoning_tokens = 0
        self.num_cached_tokens = 0

    def take(self, outputs: Iterable[EngineOutput]) -> tuple[list[AnyEvent], list[str]]:
        """Events of engine outputs, and the ids of requests that a stop string has ended: the engine must drop them.

        Outputs of choices that have ended are ignored: they were on their way.
        """
        events: list[AnyEvent] = []
        stopped: list[str] = []
        for output in outputs:
            number = self._open.get(output.request_id)
            if number is None:
                continue
            own = self._decode(number, output)
            if output.finish_reason is None and output.request_id not in self._open:
                stopped.append(output.request_id)
            events += self._after_its_prompt(number, output, own) if self._held else own
        return events, stopped

    def _decode(self, number: int, output: EngineOutput) -> list[ChoiceEvent]:
        if (decoder := self._decoders.get(number)) is None:
            sampling = self._requests[number].sampling
            decoder = ChoiceDecoder(self._tokenizer, sampling, number, self._reading)
            self._decoders[number] = decoder
            if self._requests[number].choice_index == 0:  # the others find what it has computed
                self.num_cached_tokens += output.num_cached_tokens
        before = decoder.num_reasoning_tokens
        events = decoder.decode(output)
        self.num_reasoning_tokens += decoder.num_reasoning_tokens - before
        if events and isinstance(events[0], TokensSampled):
            self.num_output_tokens += len(events[0].token_ids)
        if events and isinstance(events[-1], ChoiceEnded):
            del self._open[output.request_id], self._decoders[number]
        return events

    def _after_its_prompt(self, number: int, output: EngineOutput, own: list[ChoiceEvent]) -> list[AnyEvent]:
        """Only choice 0 brings its prompt's log-probabilities: the other choices' events wait for it."""
        prompt = self._prompts[number]
        if prompt not in self._held:
            return list(own)
        self._held[prompt] += own
        if output.prompt_logprobs is not None:
            return [PromptScored(prompt, output.prompt_logprobs), *self._held.pop(prompt)]
        if self._requests[number].choice_index == 0 and output.finish_reason is not None:
            return self._held.pop(prompt)  # it has failed without them
        return []


def _append_text(content: list[Content], choice: int, text: str) -> None:
    """Add text, joined to the text before it."""
    if not text:
        return
    if content and isinstance(content[-1], TextDelta):
        text = content.pop().text + text  # type: ignore[union-attr]
    content.append(TextDelta(choice, text))
