"""From a request to the conversation that it goes on: what is stored of it, and what is new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from server.config import ServerConfig
from server.errors import ApiError
from server.intake.conversation import chat_job
from server.intake.job import Job
from server.responses.items import Kept, keep_items
from server.responses.store import Store
from server.responses.translation import Messages, as_messages, chat_request, in_our_terms
from server.schemas.openai.chat import ChatRequest
from server.schemas.openai.items import MAX_ITEMS
from server.schemas.openai.responses import PromptFields
from server.state import LoadedModel
from tandem.errors import ContextLengthError, RequestError

T = TypeVar("T")

MAX_CONVERSATION_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Turn:
    """What a request is an answer to.

    Attributes:
        before: items of the response or the conversation that it goes on.
        new: its own items.
        conversation: its id, if the turn belongs to one.
    """

    before: list[Kept]
    new: list[Kept]
    conversation: str | None
    _place: str

    @property
    def items(self) -> list[Kept]:
        """All of them."""
        return self.before + self.new

    @property
    def places(self) -> list[str]:
        """Of each item, the field that brought it."""
        return [self._place] * len(self.before) + [f"input[{i}]" for i in range(len(self.new))]


@dataclass(frozen=True, slots=True)
class ResponseJob(Job):
    """A job that knows its turn."""

    turn: Turn | None = None


def gather(store: Store, owner: str, request: PromptFields, size: int) -> Turn:
    """Look up what a request goes on. May wait for a disk.

    Args:
        size: of the request's body.

    Raises:
        ApiError: 404, it is not there.
        RequestError: an item is malformed, or there are too many, or they are too large.
    """
    before: list[Kept] = []
    place = ""
    if (previous := request.previous_response_id) is not None:
        place = "previous_response_id"
        _check_size(size + store.size(owner, "response", previous), place)
        before = _before(store, owner, previous)
    elif (conversation := request.conversation_id) is not None:
        place = "conversation"
        _check_size(size + store.size(owner, "conversation", conversation), place)
        items = store.items(owner, "conversation", conversation)
        if items is None:
            raise ApiError(404, f"Conversation with id {conversation!r} not found.", "conversation_not_found", place)
        before = items
    new = keep_items(request.input, "input", lambda item_id: store.item(owner, item_id))
    if len(before) + len(new) > MAX_ITEMS:
        raise RequestError(f"a conversation holds at most {MAX_ITEMS} items", place or "input")
    return Turn(before, new, request.conversation_id, place)


def _check_size(size: int, place: str) -> None:
    """Before a conversation that has grown beyond all use is read into memory."""
    if size > MAX_CONVERSATION_BYTES:
        raise RequestError(f"a conversation holds at most {MAX_CONVERSATION_BYTES} bytes", place)


def _before(store: Store, owner: str, previous: str) -> list[Kept]:
    """Of a response, its input and its output."""
    body = store.body(owner, "response", previous)
    items = store.items(owner, "response", previous)
    if body is None or items is None:
        message = f"Previous response with id {previous!r} not found."
        raise ApiError(404, message, "previous_response_not_found", "previous_response_id")
    if body["status"] in ("queued", "in_progress"):
        message = f"the response {previous!r} is not finished yet"
        raise RequestError(message, "previous_response_id", "previous_response_not_finished")
    return items


def response_job(
    model: LoadedModel, config: ServerConfig, request: PromptFields, turn: Turn, arrival_time: float
) -> ResponseJob:
    """The job of a turn. May take long.

    Raises:
        RequestError: something is refused.
    """
    job = _in_chat(request, turn, lambda chat: chat_job(model, config, chat, arrival_time))
    return ResponseJob(job.request, job.sampling, job.prompts, job.requests, job.reading, job.search, turn)


def _in_chat(request: PromptFields, turn: Turn, work: Callable[[ChatRequest], T]) -> T:
    """Do ``work`` with a turn in terms of chat; errors come back in ours.

    With ``truncation: auto``, so many of the oldest items are left out as must be.
    """
    whole = as_messages(request.instructions, turn.items, turn.places)
    first = int(request.instructions is not None)
    if request.truncation != "auto":
        return _attempt(request, whole, work)
    # a cut must not part a function's output from its call
    cuts = [i for i in range(first, len(whole.messages)) if whole.messages[i].role != "tool"]
    try:
        return _attempt(request, whole, work)
    except ContextLengthError:
        if len(cuts) < 2:
            raise
    low, high = 1, len(cuts) - 1
    result = _attempt(request, _without(whole, first, cuts[high]), work)
    while low < high:
        middle = (low + high) // 2
        try:
            result, high = _attempt(request, _without(whole, first, cuts[middle]), work), middle
        except ContextLengthError:
            low = middle + 1
    return result


def _attempt(request: PromptFields, messages: Messages, work: Callable[[ChatRequest], T]) -> T:
    try:
        return work(chat_request(request, messages.messages))
    except RequestError as error:
        raise in_our_terms(error, messages.places) from error


def _without(whole: Messages, first: int, cut: int) -> Messages:
    return Messages(
        whole.messages[:first] + whole.messages[cut:],
        whole.places[:first] + whole.places[cut:],
    )


def count_tokens(request: PromptFields, turn: Turn, work: Callable[[ChatRequest], int]) -> int:
    """Of the prompt of a turn. May take long. Raises as ``response_job``."""
    return _in_chat(request, turn, work)
