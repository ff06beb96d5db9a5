"""Token ids.

Wire format: ``GenerateResponse`` of vLLM, whole and streamed (``data: {JSON}``, at the end ``data: [DONE]``). Where
text is wanted, choices have ``text``, and their log-probabilities are those of chat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.dialects.dialect import Answer, Context, encode_json, written_size
from server.dialects.logprobs import LogprobWriter, prompt_logprobs
from server.dialects.openai import DONE, Delta, deltas
from server.errors import ApiError
from server.schemas.vendors.generate import TokensRequest
from tandem.engine import FinishReason, TokenLogprobs
from tandem.events import AnyEvent


class TokensDialect:
    """One chunk for each step of each choice."""

    def __init__(self, context: Context, request: TokensRequest) -> None:
        self._context, self._request = context, request
        common, sampling = context.common, context.job.sampling
        self._head = {
            "request_id": common["id"],
            "created": common["created"],
            "model": common["model"],
            "output_mode": request.output_mode or "tokens",
        }
        self._is_given = sampling.logprob_token_ids is not None
        self._has_reports = sampling.logprobs is not None
        self._usage = context.job.request
        self._writers: dict[int, LogprobWriter] = {}
        self._num_written = 0  # tokens that chunks have told of

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def size(self, events: Sequence[AnyEvent]) -> int:
        """Of log-probabilities; everything else is quick to write."""
        return sum(map(written_size, events)) if self._has_reports else 0

    def events(self, events: Sequence[AnyEvent]) -> bytes:
        """A chunk for each delta that tells something."""
        return b"".join(map(self._chunk, deltas(events)))

    def end(self) -> bytes:
        """The usage, where it was asked for, and the mark of the end."""
        if not self._usage.wants_usage:
            return DONE
        return _event({**self._head, "choices": [], "usage": self._context.usage}) + DONE

    def error(self, error: ApiError) -> bytes:
        """One event; the stream closes after it."""
        return b"data: %b\n\n" % error.body

    def whole(self, answer: Answer) -> bytes:
        """One JSON object."""
        choices = [
            self._choice(
                choice.index,
                choice.token_ids,
                [entry for columns in choice.logprobs for entry in columns],
                choice.text,
                choice.finish_reason,
                choice.stop_reason,
            )
            for choice in answer.choices
        ]
        reports = None
        if 0 in answer.prompt_logprobs:
            vocabulary = self._context.model.vocabulary
            reports = prompt_logprobs(vocabulary, [None, *answer.prompt_logprobs[0]], as_ids=False)
        return encode_json({
            **self._head, "choices": choices, "prompt_logprobs": reports, "usage": self._context.usage
        })  # fmt: skip

    def _chunk(self, delta: Delta) -> bytes:
        if not delta.token_ids and delta.end is None and not self._request.wants_text:
            return b""
        reason, stop_reason = (None, None) if delta.end is None else (delta.end.finish_reason, delta.end.stop_reason)
        self._num_written += len(delta.token_ids)
        choice = self._choice(
            delta.choice, delta.token_ids, list(delta.logprobs or ()), delta.text, reason, stop_reason
        )
        fields = {**self._head, "choices": [choice]}
        if self._usage.wants_continuous_usage:
            fields["usage"] = self._context.usage_after(self._num_written)
        return _event(fields)

    def _choice(
        self,
        index: int,
        token_ids: Sequence[int],
        entries: Sequence[TokenLogprobs],
        text: str,
        finish_reason: FinishReason | None,
        stop_reason: int | str | None,
    ) -> dict[str, Any]:
        fields: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": finish_reason}
        if self._request.wants_text:
            fields["text"] = text
            if self._has_reports:
                fields["logprobs"] = self._writer(index).chat(entries, finish_reason, stop_reason)
        elif self._has_reports:
            fields["logprobs"] = {"content": [self._report(entry) for entry in entries]}
        if stop_reason is not None:
            fields["stop_reason"] = stop_reason
        return {**fields, "token_ids": token_ids}

    def _report(self, entry: TokenLogprobs) -> dict[str, Any]:
        """A token's entry, itself the first of its alternatives; of tokens that were given the rank is not known."""
        own = _ranked(entry.token_id, entry.logprob, entry.rank)
        others = [
            _ranked(token_id, logprob, None if self._is_given else rank)
            for rank, (token_id, logprob) in enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True), start=1)
            if token_id != entry.token_id
        ]
        room = None if self._is_given else len(entry.top_ids)
        return {**own, "top_logprobs": [own, *others][:room]}

    def _writer(self, choice: int) -> LogprobWriter:
        if (writer := self._writers.get(choice)) is None:
            context = self._context
            writer = LogprobWriter(context.model.vocabulary, context.job.sampling, as_ids=False)
            self._writers[choice] = writer
        return writer


def _ranked(token_id: int, logprob: float, rank: int | None) -> dict[str, Any]:
    return {"token_id": token_id, "logprob": logprob, "rank": rank}


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % encode_json(fields)
