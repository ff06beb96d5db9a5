"""Questions about a state, each as a read: the conversation that asks it, and the tokens that may answer it."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from server.decisions.reads import Read
from server.intake.answers import TAIL_TOKENS
from server.intake.prompts import chat_prompt
from server.schemas.openai.chat import ChatRequest, Message
from server.schemas.openai.decisions import MAX_CHOICES, MAX_LEVELS
from server.state import LoadedModel, ServerState
from tandem.errors import RequestError
from tandem.text.parsers import registry

Kind = Literal["choice", "score", "yes_or_no"]
# Spellings of each label: the first is shown, those that are one token count.
_LABELS: dict[Kind, list[tuple[str, ...]]] = {
    "choice": [(letter,) for letter in string.ascii_uppercase[:MAX_CHOICES]],
    "score": [(digit,) for digit in string.digits[:MAX_LEVELS]],
    "yes_or_no": [("yes", "Yes"), ("no", "No")],
}
NO_THOUGHTS = {"enable_thinking": False, "thinking": False}


@dataclass(frozen=True, slots=True)
class Option:
    """A possible answer; ``name`` is empty where its label says all."""

    name: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the state.

    Attributes:
        place: the field of the request it stands in.
    """

    kind: Kind
    instructions: str
    options: tuple[Option, ...]
    place: str


def question_reads(
    state: ServerState,
    model: LoadedModel,
    conversation: Sequence[Message],
    questions: Sequence[Question],
    variables: Mapping[str, Any],
    place: str,
) -> Iterator[Read]:
    """A read for each question: the conversation, and the question at its end. Takes long: see ``WorkPool``.

    What all questions have in common comes first, so that it is computed once.

    Args:
        conversation: what is asked about.
        variables: of the chat template.
        place: the field of the request that the conversation comes from.

    Raises:
        RequestError: there is no chat template or it refuses the conversation; answers to it begin with thoughts; a
            label is not one token; or all prompts together are more than the server takes.
    """
    labels: dict[tuple[int, ...], _Labels] = {}  # by the ends of prompts, which are mostly the same
    room = state.config.max_queued_tokens
    for question in questions:
        messages = _asked(conversation, _text(question))
        chat = ChatRequest(messages=messages, chat_template_kwargs={**NO_THOUGHTS, **variables})
        try:
            prompt = chat_prompt(model, chat, None, state.config.response_role)
        except RequestError as error:
            own = "chat_template_kwargs" if error.param == "chat_template_kwargs" else place
            raise RequestError(str(error), own, error.code) from error
        room -= len(prompt.token_ids)
        if state.config.max_queued_tokens and room < 0:
            message = f"all questions together are more prompt tokens than this server takes at once: {place} is too"
            raise RequestError(f"{message} long, or there are too many of them", place)
        tail = tuple(prompt.token_ids[-TAIL_TOKENS:])
        if tail not in labels:
            labels[tail] = _Labels(model, tail)
        yield Read(prompt, labels[tail].options(question), place)


def text_of(value: Any) -> str:
    """Text as it is, everything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _asked(conversation: Sequence[Message], text: str) -> list[Message]:
    """The question in the user's last message, or in one of its own: some templates want turns to alternate."""
    *before, last = conversation
    if last.role != "user" or not isinstance(last.content, str):
        return [*conversation, Message(role="user", content=text)]
    return [*before, msgspec.structs.replace(last, content=f"{last.content}\n\n{text}" if last.content else text)]


def _text(question: Question) -> str:
    labels = [spellings[0] for spellings in _LABELS[question.kind][: len(question.options)]]
    lines = [f"Question: {question.instructions}"] if question.instructions else []
    lines.append("Possible answers:")
    for label, option in zip(labels, question.options, strict=True):
        lines.append(": ".join(part for part in (label, option.name, option.description) if part))
    lines.append(f"Answer with one of these and nothing else: {', '.join(labels)}")
    return "\n".join(lines)


class _Labels:
    """The tokens that labels are where an answer begins.

    Args:
        tail: the last tokens of the prompt.

    Raises:
        RequestError: the answer begins with thoughts.
    """

    def __init__(self, model: LoadedModel, tail: tuple[int, ...]) -> None:
        tokenizer = model.tokenizer
        self._encode = tokenizer.encode
        form = model.formats.reasoning
        if form is None and model.template is not None:
            form = registry.detect(model.template.source)[1]
        if form is not None and form.is_thinking(tokenizer.decode(list(tail))):
            message = "the chat template lets answers begin with thoughts, but their first token must be the decision"
            raise RequestError(message, "chat_template_kwargs", "unsupported_parameter")
        special = [i for i, token_id in enumerate(tail) if token_id in tokenizer.added_token_ids]
        start = special[-1] if special else 0
        self._before = tokenizer.decode(list(tail[start:]))  # what a text's tokens are depends on the text before it
        self._ids = self._encode(self._before, False)

    def options(self, question: Question) -> tuple[tuple[int, ...], ...]:
        """The tokens of each option."""
        spellings = _LABELS[question.kind][: len(question.options)]
        found = [tuple(i for text in texts if (i := self._token(text)) is not None) for texts in spellings]
        for texts, token_ids in zip(spellings, found, strict=True):
            if not token_ids:
                message = (
                    f"{question.place}: its label {texts[0]!r} is not one token where answers of this model begin"
                )
                raise RequestError(message, question.place, "unsupported_value")
        every = [token_id for token_ids in found for token_id in token_ids]
        if len({*every}) < len(every):  # of a tokenizer that does not know some letters
            message = f"{question.place}: this model's tokenizer makes the same token of two of its labels"
            raise RequestError(message, question.place, "unsupported_value")
        return tuple(found)

    def _token(self, label: str) -> int | None:
        ids = self._encode(self._before + label, False)
        return ids[-1] if ids[:-1] == self._ids else None
