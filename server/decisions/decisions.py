"""A list of questions about an input. Wire format: OpenAI's Decisions API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.decisions.questions import Kind, Option, Question, question_reads, text_of
from server.decisions.reads import Distribution, ReadJob, distribution, read_job
from server.dialects.dialect import Answer, Context, encode_json
from server.responses.items import keep_items
from server.responses.translation import as_messages, in_our_terms
from server.schemas.common import GenerationRequest
from server.schemas.openai.chat import Message, check_messages
from server.schemas.openai.decisions import ChoiceQuestion, DecisionsRequest, Instructions, Predicate, ScoreQuestion
from server.schemas.openai.items import InputText
from server.state import LoadedModel, ServerState
from tandem.errors import RequestError

_CACHE_MARK = "prompt_cache_breakpoint"  # of parts: the prefix cache finds equal prefixes by itself
AnyQuestion = Predicate | ChoiceQuestion | ScoreQuestion


def decisions_job(state: ServerState, model: LoadedModel, request: DecisionsRequest, arrival_time: float) -> ReadJob:
    """A read a question. Takes long: see ``WorkPool``.

    Raises:
        RequestError: something is refused; ``param`` is a field of the request.
    """
    conversation = _conversation(request.input)
    has_words = all(len(model.tokenizer.encode(word, False)) == 1 for word in ("yes", "no"))
    questions = [_question(question, f"questions[{i}]", has_words) for i, question in enumerate(request.questions)]
    variables = request.chat_template_kwargs or {}
    reads = list(question_reads(state, model, conversation, questions, variables, "input"))
    common = GenerationRequest(priority=request.priority, cache_salt=request.cache_salt)
    return read_job(model, common, reads, arrival_time)


def _conversation(given: str | Sequence[dict[str, Any]]) -> list[Message]:
    """Items as messages of chat, as ``/v1/responses`` reads them."""
    if isinstance(given, str):
        return [Message(role="user", content=given)]
    kept = keep_items([_plain(item) for item in given], "input", find=lambda item_id: None)
    said = as_messages(None, kept, [f"input[{i}]" for i in range(len(kept))])
    try:
        check_messages(said.messages)
    except RequestError as error:
        raise in_our_terms(error, said.places) from error
    return said.messages


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item without what is only of this API: JSON becomes text, and what changes nothing is left out."""
    fields = {name: value for name, value in item.items() if name not in ("phase", "namespace")}
    for name in ("content", "output"):
        if isinstance(parts := fields.get(name), list):
            fields[name] = [_plain_part(part) if isinstance(part, dict) else part for part in parts]
    return fields


def _plain_part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part.get("type") == "input_json" and isinstance(part.get("data"), dict | list):
        return {"type": "input_text", "text": text_of(part["data"])}
    return {name: value for name, value in part.items() if name != _CACHE_MARK}


def _question(question: AnyQuestion, place: str, has_words: bool) -> Question:
    """In our terms; a predicate is answered by letters where yes and no are several tokens."""
    instructions = _instructions(question.instructions)
    match question:
        case Predicate():
            kind: Kind = "yes_or_no" if has_words else "choice"
            return Question(kind, instructions, (Option("it is true"), Option("it is not true")), place)
        case ChoiceQuestion():
            choices = (Option(text_of(choice.value), choice.description or "") for choice in question.choices)
            return Question("choice", instructions, tuple(choices), place)
        case ScoreQuestion():
            levels = (Option(level.label, level.description or "") for level in question.levels)
            return Question("score", instructions, tuple(levels), place)


def _instructions(given: Instructions) -> str:
    if isinstance(given, str):
        return given
    return "\n".join(part.text if isinstance(part, InputText) else text_of(part.data) for part in given)


class DecisionsWriter:
    """One object with the answers in the order of the questions."""

    def __init__(self, context: Context, request: DecisionsRequest) -> None:
        job = context.job
        assert isinstance(job, ReadJob)
        self._context, self._request, self._reads = context, request, job.reads

    def whole(self, answer: Answer) -> bytes:
        """The answers and the usage."""
        found = [distribution(read, choice) for read, choice in zip(self._reads, answer.choices, strict=True)]
        counts = self._context.counts
        return encode_json({
            "model": self._context.common["model"],
            "answers": [
                {"name": question.name, **_answer(question, got)}
                for question, got in zip(self._request.questions, found, strict=True)
            ],
            "usage": {
                "input_tokens": counts.num_prompt_tokens,
                "input_tokens_details": {"cached_tokens": counts.num_cached_tokens, "cache_write_tokens": 0},
                "output_tokens": counts.num_output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts.num_prompt_tokens + counts.num_output_tokens,
            },
        })  # fmt: skip


def _answer(question: AnyQuestion, got: Distribution) -> dict[str, Any]:
    match question:
        case Predicate():
            return {"type": "predicate", "probability": got.shares[0]}
        case ChoiceQuestion():
            values = [choice.value for choice in question.choices]
            return {
                "type": "choice",
                "choice": values[got.best],
                "probabilities": [
                    {"value": value, "probability": share} for value, share in zip(values, got.shares, strict=True)
                ],
                "confidence": got.confidence,
            }
        case ScoreQuestion():
            return {
                "type": "score",
                "score": got.mean,
                "probabilities": [
                    {"value": i, "label": level.label, "probability": share}
                    for i, (level, share) in enumerate(zip(question.levels, got.shares, strict=True))
                ],
                "confidence": got.confidence,
            }
