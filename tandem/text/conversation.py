"""Conversations to token ids: the chat template, then the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tandem.errors import RequestError
from tandem.text.chat_template import ChatTemplate, Message
from tandem.text.tokenizer import Tokenizer


class ConversationEncoder:
    """Encodes conversations for one model. Its methods may be called from any thread, and take as long as they take.

    Args:
        tokenizer: the model's.
        template: the model's or the server's; None if there is none.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template

    def encode(
        self,
        messages: Sequence[Message],
        *,
        template: ChatTemplate | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        variables: Mapping[str, Any] | None = None,
        measure: Callable[[str], None] | None = None,
    ) -> list[int]:
        """Token ids of a conversation.

        Args:
            template: instead of the model's.
            add_special_tokens: the tokenizer's own frame around what the template makes.
            variables: further variables of the template.
            measure: is shown the rendered text before it is tokenized, and may refuse it.

        Raises:
            RequestError: there is no template, or it refuses the conversation.
        """
        chosen = template or self._template
        if chosen is None:
            raise RequestError("this model has no chat template", "messages", "unsupported_parameter")
        text = chosen.render(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )
        if measure is not None:
            measure(text)
        return self._tokenizer.encode(text, add_special_tokens)
