"""Bodies of ``POST /v1/systemone`` and ``POST /v1/decisions``.

Wire formats: vLLM's Structured Decisions, which are TypeSafe's System One, and OpenAI's Decisions API.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from server.schemas.common import Name, Priority, RequestId, Salt, ShortText
from server.schemas.openai.chat import Variables
from server.schemas.openai.items import InputText, RawItems
from server.schemas.unsupported import UNSUPPORTED, Refusals
from tandem.errors import RequestError

MAX_CHOICES = 26  # labels are the letters
MAX_LEVELS = 10  # and the digits
Key = Annotated[str, Meta(min_length=1, max_length=256)]
NO_STREAM: Refusals = {"stream": ("the answer is one object", (False,))}
SYSTEM_ONE_REFUSALS: Refusals = {
    **NO_STREAM,
    "decision_template": ("questions are asked in one way", ()),
    "seed": ("labels are always in the same order, and nothing is drawn", ()),
}
DECISIONS_REFUSALS: Refusals = {**NO_STREAM, "prompt_cache_options": UNSUPPORTED["prompt_cache_options"]}


class StateQuestion(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One question of System One; what ``criteria`` are depends on the type."""

    type: Literal["choice", "noul", "score"]
    instructions: Any = ""
    criteria: Any = None

    def check(self, place: str) -> None:
        """Raise ``RequestError`` where the criteria are not those of the type."""
        count, place = len(self.criteria or ()) if isinstance(self.criteria, dict | list) else 0, f"{place}.criteria"
        match self.type:
            case "choice" if not (isinstance(self.criteria, dict) and 1 <= count <= MAX_CHOICES):
                raise RequestError(f"{place} must be an object of 1 to {MAX_CHOICES} options", place)
            case "score" if not (isinstance(self.criteria, list) and 2 <= count <= MAX_LEVELS):
                raise RequestError(f"{place} must be a list of 2 to {MAX_LEVELS} levels", place)
            case "noul" if self.criteria is not None and not (
                isinstance(self.criteria, dict) and self.criteria.keys() <= {"true", "false"}
            ):
                raise RequestError(f"{place} must be an object that has at most true and false", place)


class SystemOneRequest(msgspec.Struct, kw_only=True, frozen=True):
    """A state, and questions about it by name."""

    state: Any
    questions: Annotated[dict[Key, StateQuestion], Meta(min_length=1, max_length=64)]
    model: Name | None = None
    instructions: str | None = None
    chat_template_kwargs: Variables | None = None
    priority: Priority | None = None
    request_id: RequestId | None = None
    cache_salt: Salt | None = None

    @property
    def stream(self) -> None:
        """There is no stream of probabilities."""

    def check(self) -> None:
        """Raise ``RequestError`` for a question that cannot be asked."""
        if self.state is None:
            raise RequestError("state is required", "state", "missing_required_parameter")
        for name, question in self.questions.items():
            question.check(f"questions.{name[:100]}")


class InputJson(msgspec.Struct, kw_only=True, frozen=True, tag_field="type", tag="input_json"):
    """JSON for the model, shown as its text."""

    data: dict[str, Any] | list[dict[str, Any]]


Instructions = str | Annotated[list[InputText | InputJson], Meta(min_length=1, max_length=64)]


class _Question(msgspec.Struct, kw_only=True, frozen=True, tag_field="type", forbid_unknown_fields=True):
    """Any question of OpenAI's Decisions."""

    instructions: Instructions
    name: Name | None = None


class Predicate(_Question, kw_only=True, frozen=True, tag="predicate"):
    """Whether something is true of the input."""


class ChoiceOption(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A value that may be chosen."""

    value: bool | Name
    description: str | None = None


class ChoiceQuestion(_Question, kw_only=True, frozen=True, tag="choice"):
    """Which of some values fits the input."""

    choices: Annotated[list[ChoiceOption], Meta(min_length=2, max_length=MAX_CHOICES)]


class ScoreLevel(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A level of a scale."""

    label: Name
    description: str | None = None


class ScoreQuestion(_Question, kw_only=True, frozen=True, tag="score"):
    """Where the input stands on a scale, the lowest level first."""

    levels: Annotated[list[ScoreLevel], Meta(min_length=2, max_length=MAX_LEVELS)]


class DecisionsRequest(msgspec.Struct, kw_only=True, frozen=True):
    """An input, and a list of questions about it."""

    input: str | RawItems
    questions: Annotated[list[Predicate | ChoiceQuestion | ScoreQuestion], Meta(min_length=1, max_length=400)]
    model: Name | None = None
    chat_template_kwargs: Variables | None = None
    priority: Priority | None = None
    request_id: RequestId | None = None
    cache_salt: Salt | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None

    @property
    def stream(self) -> None:
        """There is no stream of probabilities."""

    def check(self) -> None:
        """Raise ``RequestError`` where two choices are the same."""
        for i, question in enumerate(self.questions):
            if isinstance(question, ChoiceQuestion):
                values = {(type(choice.value), choice.value) for choice in question.choices}
                if len(values) < len(question.choices):
                    place = f"questions[{i}].choices"
                    raise RequestError(f"{place}: each value must be there once", place)
