"""Questions about a state, by name. Wire format: vLLM's Structured Decisions."""

from __future__ import annotations

from typing import Any

from server.decisions.questions import Option, Question, question_reads, text_of
from server.decisions.reads import Distribution, ReadJob, distribution, read_job
from server.dialects.dialect import Answer, Context, encode_json
from server.schemas.common import GenerationRequest
from server.schemas.openai.chat import Message
from server.schemas.openai.decisions import StateQuestion, SystemOneRequest
from server.state import LoadedModel, ServerState


def systemone_job(state: ServerState, model: LoadedModel, request: SystemOneRequest, arrival_time: float) -> ReadJob:
    """A read a question. Takes long: see ``WorkPool``.

    Raises:
        RequestError: something is refused; ``param`` is a field of the request.
    """
    parts = [text_of(request.state), *([request.instructions] if request.instructions else [])]
    conversation = [Message(role="user", content="\n\n".join(parts))]
    questions = [_question(question, f"questions.{name[:100]}") for name, question in request.questions.items()]
    variables = request.chat_template_kwargs or {}
    reads = list(question_reads(state, model, conversation, questions, variables, "state"))
    common = GenerationRequest(priority=request.priority, cache_salt=request.cache_salt)
    return read_job(model, common, reads, arrival_time)


def _question(question: StateQuestion, place: str) -> Question:
    instructions, criteria = text_of(question.instructions or ""), question.criteria or {}
    match question.type:
        case "choice":
            options = [Option(name, "" if value is None else text_of(value)) for name, value in criteria.items()]
            return Question("choice", instructions, tuple(options), place)
        case "score":
            return Question("score", instructions, tuple(Option(text_of(level)) for level in criteria), place)
        case "noul":
            sides = [criteria.get(side) for side in ("true", "false")]
            options = [Option("" if side is None else text_of(side)) for side in sides]
            return Question("yes_or_no", instructions, tuple(options), place)


class SystemOneWriter:
    """One object with an answer a question."""

    def __init__(self, context: Context, request: SystemOneRequest) -> None:
        job = context.job
        assert isinstance(job, ReadJob)
        self._context, self._request, self._reads = context, request, job.reads

    def whole(self, answer: Answer) -> bytes:
        """The answers by name, the usage, and how sure of its labels the model was."""
        found = [distribution(read, choice) for read, choice in zip(self._reads, answer.choices, strict=True)]
        questions, common, counts = self._request.questions, self._context.common, self._context.counts
        return encode_json({
            **{name: common[name] for name in ("id", "object", "created", "model")},
            "answers": {
                name: {"type": question.type, **_answer(question, got), "confidence": got.confidence}
                for (name, question), got in zip(questions.items(), found, strict=True)
            },
            "usage": {"input_tokens": counts.num_prompt_tokens, "output_tokens": counts.num_output_tokens},
            "diagnostics": {
                name: {"label_mass": got.mass, "argmax_is_label": got.argmax_is_option}
                for name, got in zip(questions, found, strict=True)
            },
        })  # fmt: skip


def _answer(question: StateQuestion, got: Distribution) -> dict[str, Any]:
    match question.type:
        case "choice":
            names = list(question.criteria)
            return {"choice": names[got.best], "probabilities": dict(zip(names, got.shares, strict=True))}
        case "score":
            numbers = [str(level) for level in range(len(got.shares))]
            return {
                "score": got.mean,
                "legend": dict(zip(numbers, question.criteria, strict=True)),
                "probabilities": dict(zip(numbers, got.shares, strict=True)),
            }
        case "noul":
            return {"noul": got.shares[0], "probabilities": dict(zip(("yes", "no"), got.shares, strict=True))}
