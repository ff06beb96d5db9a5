"""Body of ``POST /inference/v1/generate`` (wire format: vLLM's)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from server.schemas.common import (
    BadWords,
    Choices,
    Count,
    LabelIds,
    LogitBias,
    Name,
    Penalty,
    Priority,
    Probability,
    RepetitionPenalty,
    RequestId,
    Salt,
    Seed,
    StopString,
    StopStrings,
    StreamOptions,
    Temperature,
    TokenId,
    TokenIds,
    TopK,
)
from server.schemas.unsupported import UNSUPPORTED, Refusals
from tandem.errors import RequestError

GENERATE_REFUSALS: Refusals = {
    "features": ("only text can be read", ()),
    "ec_transfer_params": ("only text can be read", ({},)),
    "kv_transfer_params": UNSUPPORTED["kv_transfer_params"],
}


class TokenSampling(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Fields of ``SamplingParams``. What is not given is neutral, whatever the model's own recommendation."""

    n: Choices | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: TopK | None = None
    min_p: Probability | None = None
    repetition_penalty: RepetitionPenalty | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: BadWords | None = None
    seed: Seed | None = None
    max_tokens: Count | None = None
    min_tokens: Count | None = None
    stop: StopString | StopStrings | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=1024)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    logprobs: Count | None = None
    logprob_token_ids: LabelIds | None = None
    prompt_logprobs: Count | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    structured_outputs: dict[str, Any] | None = None
    detokenize: bool | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The parameters that say something."""
        values = {name: getattr(self, name) for name in self.__struct_fields__ if name != "detokenize"}
        return {name: value for name, value in values.items() if value is not None}


class TokensRequest(msgspec.Struct, kw_only=True, frozen=True):
    """Token ids to go on with; ``output_mode`` says whether text comes back beside the ids."""

    token_ids: Annotated[TokenIds, Meta(min_length=1)]
    sampling_params: TokenSampling | None = None
    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    output_mode: Literal["tokens", "text"] | None = None
    cache_salt: Salt | None = None
    priority: Priority | None = None
    request_id: RequestId | None = None

    @property
    def sampling(self) -> TokenSampling:
        """The parameters, none if there are none."""
        return self.sampling_params or TokenSampling()

    @property
    def wants_text(self) -> bool:
        """Whether answers have text."""
        return self.output_mode == "text"

    def check(self) -> None:
        """Raise ``RequestError`` where fields contradict each other."""
        if self.stream and self.sampling.prompt_logprobs is not None:
            param = "sampling_params.prompt_logprobs"
            raise RequestError("prompt_logprobs cannot be streamed", param)
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream to be true", "stream_options")
        if self.wants_text and self.sampling.detokenize is False:
            raise RequestError("detokenize: false contradicts output_mode: text", "sampling_params.detokenize")
