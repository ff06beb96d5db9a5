"""Body of ``POST /v1/completions``."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from server.schemas.common import Count, GenerationRequest
from tandem.errors import RequestError

MAX_PROMPTS = 2048
PromptItem = str | int | list[int]
PromptList = Annotated[list[PromptItem], Meta(min_length=1)]


class CompletionRequest(GenerationRequest, kw_only=True, frozen=True):
    """A prompt to go on with: text, token ids, or a list of either.

    With a ``suffix`` the answer is what stands between both, where the model can fill gaps.
    ``max_tokens: 0`` generates nothing; with ``echo`` and ``logprobs`` it scores the prompt.
    """

    prompt: str | PromptList
    suffix: str | None = None
    max_tokens: Count | None = None
    logprobs: Count | None = None
    best_of: Annotated[int, Meta(ge=0, le=128)] | None = None

    def check(self) -> None:
        """Raise ``RequestError`` where fields contradict each other."""
        if self.best_of and self.best_of not in (1, self.n or 1):
            raise RequestError("best_of other than 1 or n is not supported", "best_of", "unsupported_parameter")
        super().check()
        if self.suffix:
            self._check_suffix()
        if len(self.prompts) > MAX_PROMPTS:
            raise RequestError(f"prompt holds more than {MAX_PROMPTS} prompts", "prompt")

    def _check_suffix(self) -> None:
        if not all(isinstance(prompt, str) for prompt in self.prompts):
            raise RequestError("suffix needs a prompt that is text", "suffix")
        if self.truncate_prompt_tokens is not None:
            raise RequestError("suffix cannot be combined with truncate_prompt_tokens", "suffix")

    @property
    def reports_logprobs(self) -> bool:
        """Whether the answer has log-probabilities."""
        return self.logprobs is not None or bool(self.logprob_token_ids)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one.

        Raises:
            RequestError: texts, token ids and lists of them are mixed.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        kind = type(self.prompt[0])
        for i, item in enumerate(self.prompt):
            if type(item) is not kind:
                message = f"prompt[{i}] is of another type than prompt[0]: use strings, ids, or lists of ids"
                raise RequestError(message, f"prompt[{i}]", "invalid_type")
        return [self.prompt] if kind is int else self.prompt  # type: ignore[list-item, return-value]
