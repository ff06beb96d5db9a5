"""The gate in front of an engine: a prompt and sampling parameters in, complete engine requests out, or a refusal.

Whatever depends on the model is checked here, once, for the server and the offline interface alike.
"""

from __future__ import annotations

import random
import time
import uuid

import msgspec

from tandem.config import ResolvedModel
from tandem.engine import EngineInfo, EngineRequest
from tandem.errors import ContextLengthError, RequestError
from tandem.sampling_params import SEED_MODULUS, SamplingParams
from tandem.text.tokenizer import Tokenizer

MAX_CHOICES = 128


class Admission:
    """Checks prompts and parameters against one model; draws seeds for requests that bring none."""

    def __init__(self, model: ResolvedModel, info: EngineInfo, tokenizer: Tokenizer) -> None:
        self._info = info
        self._tokenizer = tokenizer
        self._max_logprobs = info.vocab_size if model.max_logprobs == -1 else model.max_logprobs
        self._eos_token_ids = model.eos_token_ids
        if not self._eos_token_ids and tokenizer.eos_token_id is not None:
            self._eos_token_ids = (tokenizer.eos_token_id,)
        self._seeds = random.Random(model.engine.seed)

    def admit(
        self, prompt_token_ids: list[int], sampling: SamplingParams, *, priority: int = 0, cache_salt: str = ""
    ) -> list[EngineRequest]:
        """One engine request for each of the ``n`` choices.

        Raises:
            ContextLengthError: the prompt, or the prompt and ``max_tokens``, do not fit.
            RequestError: a token id or a number of log-probabilities that this model does not have.
        """
        self._check_prompt(prompt_token_ids)
        self._check_sampling(sampling)
        max_tokens = self._max_tokens(len(prompt_token_ids), sampling)
        seed = self._seeds.randrange(SEED_MODULUS) if sampling.seed is None else sampling.seed
        bad_words = self._bad_words(sampling)
        first = uuid.uuid4().hex
        return [
            EngineRequest(
                request_id=f"{first}-{index}",
                prompt_token_ids=prompt_token_ids,
                sampling=sampling if index == 0 else _without_prompt_logprobs(sampling),
                max_tokens=max_tokens,
                seed=seed,
                choice_index=index,
                eos_token_ids=() if sampling.ignore_eos else self._eos_token_ids,
                bad_words_token_ids=bad_words,
                priority=priority,
                cache_salt=cache_salt,
                arrival_time=time.monotonic(),
            )
            for index in range(sampling.n)
        ]

    def _check_prompt(self, prompt_token_ids: list[int]) -> None:
        if not prompt_token_ids:
            raise RequestError("the prompt is empty: it must hold at least one token", "prompt")
        if min(prompt_token_ids) < 0 or max(prompt_token_ids) >= self._info.vocab_size:
            raise RequestError(f"prompt token ids must be in [0, {self._info.vocab_size})", "prompt")
        length, limit = len(prompt_token_ids), min(self._info.max_model_len, self._info.kv_cache_tokens)
        if length > limit:
            raise ContextLengthError(
                f"This model's maximum context length is {limit} tokens. However, your prompt has {length} tokens.",
                "prompt",
            )

    def _max_tokens(self, num_prompt_tokens: int, sampling: SamplingParams) -> int:
        limit = min(self._info.max_model_len, self._info.kv_cache_tokens)
        room = limit - num_prompt_tokens
        wanted = sampling.max_tokens
        if wanted is None:
            if room == 0:
                raise ContextLengthError(f"The prompt fills all {limit} tokens of this model's context.", "prompt")
            return room
        if wanted > room:
            raise ContextLengthError(
                f"This model's maximum context length is {limit} tokens. However, you requested "
                f"{num_prompt_tokens + wanted} tokens ({num_prompt_tokens} in the prompt, {wanted} in the answer).",
                "max_tokens",
            )
        return wanted

    def _check_sampling(self, sampling: SamplingParams) -> None:
        if sampling.n > MAX_CHOICES:
            raise RequestError(f"n must be at most {MAX_CHOICES}, got {sampling.n}", "n")
        for param in ("logprobs", "prompt_logprobs"):
            count = getattr(sampling, param)
            if count is not None and count > self._max_logprobs:
                raise RequestError(f"{param} must be at most {self._max_logprobs}, got {count}", param)
        for param in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            for token_id in getattr(sampling, param) or ():
                if not 0 <= token_id < self._info.vocab_size:
                    known = f"token ids in [0, {self._info.vocab_size})"
                    raise RequestError(f"{param} must hold {known}, got {token_id}", param)

    def _bad_words(self, sampling: SamplingParams) -> tuple[tuple[int, ...], ...]:
        """Each word as it is tokenized at the start of a text and after a space; both spellings are forbidden."""
        spellings = set()
        for word in sampling.bad_words:
            for text in (word, f" {word.lstrip()}"):
                if token_ids := self._tokenizer.encode(text, add_special_tokens=False):
                    spellings.add(tuple(token_ids))
        return tuple(sorted(spellings))


def _without_prompt_logprobs(sampling: SamplingParams) -> SamplingParams:
    """All choices share the prompt: only the first reports it."""
    if sampling.prompt_logprobs is None:
        return sampling
    return msgspec.structs.replace(sampling, prompt_logprobs=None)
