"""Bodies of ``POST /tokenize`` and ``POST /detokenize`` (wire format: vLLM's)."""

from __future__ import annotations

import msgspec

from server.schemas.common import Name, TokenIds
from server.schemas.openai.chat import Documents, Messages, TemplateText, Variables, check_messages
from server.schemas.openai.tools import Tools
from tandem.errors import RequestError


class TokenizeRequest(msgspec.Struct, kw_only=True, frozen=True):
    """Either a ``prompt`` or ``messages``. By default, special tokens are added to a prompt only."""

    model: Name | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: Tools | None = None
    documents: Documents | None = None
    chat_template: TemplateText | None = None
    chat_template_kwargs: Variables | None = None

    def check(self) -> None:
        """Raise ``RequestError`` unless exactly one of both is given."""
        if (self.prompt is None) == (self.messages is None):
            code = "missing_required_parameter" if self.prompt is None else "invalid_value"
            raise RequestError("give either prompt or messages", "prompt", code)
        if self.messages is not None:
            check_messages(self.messages)


class DetokenizeRequest(msgspec.Struct, kw_only=True, frozen=True):
    """Token ids to turn into text."""

    model: Name | None = None
    tokens: TokenIds

    def check(self) -> None:
        """Nothing in it can contradict."""
