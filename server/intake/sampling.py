"""Request fields to sampling parameters: the request's value, else the model's recommendation, else neutral."""

from __future__ import annotations

from typing import Any

from server.intake.prompts import gap_form
from server.schemas.common import GenerationRequest
from server.schemas.openai.chat import ChatRequest
from server.schemas.openai.completions import CompletionRequest
from server.state import LoadedModel
from tandem.errors import RequestError
from tandem.sampling_params import SamplingParams
from tandem.text.fill_in_middle import ending_token_ids

COMPLETION_MAX_TOKENS = 16
MAX_PROMPT_LOGPROBS = 2**22  # of a request; about 64 bytes each on the wire
SMALLEST_TOP_P = 1e-9  # OpenAI's API allows 0, which keeps the most likely token, as this does
_SAME_NAME = (
    "n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
    "logit_bias", "allowed_token_ids", "bad_words", "seed", "min_tokens", "stop", "stop_token_ids",
    "include_stop_str_in_output", "ignore_eos", "prompt_logprobs", "skip_special_tokens",
    "spaces_between_special_tokens",
)  # fmt: skip


def completion_sampling(request: CompletionRequest, model: LoadedModel) -> SamplingParams:
    """Raise ``RequestError`` where a value is out of range."""
    fields = _common(request, model)
    fields["max_tokens"] = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    fields["logprobs"] = _bounded(model, "logprobs", request.logprobs)
    if request.suffix and not request.ignore_eos:
        ends = ending_token_ids(gap_form(model), model.tokenizer)
        fields["stop_token_ids"] = [*fields.get("stop_token_ids", ()), *ends]
    if request.echo and request.reports_logprobs:
        fields["prompt_logprobs"] = max(request.logprobs or 0, request.prompt_logprobs or 0)
    return SamplingParams(**fields)


def chat_sampling(request: ChatRequest, model: LoadedModel) -> SamplingParams:
    """Raise ``RequestError`` where a value is out of range."""
    fields = _common(request, model)
    fields["max_tokens"] = request.output_limit[1]
    if request.logprobs:
        fields["logprobs"] = _bounded(model, "top_logprobs", request.top_logprobs or 0)
    return SamplingParams(**fields)


def check_prompt_logprobs(sampling: SamplingParams, num_positions: int, param: str) -> None:
    """Raise ``RequestError`` if reports on so many tokens of prompts would be too many."""
    count = sampling.prompt_logprobs
    if count is not None and num_positions * (count + 1) > MAX_PROMPT_LOGPROBS:
        message = f"all choices together would report more than {MAX_PROMPT_LOGPROBS} log-probabilities of prompts"
        raise RequestError(message, param)


def _common(request: GenerationRequest, model: LoadedModel) -> dict[str, Any]:
    fields = dict(model.resolved.default_sampling)
    fields |= {name: value for name in _SAME_NAME if (value := getattr(request, name)) is not None}
    if fields.get("top_p") == 0:
        fields["top_p"] = SMALLEST_TOP_P
    _bounded(model, "prompt_logprobs", request.prompt_logprobs)
    fields["logprob_token_ids"] = request.logprob_token_ids or None
    fields["structured_outputs"] = request.form[1]
    return fields


def _bounded(model: LoadedModel, param: str, count: int | None) -> int | None:
    if count is not None and count > model.max_logprobs:
        raise RequestError(f"{param} must be at most {model.max_logprobs}, got {count}", param)
    return count
