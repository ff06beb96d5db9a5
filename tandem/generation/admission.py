"""The gate in front of an engine: prompts and sampling parameters in, complete engine requests out, or a refusal.

Whatever depends on the model is checked here, once, for the server and the offline interface alike.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from tandem.config import LOGITS_MODES, ResolvedModel
from tandem.engine import EngineInfo, EngineRequest
from tandem.errors import ContextLengthError, RequestError
from tandem.grammar.checker import GrammarChecker
from tandem.grammar.sources import grammar_of
from tandem.sampling_params import SEED_MODULUS, SamplingParams
from tandem.text.tokenizer import Tokenizer

MAX_CHOICES = 128
MIN_TEXT_BYTES = 4 * 2**20  # any model may be shown a text of this length
TEXT_BYTES_PER_TOKEN = 16


@dataclass(frozen=True, slots=True)
class Terms:
    """Sampling parameters, checked against one model and completed; shared by all prompts and choices.

    Attributes:
        first: for choice 0 of each prompt.
        others: for its other choices, which do not report the prompt again.
        bad_words: token sequences that must not be generated.
        grammar: as in ``EngineRequest``.
    """

    first: SamplingParams
    others: SamplingParams
    eos_token_ids: tuple[int, ...]
    bad_words: tuple[tuple[int, ...], ...]
    grammar: str = ""


class Admission:
    """Checks texts, prompts and parameters against one model; draws seeds for requests that bring none.

    Its methods may be called from any thread, and take as long as their arguments are.

    Args:
        salt: of the random seeds, so that several fronts of one engine draw others.
    """

    def __init__(self, model: ResolvedModel, info: EngineInfo, tokenizer: Tokenizer, salt: str = "") -> None:
        self._info = info
        self._limit = min(info.max_model_len, info.kv_cache_tokens)
        self._tokenizer = tokenizer
        self._max_logprobs = info.vocab_size if model.max_logprobs == -1 else model.max_logprobs
        eos = model.eos_token_ids or (() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,))
        self._eos_token_ids = tuple(token_id for token_id in eos if self._has(token_id))
        self._reports_logits = model.engine.logprobs_mode in LOGITS_MODES
        self._grammars = GrammarChecker(tokenizer, info.vocab_size)
        self._seeds = random.Random(f"{model.engine.seed}/{salt}" if salt else model.engine.seed)

    def measure(self, text: str, fits: bool = True) -> None:
        """Refuse a text that is too long before it is tokenized, which takes a hundred times its memory.

        Args:
            fits: the whole text must fit the context; else only a part of it, or nothing, is for the model.

        Raises:
            ContextLengthError: the text cannot fit, or is too long to be tokenized at all.
            RequestError: it is not Unicode.
        """
        try:
            num_bytes = len(text) if text.isascii() else len(text.encode())
        except UnicodeEncodeError as error:  # JSON within JSON can hold half a surrogate pair
            raise RequestError("the text holds characters that are not Unicode", "prompt") from error
        fewest = self._tokenizer.fewest_tokens(num_bytes)
        if fits and fewest > self._limit:
            raise ContextLengthError(
                f"This model's maximum context length is {self._limit} tokens. However, your prompt of {num_bytes} "
                f"bytes has at least {fewest} tokens.",
                "prompt",
            )
        longest = max(MIN_TEXT_BYTES, TEXT_BYTES_PER_TOKEN * self._limit)
        if num_bytes > longest:
            message = f"A text of {num_bytes} bytes is too long for this model; at most {longest} are tokenized."
            raise ContextLengthError(message, "prompt")

    def encode(self, text: str, add_special_tokens: bool = True, *, fits: bool = True) -> list[int]:
        """Token ids of a text. Arguments and errors as ``measure``."""
        self.measure(text, fits)
        return self._tokenizer.encode(text, add_special_tokens)

    def require_logprobs(self, param: str | None) -> None:
        """Raise ``RequestError`` where engines report logits: then there are no log-probabilities to compute with."""
        if self._reports_logits:
            message = (
                f"{param or 'this'} needs log-probabilities, and with this server's --logprobs-mode there are none"
            )
            raise RequestError(message, param, "unsupported_parameter")

    def terms(self, sampling: SamplingParams, grammar: str = "", param: str = "structured_outputs") -> Terms:
        """Sampling parameters as an engine needs them.

        Args:
            grammar: of answers, where that of the structured outputs is not all there is to it.
            param: the request's field that the grammar was made of.

        Raises:
            RequestError: a token id, a number of choices or of log-probabilities that this model does not have; or
                a grammar that cannot be followed.
        """
        self._check_sampling(sampling)
        if not grammar and sampling.structured_outputs is not None:
            grammar = grammar_of(sampling.structured_outputs, param)
        if grammar:
            self._check_grammar(grammar, sampling, param)
            sampling = msgspec.structs.replace(sampling, structured_outputs=None)
        has_report = sampling.n > 1 and sampling.prompt_logprobs is not None
        others = msgspec.structs.replace(sampling, prompt_logprobs=None) if has_report else sampling
        eos = () if sampling.ignore_eos else self._eos_token_ids
        return Terms(sampling, others, eos, self._bad_words(sampling.bad_words), grammar)

    def admit(
        self,
        prompt_token_ids: list[int],
        terms: Terms,
        *,
        priority: int = 0,
        cache_salt: str = "",
        group: str = "",
        arrival_time: float | None = None,
    ) -> list[EngineRequest]:
        """One engine request for each of the ``n`` choices; they share the list of ids and the parameters.

        Args:
            arrival_time: ``time.monotonic()`` seconds; now, if not given.

        Raises:
            ContextLengthError: the prompt, or the prompt and ``max_tokens``, do not fit.
            RequestError: the prompt is empty or holds a token id that this model does not have.
        """
        self._check_prompt(prompt_token_ids)
        sampling = terms.first
        max_tokens = self._max_tokens(len(prompt_token_ids), sampling)
        seed = self._seeds.randrange(SEED_MODULUS) if sampling.seed is None else sampling.seed
        arrived = time.monotonic() if arrival_time is None else arrival_time
        first = uuid.uuid4().hex
        return [
            EngineRequest(
                request_id=f"{first}-{index}",
                prompt_token_ids=prompt_token_ids,
                sampling=sampling if index == 0 else terms.others,
                max_tokens=max_tokens,
                seed=seed,
                choice_index=index,
                eos_token_ids=terms.eos_token_ids,
                bad_words_token_ids=terms.bad_words,
                grammar=terms.grammar,
                priority=priority,
                cache_salt=cache_salt,
                arrival_time=arrived,
                group=group,
            )
            for index in range(sampling.n)
        ]

    def _has(self, token_id: int) -> bool:
        return 0 <= token_id < self._info.vocab_size

    def _check_prompt(self, prompt_token_ids: list[int]) -> None:
        if not prompt_token_ids:
            raise RequestError("the prompt is empty: it must hold at least one token", "prompt")
        if min(prompt_token_ids) < 0 or max(prompt_token_ids) >= self._info.vocab_size:
            raise RequestError(f"prompt token ids must be in [0, {self._info.vocab_size})", "prompt")
        length, limit = len(prompt_token_ids), self._limit
        if length > limit:
            raise ContextLengthError(
                f"This model's maximum context length is {limit} tokens. However, your prompt has {length} tokens.",
                "prompt",
            )

    def _max_tokens(self, num_prompt_tokens: int, sampling: SamplingParams) -> int:
        limit = self._limit
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
            if param == "logprobs" and sampling.logprob_token_ids is not None:
                continue  # counted when they were constructed
            if count is not None and count > self._max_logprobs:
                raise RequestError(f"{param} must be at most {self._max_logprobs}, got {count}", param)
        for param in ("stop_token_ids", "allowed_token_ids", "logit_bias", "logprob_token_ids"):
            for token_id in getattr(sampling, param) or ():
                if not self._has(token_id):
                    known = f"token ids in [0, {self._info.vocab_size})"
                    raise RequestError(f"{param} must hold {known}, got {token_id}", param)

    def _check_grammar(self, grammar: str, sampling: SamplingParams, param: str) -> None:
        if sampling.ignore_eos:
            raise RequestError(f"ignore_eos contradicts {param}: such an answer has an end", "ignore_eos")
        if not self._eos_token_ids:
            message = f"{param} needs a token that ends answers, and this model has none"
            raise RequestError(message, param, "unsupported_parameter")
        self._grammars.check(grammar, param)

    def _bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Each word as it is tokenized at the start of a text and after a space; both spellings are forbidden.

        A spelling with a token that the model cannot generate, because its tokenizer is larger, needs no ban.
        """
        spellings = set()
        for word in words:
            for text in (word, f" {word.lstrip()}"):
                token_ids = self._tokenizer.encode(text, add_special_tokens=False)
                if token_ids and all(map(self._has, token_ids)):
                    spellings.add(tuple(token_ids))
        return tuple(sorted(spellings))
