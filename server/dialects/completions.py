"""Completions.

Wire format: ``CreateCompletionResponse`` of OpenAI's published API, whole and streamed; ``finish_reason``, which it
does not allow to be null, is left out of a stream's chunks until a choice ends. ``stop_reason``, ``token_ids``,
``prompt_token_ids`` and ``prompt_logprobs`` are vLLM's, and only there when they say something.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from server.dialects.dialect import Answer, Context, logprobs_size
from server.dialects.logprobs import LogprobWriter, join
from server.dialects.openai import Delta, OpenAIDialect
from server.schemas.openai.completions import CompletionRequest
from tandem.engine import LogprobColumns
from tandem.events import AnyEvent, ChoiceEnded, PromptScored, TokensSampled


class CompletionDialect(OpenAIDialect):
    """With ``echo`` each choice of a stream begins with a chunk that holds its prompt."""

    def __init__(self, context: Context, request: CompletionRequest) -> None:
        super().__init__(context, b'"text":', b"", is_open=b"")
        self._request = request
        self._prompt_logprobs: dict[int, LogprobColumns] = {}

    def size(self, events: Sequence[AnyEvent]) -> int:
        """Of log-probabilities, those of the prompt for each choice that begins."""
        size = super().size(events)
        for event in events if self._prompt_logprobs else ():
            if isinstance(event, TokensSampled | ChoiceEnded) and event.choice not in self._started:
                size += logprobs_size(self._prompt_logprobs[self._prompt_of(event.choice)])
        return size

    def events(self, events: Sequence[AnyEvent]) -> bytes:
        """The chunks of all choices that had any."""
        for event in events if self._request.echo else ():
            if isinstance(event, PromptScored):
                self._prompt_logprobs[event.prompt] = event.logprobs
        return super().events(events)

    def chunks(self, delta: Delta, usage: dict[str, Any] | None) -> Iterable[bytes]:
        """What one delta adds."""
        choice, end = delta.choice, delta.end
        begins = choice not in self._started
        if begins:
            self._started.add(choice)
            yield from self._beginning(choice, usage)
        extra: dict[str, Any] = {}
        if self._returns_ids and delta.tokens:
            extra["token_ids"] = delta.token_ids
        if end is None and not (extra or usage or delta.logprobs):
            if delta.text or begins:  # a first token is told of when it is there, even if its text is not
                yield self._write.plain(choice, delta.text)
            return
        reason, stop_reason = (None, None) if end is None else (end.finish_reason, end.stop_reason)
        logprobs = None
        if delta.logprobs:
            logprobs = self.logprobs_of(choice).completion(list(delta.logprobs), reason, stop_reason)
        if delta.text or logprobs or extra or end:
            if stop_reason is not None:
                extra["stop_reason"] = stop_reason
            yield self._write.text(choice, delta.text, logprobs, reason, extra, usage)

    def choice(self, answer: Answer, index: int) -> dict[str, Any]:
        """An entry of ``choices``."""
        request, choice = self._request, answer.choices[index]
        number = self._prompt_of(index)
        prompt = self.context.job.prompts[number]
        logprobs = None
        if request.reports_logprobs:
            writer = self.logprobs_of(index)
            parts = [self._echoed(writer, answer.prompt_logprobs, number)] if request.echo else []
            entries = [entry for columns in choice.logprobs for entry in columns]
            logprobs = join([*parts, writer.completion(entries, choice.finish_reason, choice.stop_reason)])
        fields: dict[str, Any] = {
            "index": index,
            "text": prompt.text + choice.text if request.echo else choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }
        if choice.stop_reason is not None:
            fields["stop_reason"] = choice.stop_reason
        if request.prompt_logprobs is not None:
            fields["prompt_logprobs"] = self.reported(number, answer.prompt_logprobs)
        if self._returns_ids:
            fields |= {"prompt_token_ids": prompt.token_ids, "token_ids": choice.token_ids}
        return fields

    def _beginning(self, choice: int, usage: dict[str, Any] | None) -> Iterator[bytes]:
        """What the answer says about a choice's prompt, if anything."""
        request, number = self._request, self._prompt_of(choice)
        prompt = self.context.job.prompts[number]
        logprobs = None
        if request.echo and request.reports_logprobs:
            logprobs = self._echoed(self.logprobs_of(choice), self._prompt_logprobs, number)
        extra = {"prompt_token_ids": prompt.token_ids} if self._returns_ids else {}
        if request.echo or extra:
            yield self._write.text(choice, prompt.text if request.echo else "", logprobs, extra=extra, usage=usage)

    def _echoed(self, writer: LogprobWriter, reports: dict[int, LogprobColumns], number: int) -> dict[str, Any]:
        entries = [None, *reports[number]]
        return writer.echo(self.context.job.prompts[number].token_ids, entries, self._request.logprobs or 0)

    def _prompt_of(self, choice: int) -> int:
        return choice // self.context.job.sampling.n
