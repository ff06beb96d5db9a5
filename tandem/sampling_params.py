"""Sampling parameters, and the definition of what they mean."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from tandem.errors import RequestError
from tandem.structured_outputs import StructuredOutputsParams

SEED_MODULUS = 1 << 64
LOGIT_BIAS_LIMIT = 100.0
MAX_TOP_K = (1 << 31) - 1  # above any vocabulary: nothing is filtered
MAX_LOGPROB_TOKEN_IDS = 128
GREEDY_BELOW = 1e-5  # dividing by less only finds the limits of float32


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is chosen, when to stop, and what to report.

    **Definition.** This text is normative; each engine implements it on its own. A request has logits ``l[v]`` for
    the token at output position ``t`` (0 for the first generated token), a prompt, and the output so far.

    1. *Raw logits* in float32. In mode ``raw_logprobs`` the reported log-probabilities are ``log_softmax(l)``.
       A logit that is NaN or +inf, or a row that is all -inf, ends the request with ``finish_reason="error"``.
    2. *Masks* set ``l[v] = -inf``: for every v that the request's grammar, when it has one, does not let follow the
       output so far (end-of-sequence tokens may follow where the grammar may end, and only they where it must); for
       every v outside ``allowed_token_ids``, when given; for the last token of a
       bad word whose other tokens are the latest output tokens (a bad word of one token always); for the end-of-
       sequence tokens and ``stop_token_ids`` while ``t < min_tokens``. Then ``l[v] += logit_bias[v]``, clamped to
       ±100. If the masks leave no token, the request ends with ``finish_reason="error"``.
    3. *Penalties*. For each v in the prompt or the output: ``l[v] /= repetition_penalty`` where positive, else
       ``l[v] *= repetition_penalty``. Then, with c[v] the number of times v stands in the output:
       ``l[v] -= frequency_penalty · c[v] + presence_penalty · (c[v] > 0)``.
    4. *Filters*. ``z = l / temperature``; then, in this order, each on what the one before it left:
       *top-k* keeps v where z[v] is at least the k-th largest value; *top-p* keeps v where the softmax mass of the
       tokens strictly more likely than v is below ``top_p``; *min-p* keeps v where ``exp(z[v] - max z) ≥ min_p``.
       Ties are kept together, so no order among equals exists. In mode ``processed_logprobs`` the reported
       log-probabilities are ``log_softmax`` over what is left.
    5. *Draw*. The token is the argmax of ``z[v] - max z + noise[v]``, the lowest id winning ties, with
       ``noise[v] = -log(-log u)`` and ``u = ((w >> 9) + 0.5) · 2**-23`` where w is the first word of Philox-4x32-10
       with the request's 64-bit seed as key (low word first) and ``(v, t, choice index, 0)`` as counter.
       With temperature 0, steps 4's filters and the noise are skipped: plain argmax, the lowest id winning ties
       (``processed_logprobs`` are then those of step 3's logits).

    Modes ``raw_logits`` and ``processed_logits`` report the same logits without ``log_softmax``: numbers of either
    sign, clamped at the same place.

    What is reported of the prompt is raw in all modes: nothing was sampled there. A token that ends the answer
    both as end of sequence and as stop token counts as end of sequence.

    Philox is defined in Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

    Attributes:
        n: how many answers to the prompt, numbered from 0 (their choice index).
        temperature: ≥ 0; 0 means greedy, and so does any value below 1e-5.
        top_p: in (0, 1]; 1 is off.
        top_k: 0 or -1 is off.
        min_p: in [0, 1]; 0 is off.
        repetition_penalty: in [0.01, 100]; 1 is off.
        frequency_penalty, presence_penalty: in [-2, 2]; 0 is off.
        seed: any integer, taken modulo 2**64; None generates one for each request.
        max_tokens: at most so many output tokens; None means as many as the context holds.
        min_tokens: no end of sequence, stop token or stop string before so many output tokens.
        ignore_eos: the model's end-of-sequence tokens are ordinary tokens.
        stop: strings that end the answer; they are cut off unless ``include_stop_str_in_output``.
        stop_token_ids: tokens that end the answer, besides the end of sequence.
        bad_words: strings that must not be generated.
        allowed_token_ids: the only tokens that may be generated.
        structured_outputs: the form of the whole answer, as ``StructuredOutputsParams`` or a mapping of its fields.
        logit_bias: token id to bias, in [-100, 100].
        logprobs: report the chosen token's log-probability and those of so many most likely tokens.
        logprob_token_ids: report those of these tokens, at most 128 different ones, instead of the most likely ones:
            at each output position, in this order. ``logprobs`` is then their number, whatever was given.
        prompt_logprobs: the same for each prompt token but the first.
        skip_special_tokens: leave the tokenizer's special tokens out of the text.
        spaces_between_special_tokens: keep the decoder's spaces between adjacent added tokens.

    Raises:
        RequestError: on construction, naming the parameter that is out of range or of another type. Numbers of other
            libraries and whole floats are taken for what they are; text is no number, and a switch is none.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: Sequence[str] | str = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    bad_words: Sequence[str] = ()
    allowed_token_ids: Sequence[int] | None = None
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None
    logprob_token_ids: Sequence[int] | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        self._normalize()
        _check("n", self.n >= 1, self.n, "at least 1")
        finite = math.isfinite(self.temperature)
        _check("temperature", finite and self.temperature >= 0, self.temperature, "at least 0 and finite")
        _check("top_p", 0 < self.top_p <= 1, self.top_p, "in (0, 1]")
        _check("top_k", self.top_k >= -1, self.top_k, "at least 1, or 0 or -1 to turn it off")
        _check("min_p", 0 <= self.min_p <= 1, self.min_p, "in [0, 1]")
        repetition = self.repetition_penalty
        _check("repetition_penalty", 0.01 <= repetition <= 100, repetition, "in [0.01, 100]")
        _check("frequency_penalty", -2 <= self.frequency_penalty <= 2, self.frequency_penalty, "in [-2, 2]")
        _check("presence_penalty", -2 <= self.presence_penalty <= 2, self.presence_penalty, "in [-2, 2]")
        _check("max_tokens", self.max_tokens is None or self.max_tokens >= 0, self.max_tokens, "at least 0")
        _check("min_tokens", self.min_tokens >= 0, self.min_tokens, "at least 0")
        if self.max_tokens is not None:
            _check("min_tokens", self.min_tokens <= self.max_tokens, self.min_tokens, "at most max_tokens")
        _check("stop", all(self.stop), list(self.stop), "non-empty strings")
        _check("bad_words", all(self.bad_words), list(self.bad_words), "non-empty strings")
        _check("allowed_token_ids", self.allowed_token_ids != (), [], "None or at least one token id")
        if self.structured_outputs is not None and self.ignore_eos:
            raise RequestError("ignore_eos contradicts structured outputs, which have an end", "ignore_eos")
        _check("logprobs", self.logprobs is None or self.logprobs >= 0, self.logprobs, "at least 0")
        if self.logprob_token_ids is not None:
            self._report_given_tokens(self.logprob_token_ids)
        prompt = self.prompt_logprobs
        _check("prompt_logprobs", prompt is None or prompt >= 0, prompt, "at least 0")
        for token_id, bias in (self.logit_bias or {}).items():
            in_range = -LOGIT_BIAS_LIMIT <= bias <= LOGIT_BIAS_LIMIT
            _check("logit_bias", in_range, {token_id: bias}, "biases in [-100, 100]")

    def _report_given_tokens(self, token_ids: Sequence[int]) -> None:
        in_range = 0 < len(token_ids) <= MAX_LOGPROB_TOKEN_IDS
        _check("logprob_token_ids", in_range, list(token_ids), f"None or 1 to {MAX_LOGPROB_TOKEN_IDS} token ids")
        _check("logprob_token_ids", len({*token_ids}) == len(token_ids), list(token_ids), "different token ids")
        msgspec.structs.force_setattr(self, "logprobs", len(token_ids))

    def _normalize(self) -> None:
        """Give each value one form, so that engines and equality see no difference between spellings."""
        for names, read in _READERS:
            for name in names:
                msgspec.structs.force_setattr(self, name, read(name, getattr(self, name)))
        if self.top_k == -1 or self.top_k > MAX_TOP_K:
            msgspec.structs.force_setattr(self, "top_k", 0)
        if 0 < self.temperature < GREEDY_BELOW:
            msgspec.structs.force_setattr(self, "temperature", 0.0)
        if self.seed is not None:
            msgspec.structs.force_setattr(self, "seed", self.seed % SEED_MODULUS)


def _check(param: str, ok: bool, value: Any, expected: str) -> None:
    if not ok:
        raise _refusal(param, value, expected)


def _refusal(param: str, value: Any, expected: str) -> RequestError:
    got = " ".join(reprlib.repr(value).split())
    return RequestError(f"{param} must be {expected}, got {got}", param)


def _integer(param: str, value: Any) -> int:
    """Whole numbers of any library, also as floats."""
    if type(value) is int:
        return value
    is_real = hasattr(value, "is_integer")
    try:
        if isinstance(value, bool) or (is_real and not value.is_integer()):
            raise TypeError
        return int(value) if is_real else operator.index(value)
    except TypeError as error:
        raise _refusal(param, value, "an integer") from error


def _bounded_integer(param: str, value: Any) -> int:
    """One that engines can hold and messages can carry."""
    number = _integer(param, value)
    _check(param, -(2**63) <= number < 2**63, number, "an integer of 64 bits")
    return number


def _optional_integer(param: str, value: Any) -> int | None:
    return None if value is None else _bounded_integer(param, value)


def _seed(param: str, value: Any) -> int | None:
    return None if value is None else _integer(param, value)


def _number(param: str, value: Any) -> float:
    if type(value) is not float:
        # text has no __float__, although ``float`` reads it
        if isinstance(value, bool) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
            raise _refusal(param, value, "a number")
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise _refusal(param, value, "a number") from error
    return value


def _switch(param: str, value: Any) -> bool:
    _check(param, isinstance(value, bool), value, "true or false")
    return bool(value)


def _items(param: str, value: Any, expected: str) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes, bytearray, Mapping)) or not isinstance(value, Iterable):
        raise _refusal(param, value, expected)
    return tuple(value)


def _strings(param: str, value: Any) -> tuple[str, ...]:
    expected = "a list of strings"
    items = _items(param, value, expected)
    for item in items:
        _check(param, isinstance(item, str) and _is_unicode(item), item, expected)
    return items


def _stop(param: str, value: Any) -> tuple[str, ...]:
    return _strings(param, (value,) if isinstance(value, str) else value)


def _is_unicode(text: str) -> bool:
    """Whether it holds no lone surrogate, which UTF-8 cannot say."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _token_ids(param: str, value: Any) -> tuple[int, ...]:
    items = _items(param, value, "a list of token ids")
    if set(map(type, items)) <= {int}:
        return items
    return tuple(_integer(param, item) for item in items)


def _optional_token_ids(param: str, value: Any) -> tuple[int, ...] | None:
    return None if value is None else _token_ids(param, value)


def _biases(param: str, value: Any) -> dict[int, float] | None:
    """By token id; JSON knows only strings as keys."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _refusal(param, value, "an object of token ids and biases")
    biases = {}
    for key, bias in value.items():
        is_digits = isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 20
        token_id = int(key) if is_digits else _integer(param, key)
        _check(param, token_id not in biases, {key: bias}, "an object that names each token id once")
        biases[token_id] = _number(param, bias)
    return biases


def _structured_outputs(param: str, value: Any) -> StructuredOutputsParams | None:
    if value is None or isinstance(value, StructuredOutputsParams):
        return value
    try:
        return msgspec.convert(value, StructuredOutputsParams)
    except msgspec.ValidationError as error:
        raise _refusal(param, value, f"one form of answers: {error}") from error


_READERS: tuple[tuple[tuple[str, ...], Callable[[str, Any], Any]], ...] = (
    (("n", "top_k", "min_tokens"), _bounded_integer),
    (("max_tokens", "logprobs", "prompt_logprobs"), _optional_integer),
    (("seed",), _seed),
    (("temperature", "top_p", "min_p"), _number),
    (("repetition_penalty", "frequency_penalty", "presence_penalty"), _number),
    (("ignore_eos", "include_stop_str_in_output"), _switch),
    (("skip_special_tokens", "spaces_between_special_tokens"), _switch),
    (("stop",), _stop),
    (("bad_words",), _strings),
    (("stop_token_ids",), _token_ids),
    (("allowed_token_ids", "logprob_token_ids"), _optional_token_ids),
    (("logit_bias",), _biases),
    (("structured_outputs",), _structured_outputs),
)
