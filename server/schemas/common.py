"""Fields that completions and chat have in common.

Wire format: OpenAI's published API, and the further parameters of vLLM under vLLM's names. ``null`` always means "not
given". Every field is bounded here, in one place; what depends on the model is checked at admission.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from server.schemas.openai.forms import FormFields
from tandem.errors import RequestError
from tandem.sampling_params import MAX_LOGPROB_TOKEN_IDS

INT31 = 2**31 - 1
INT63 = 2**63 - 1

ShortText = Annotated[str, Meta(max_length=512)]
Name = Annotated[str, Meta(max_length=256)]
Salt = Annotated[str, Meta(min_length=1, max_length=256)]
RequestId = Annotated[
    str, Meta(pattern=r"^[!-~]{1,128}$", description="1 to 128 printable characters; shown in `id`")
]
MAX_PARTS = 2**16  # of one message, or in it of one tool result
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
StopStrings = Annotated[list[StopString], Meta(max_length=4)]
Count = Annotated[int, Meta(ge=0, le=INT31)]
TokenId = Annotated[int, Meta(ge=0, le=INT31)]
Temperature = Annotated[float, Meta(ge=0, le=2, description="0 is greedy")]
Probability = Annotated[float, Meta(ge=0, le=1)]
TopK = Annotated[int, Meta(ge=-1, le=INT31, description="0 and -1 turn it off")]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Meta(gt=0, le=100)]
Seed = Annotated[int, Meta(ge=-INT63 - 1, le=INT63, description="one seed and one prompt give one answer")]
Choices = Annotated[int, Meta(ge=1, le=128, description="answers to each prompt")]
Bias = Annotated[float, Meta(ge=-100, le=100)]
LogitBias = Annotated[dict[int, Bias], Meta(max_length=4096, description="token id to bias in [-100, 100]")]
TokenIds = Annotated[list[TokenId], Meta(max_length=2**20)]
LabelIds = Annotated[
    list[TokenId], Meta(max_length=MAX_LOGPROB_TOKEN_IDS, description="tokens to report at each output position")
]
BadWords = Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=1024)]
Truncation = Annotated[
    int, Meta(ge=-1, le=INT31, description="keep only so many tokens of the prompt, the last ones; -1: all that fit")
]
Priority = Annotated[int, Meta(ge=-INT63 - 1, le=INT63, description="lower runs earlier")]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


# Fields that beam search has no use for, and the values that change nothing.
NOT_IN_BEAM_SEARCH: dict[str, tuple[object, ...]] = {
    "temperature": (0, 1),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "min_tokens": (0,),
    "stop": ([],),
    "logprobs": (False,),
    "prompt_logprobs": (),
    "logprob_token_ids": ([],),
    "echo": (False,),
    "response_format": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "tools": ([],),
    "thinking_token_budget": (),
}


class StreamOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a stream carries besides text. Nothing is added to hide the lengths of texts."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class GenerationRequest(FormFields, kw_only=True, frozen=True):
    """Sampling, stopping, reporting and plumbing: the same in ``/v1/completions`` and ``/v1/chat/completions``."""

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

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
    n: Choices | None = None

    use_beam_search: bool | None = None
    length_penalty: Annotated[float, Meta(ge=-10, le=10)] | None = None

    min_tokens: Count | None = None
    stop: StopString | StopStrings | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=1024)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None

    prompt_logprobs: Count | None = None
    logprob_token_ids: LabelIds | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Truncation | None = None
    truncation_side: Literal["left", "right"] | None = None
    echo: bool | None = None

    priority: Priority | None = None
    request_id: RequestId | None = None
    cache_salt: Salt | None = None

    user: ShortText | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    prompt_cache_retention: ShortText | None = None

    def check(self) -> None:
        """Raise ``RequestError`` where fields contradict each other."""
        if self.use_beam_search:
            self._check_beam_search()
        elif self.length_penalty not in (None, 1):
            raise RequestError("length_penalty belongs to use_beam_search", "length_penalty")
        if self.stream and self.prompt_logprobs is not None:
            raise RequestError("prompt_logprobs cannot be streamed", "prompt_logprobs")
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream to be true", "stream_options")
        self.form  # noqa: B018 - it raises where two fields contradict each other

    def _check_beam_search(self) -> None:
        """It looks for the most likely answers: nothing may change how likely they are, and nothing is sampled."""
        for name, neutral in NOT_IN_BEAM_SEARCH.items():
            value = getattr(self, name, None)
            if value is not None and value not in neutral:
                raise RequestError(f"{name} cannot be combined with use_beam_search", name)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_continuous_usage(self) -> bool:
        """Whether every chunk of a stream carries the usage so far."""
        return self.wants_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)
