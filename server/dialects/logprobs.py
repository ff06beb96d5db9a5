"""Log-probabilities in the three formats of the wire: chat's, completions', and vLLM's ``prompt_logprobs``."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from server.dialects.vocabulary import Vocabulary
from tandem.engine import FinishReason, TokenLogprobs
from tandem.generation.outputs import as_dict
from tandem.sampling_params import SamplingParams


class LogprobWriter:
    """Writes the log-probabilities of one choice, all at once or in the order in which they come.

    A token that the text does not show (the end of sequence, a skipped special token) has an entry like any other, so
    that there are as many as tokens; its ``bytes`` are null, so that the others' rebuild the text.

    Args:
        as_ids: write tokens as ``token_id:…``.
    """

    def __init__(self, vocabulary: Vocabulary, sampling: SamplingParams, as_ids: bool) -> None:
        self._vocabulary = vocabulary
        self._as_ids = as_ids
        self._hidden = vocabulary.special_token_ids if sampling.skip_special_tokens else frozenset()
        self._keeps_stop_token = sampling.include_stop_str_in_output
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def chat(
        self, entries: Sequence[TokenLogprobs], finish_reason: FinishReason | None, stop_reason: int | str | None
    ) -> dict[str, Any]:
        """The next tokens' entry in ``choices[].logprobs`` of chat (schema ``ChatCompletionTokenLogprob``)."""
        shown = self._shown([entry.token_id for entry in entries], finish_reason, stop_reason)
        content = []
        for entry, visible in zip(entries, shown, strict=True):
            top = [
                self._chat_token(token_id, logprob, token_id not in self._hidden)
                for token_id, logprob in zip(entry.top_ids, entry.top_logprobs, strict=True)
            ]
            content.append({**self._chat_token(entry.token_id, entry.logprob, visible), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def completion(
        self, entries: Sequence[TokenLogprobs], finish_reason: FinishReason | None, stop_reason: int | str | None
    ) -> dict[str, Any]:
        """The next tokens' part of ``choices[].logprobs`` of completions: four lists of one length."""
        token_ids = [entry.token_id for entry in entries]
        return self._completion(token_ids, entries, self._shown(token_ids, finish_reason, stop_reason))

    def echo(self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None], num_top: int) -> dict[str, Any]:
        """The prompt's part of the same lists. The first token has no probability: nothing stands before it."""
        cut = [
            entry and TokenLogprobs(
                entry.token_id, entry.logprob, entry.rank, entry.top_ids[:num_top], entry.top_logprobs[:num_top]
            )
            for entry in entries
        ]  # fmt: skip
        return self._completion(token_ids, cut, self._shown(token_ids, None, None))

    def _completion(
        self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None], shown: Sequence[bool]
    ) -> dict[str, Any]:
        name = self._vocabulary.name
        return {
            "tokens": [name(token_id, self._as_ids) for token_id in token_ids],
            "token_logprobs": [None if entry is None else entry.logprob for entry in entries],
            "top_logprobs": [
                None if entry is None else {name(i, self._as_ids): value for i, value in as_dict(entry).items()}
                for entry in entries
            ],
            "text_offset": [
                self._advance(token_id, visible) for token_id, visible in zip(token_ids, shown, strict=True)
            ],
        }

    def _advance(self, token_id: int, visible: bool) -> int:
        """The offset at which the token's text begins."""
        offset = self._offset
        if visible:
            self._offset += len(self._utf8.decode(self._vocabulary.bytes(token_id)))
        return offset

    def _chat_token(self, token_id: int, logprob: float, visible: bool) -> dict[str, Any]:
        return {
            "token": self._vocabulary.name(token_id, self._as_ids),
            "logprob": logprob,
            "bytes": list(self._vocabulary.bytes(token_id)) if visible else None,
        }

    def _shown(
        self, token_ids: Sequence[int], finish_reason: FinishReason | None, stop_reason: int | str | None
    ) -> list[bool]:
        shown = [token_id not in self._hidden for token_id in token_ids]
        ended_by_token = finish_reason == "stop" and not isinstance(stop_reason, str)
        if shown and ended_by_token and not self._keeps_stop_token:
            shown[-1] = False
        return shown


def join(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Completion log-probabilities of consecutive texts as one."""
    return {key: [item for part in parts for item in part[key]] for key in parts[0]}


def prompt_logprobs(vocabulary: Vocabulary, entries: Sequence[TokenLogprobs | None], as_ids: bool) -> list[Any]:
    """vLLM's ``prompt_logprobs``: null for the first token, then token ids to log-probability, rank and text."""
    return [None if entry is None else _prompt_entry(vocabulary, entry, as_ids) for entry in entries]


def _prompt_entry(vocabulary: Vocabulary, entry: TokenLogprobs, as_ids: bool) -> dict[str, Any]:
    ranks = {token_id: rank for rank, token_id in enumerate(entry.top_ids, start=1)}
    ranks.setdefault(entry.token_id, entry.rank)
    return {
        str(token_id): {
            "logprob": logprob,
            "rank": ranks[token_id],
            "decoded_token": vocabulary.name(token_id, as_ids),
        }
        for token_id, logprob in as_dict(entry).items()
    }
